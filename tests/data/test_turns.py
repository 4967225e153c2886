"""Turns and their parts: keys that are read, keys that say nothing, and all others are named."""

import pytest

from puma_trl.errors import DataError

from .test_rows import PICTURE, TEXT, assistant, read, side, user


UNREAD_KEYS = (
    "image image_url picture files attachments context choices input system text thought think thinking mask masked "
    "prefix refusal audio"
).split()


@pytest.mark.parametrize("key", UNREAD_KEYS)
def test_keys_of_a_turn_that_are_not_read_are_named(key):
    with pytest.raises(DataError) as error:
        read({"messages": [user("a"), assistant("b") | {key: "x"}]})
    assert str(error.value) == f"unread key: turn 2 of `messages` has `{key}` (str 'x'), which is not read"
    for empty in (None, "", [], {}):
        assert read({"messages": [user("a") | {key: empty}, assistant("b")]})["instruction"] == "a"


def test_keys_of_a_turn_that_say_the_same_or_nothing_stay():
    about = {"id": 1, "timestamp": "x", "model": "m", "from": "human", "name": "User", "weight": 0, "value": None}
    assert side(read({"messages": [user("a") | about, assistant("b") | {"weight": 1.0, "train": True}]}))[0] == [
        "a",
        "b",
    ]
    for more in ({"name": "Alice"}, {"from": "gpt"}, {"value": "other"}):
        with pytest.raises(DataError, match="unread key: turn 1 of `messages` has `"):
            read({"messages": [user("a") | more, assistant("b")]})


@pytest.mark.parametrize("key", ["weight", "train", "trainable", "loss", "loss_weight"])
def test_the_answer_has_the_weight_one(key):
    for row in (
        {"messages": [user("a"), assistant("b")]},
        {"prompt": "a", "completion": [assistant("b")]},
    ):
        name = list(row)[-1]
        for weight, problem in (
            (0, "not trained on: the last turn"),
            (False, "not trained on"),
            (0.5, "unread key: the"),
        ):
            turns = [*row[name][:-1], row[name][-1] | {key: weight}]
            with pytest.raises(DataError, match=f"{problem}.*`{key}`"):
                read(row | {name: turns})


@pytest.mark.parametrize(
    ("part", "key"),
    [
        (TEXT | {"image": "x.png"}, "image"),
        (TEXT | {"index": 0}, "index"),
        (PICTURE | {"image": "x.png", "url": "y.png"}, "url"),
        (PICTURE | {"image": "x.png", "index": 0}, "index"),
        (PICTURE | {"image": "x.png", "max_pixels": 100}, "max_pixels"),
        (PICTURE | {"image": "x.png", "resized_height": 28}, "resized_height"),
        (PICTURE | {"source": {"type": "base64", "data": "x"}}, "source"),
        (PICTURE | {"text": "t"}, "text"),
        ({"type": "image_url", "image_url": {"url": "x.png", "detail": "low"}}, "detail"),
    ],
)
def test_keys_of_a_part_that_are_not_read_are_named(part, key):
    with pytest.raises(DataError, match=f"unread key: turn 1 of `messages` has a part with `{key}` "):
        read({"messages": [user([part, TEXT]), assistant("b")]})


def test_parts_of_other_makers():
    parts = [
        {"type": "input_image", "image_url": "x.png", "detail": "auto"},
        {"type": "input_text", "text": "a", "image_url": None},
        {"type": "image", "text": None, "index": 0},
    ]
    row = {"messages": [user(parts), assistant([{"type": "output_text", "text": "b"}])], "images": ["y.png"]}
    assert side(read(row)) == (["<image>a<image>", "b"], ["/data/x.png", "/data/y.png"])
    swapped = [PICTURE | {"index": 1}, PICTURE | {"index": 0}]
    with pytest.raises(DataError, match="pictures are placed in their order"):
        read({"messages": [user(swapped), assistant("b")], "images": ["x.png", "y.png"]})


@pytest.mark.parametrize("content", [None, "", []])
def test_an_empty_system_message_is_none(content):
    turns = [{"role": "system", "content": content}, user("a"), assistant("b")]
    assert side(read({"messages": turns}))[0] == side(read({"prompt": turns[:2], "completion": "b"}))[0] == ["a", "b"]
    assert side(read({"messages": turns, "system": "s"}))[0] == ["system: s", "a", "b"]
    with pytest.raises(DataError, match="no answer: the last turn of `messages` is by the system"):
        read({"messages": turns[:1]})
