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


WEIGHT_KEYS = ["weight", "train", "trainable", "loss", "loss_mask", "loss_scale", "loss_weight"]


@pytest.mark.parametrize("key", WEIGHT_KEYS)
def test_the_answer_has_the_weight_one(key):
    for row in (
        {"messages": [user("a"), assistant("b")]},
        {"prompt": "a", "completion": [assistant("b")]},
    ):
        name = list(row)[-1]
        for weight, problem in (
            (0, f"not trained on: turn {len(row[name])} "),
            (False, "not trained on"),
            (0.5, f"unread key: turn {len(row[name])} "),
        ):
            turns = [*row[name][:-1], row[name][-1] | {key: weight}]
            with pytest.raises(DataError, match=f"{problem}.*`{key}`"):
                read(row | {name: turns})


@pytest.mark.parametrize("key", WEIGHT_KEYS)
def test_other_turns_have_none(key):
    """They are the prompt, so a weight that says so is harmless, and one by which they are learned is refused."""
    before, after = [user("a"), assistant("b")], [user("c"), assistant("d")]
    rows = [
        {"messages": before + after},
        {"prompt": [*before, after[0]], "completion": after[1:]},
        {"history": before, "instruction": "c", "output": "d"},
    ]
    for row, place in ((row, place) for row in rows for place in (0, 1)):
        name = list(row)[0]

        def weighted(weight, row=row, name=name, place=place):
            turns = [dict(turn) for turn in row[name]]
            turns[place][key] = weight
            return row | {name: turns}

        for weight in (0, 0.0, False, None):
            assert side(read(weighted(weight)))[0][-1] == "d"
        for weight in (1, True, 1.0):
            with pytest.raises(DataError, match=f"not trained on: turn {place + 1} of `{name}` .*`{key}` is 1, but"):
                read(weighted(weight))
        with pytest.raises(DataError, match=rf"unread key: turn {place + 1} of `{name}` has `{key}` \(float 0.5\)"):
            read(weighted(0.5))


@pytest.mark.parametrize(
    ("part", "key"),
    [
        (TEXT | {"image": "x.png"}, "image"),
        (TEXT | {"index": 0}, "index"),
        (PICTURE | {"image": "x.png", "url": "y.png"}, "url"),
        (PICTURE | {"image": "x.png", "index": 0}, "index"),
        (PICTURE | {"index": True}, "index"),
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
