"""Rows of every form: turns in order, systems and histories kept, pictures at their places, and what is refused."""

import base64
import json

import pytest

from puma_trl.data.columns import find_form
from puma_trl.data.places import IMAGE_PLACE
from puma_trl.data.rows import ROW_COLUMNS, read_row
from puma_trl.errors import DataError


def read(row, root="/data", **mapping):
    mapping = {field: tuple(place.split(".")) for field, place in mapping.items()}
    return read_row(
        row,
        root,
        find_form([*row, *(path[0] for path in mapping.values())], {name: (path,) for name, path in mapping.items()}),
    )


def side(row, suffix=""):
    """The texts of a side, turns before its question as `role: text`, and the paths of its pictures."""
    history = [f"{turn['role']}: {turn['content']}" for turn in row[f"history{suffix}"]]
    texts = [*history, row[f"instruction{suffix}"], row[f"output{suffix}"]]
    return texts, [image["path"] for image in row[f"image_url{suffix}"]]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "s"}
PICTURE, TEXT = {"type": "image"}, {"type": "text", "text": "t"}


@pytest.mark.parametrize(
    ("row", "texts", "images"),
    [
        ({"messages": [user("a"), assistant("b")]}, ["a", "b"], []),
        (
            {"messages": [SYSTEM, user("a"), assistant("b"), user("c"), assistant("d")]},
            ["system: s", "user: a", "assistant: b", "c", "d"],
            [],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            ["system: s", "a", "b"],
            [],
        ),
        ({"conversations": [user("a"), assistant("b")], "system": "s"}, ["system: s", "a", "b"], []),
        ({"conversations": [{"from": "Human", "value": "a"}, {"from": "GPT", "value": "b"}]}, ["a", "b"], []),
        (
            {"messages": [user([TEXT, PICTURE, TEXT]), assistant([TEXT])], "images": ["x.png"]},
            ["t<image>t", "t"],
            ["/data/x.png"],
        ),
        (
            {
                "messages": [user([PICTURE, TEXT]), assistant("b"), user([PICTURE, TEXT]), assistant("c")],
                "images": ["x.png", "y.png"],
            },
            ["user: <image>t", "assistant: b", "<image>t", "c"],
            ["/data/x.png", "/data/y.png"],
        ),
        (
            {"messages": [user([PICTURE | {"image": "y.png"}, PICTURE, TEXT]), assistant("b")], "images": ["x.png"]},
            ["<image><image>t", "b"],
            ["/data/y.png", "/data/x.png"],
        ),
        (
            {"messages": [user([{"type": "image_url", "image_url": {"url": "y.png"}}, TEXT]), assistant("b")]},
            ["<image>t", "b"],
            ["/data/y.png"],
        ),
        ({"prompt": "a", "completion": "b"}, ["a", "b"], []),
        ({"prompt": [SYSTEM, user("a")], "completion": [assistant("b")]}, ["system: s", "a", "b"], []),
        ({"prompt": [user("a")], "completion": "b", "image": "x.png"}, ["a", "b"], ["/data/x.png"]),
        ({"instruction": "a", "input": "i", "output": "b"}, ["a\n\ni", "b"], []),
        ({"instruction": "a", "input": "", "output": "b", "system": "", "history": []}, ["a", "b"], []),
        ({"instruction": "", "input": "i", "output": "b"}, ["i", "b"], []),
        (
            {"instruction": "a", "output": "b", "system": "s", "history": [["q", "r"], ["q2", "r2"]]},
            ["system: s", "user: q", "assistant: r", "user: q2", "assistant: r2", "a", "b"],
            [],
        ),
        (
            {"instruction": "a", "output": "b", "history": [user("q"), assistant("r")]},
            ["user: q", "assistant: r", "a", "b"],
            [],
        ),
        ({"question": "a", "answer": "b", "images": ["x.png", "/y.png"]}, ["a", "b"], ["/data/x.png", "/y.png"]),
    ],
)
def test_forms_of_a_side(row, texts, images):
    found = read(row)
    assert side(found) == (texts, images)
    assert (
        set(found) == {*ROW_COLUMNS, "unread"} and [found[f"{name}_2"] for name in ("history", "output")] == [None] * 2
    )
    second = read(row | {f"{name}_2": value for name, value in row.items()})
    assert side(second, "_2") == side(second) == (texts, images)


def test_a_row_that_was_read_is_read_the_same():
    row = read({"messages": [SYSTEM, user("<img>a"), assistant("b"), user("c"), assistant("d")], "images": ["x.png"]})
    again = read({name: value for name, value in row.items() if value is not None})
    assert again == row


PLACEHOLDERS = [
    *(
        "<image>",
        "<Image>",
        "<image1>",
        "<image 1>",
        "<image_1>",
        "<image-1>",
        "<img>",
        "<img></img>",
        "<IMG_CONTEXT>",
    ),
    *("<|image|>", "<|image_1|>", "<|img|>", "<image_soft_token>", "<|image_pad|>", "<start_of_image>", "[IMG]"),
    *("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"),
    *("<image_placeholder>", "<img><IMG_CONTEXT><IMG_CONTEXT></img>", "<|begin_of_image|><|image|><|end_of_image|>"),
    *(
        "<start_of_image><image_soft_token><end_of_image>",
        "(<image>./</image>)",
        "<picture>",
        "<ImageHere>",
        "[image 1]",
    ),
]


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_placeholders_are_places(placeholder):
    for text in (f"{placeholder}\nFind it.", f"Find {placeholder} it.", f"Find it.{placeholder}"):
        expected = text.replace(placeholder, IMAGE_PLACE)
        row = {"instruction": text, "output": "b", "image_url": "x.png"}
        assert side(read(row)) == ([expected, "b"], ["/data/x.png"])
        turns = {"messages": [user(text), assistant("b"), user("c"), assistant("d")], "images": ["x.png"]}
        assert read(turns)["history"][0]["content"] == expected
        for images in (None, [], ["x.png", "y.png"]):
            with pytest.raises(DataError, match="image places: `instruction` has 1 for pictures") as error:
                read(row | {"image_url": images})
            assert placeholder[:60] in str(error.value)
        with pytest.raises(DataError, match="image places: `output` has '"):
            read({"instruction": "a", "output": text, "image_url": "x.png"})
        with pytest.raises(DataError, match="image places: turn 2 of `messages` has '"):
            read({"messages": [user("a"), assistant(text)], "images": ["x.png"]})


def test_places_belong_to_each_side():
    row = {
        "instruction": "a",
        "output": "b",
        "instruction_2": "<img> c <img>",
        "output_2": "b",
        "image_url_2": ["x", "y"],
    }
    assert side(read(row), "_2") == (["<image> c <image>", "b"], ["/data/x", "/data/y"])
    with pytest.raises(DataError, match="image places: `instruction_2` has 2 .* but the row has 1 pictures for it"):
        read(row | {"image_url_2": "x"})


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<image 1> <image 2>", True),
        ("<image0><image1>", True),
        ("<image2><image1>", False),
        ("<image 1><image>", False),
        ("<image 3><image 4>", False),
    ],
)
def test_numbers_of_placeholders_are_the_order_of_pictures(text, right):
    row = {"instruction": text, "output": "b", "image_url": ["x", "y"]}
    if right:
        assert read(row)["instruction"].replace(" ", "") == IMAGE_PLACE * 2
    else:
        with pytest.raises(DataError, match="pictures are placed in their order"):
            read(row)


@pytest.mark.parametrize("text", ["a < b > c, [1] and x[image_size]", "<b>image</b>", "![x](y)", "x<image"])
def test_texts_that_only_look_like_places_stay(text):
    assert side(read({"instruction": text, "output": text})) == ([text, text], [])


@pytest.mark.parametrize(
    "text",
    [
        "See ![](a.png).",
        "![a](https://host/b)",
        "<img src='a.png'>",
        "<img>a.png</img>",
        "<video>\nWhat?",
        "data:image/png;base64,AA",
    ],
)
def test_pictures_inside_of_a_question_are_refused(text):
    with pytest.raises(DataError, match="image places: `instruction` has '.*' in its text"):
        read({"instruction": text, "output": "b", "image_url": "x.png"})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, "wrong type: `messages` is list"),
        ({"messages": "a"}, "wrong type: `messages` is str"),
        ({"messages": None}, "missing value: `messages`"),
        ({"messages": ["a"]}, "wrong type: turn 1 of `messages` is str 'a'"),
        ({"messages": [user("a")]}, "no answer: the last turn of `messages` is by the user"),
        ({"messages": [user("a"), assistant("b"), user("c")]}, "no answer: "),
        ({"messages": [SYSTEM]}, "no answer: the last turn of `messages` is by the system"),
        ({"messages": [assistant("b")]}, "roles: the turns of `messages` are by assistant;"),
        (
            {"messages": [user("a"), user("b"), assistant("c")]},
            "roles: the turns of `messages` are by user, user, assistant",
        ),
        ({"messages": [assistant("a"), user("b"), assistant("c")]}, "roles: "),
        ({"messages": [user("a"), SYSTEM, assistant("c")]}, "roles: "),
        ({"messages": [SYSTEM, user("a"), assistant("c")], "system": "t"}, "roles: both `system` and `messages` give"),
        (
            {"messages": [{"role": "narrator", "content": "a"}, assistant("b")]},
            "roles: turn 1 of `messages` is by str 'narr",
        ),
        ({"messages": [{"content": "a"}, assistant("b")]}, "roles: turn 1 of `messages` is by NoneType None"),
        ({"messages": [user("a"), assistant(" ")]}, "no answer: turn 2 of `messages` (assistant) is empty"),
        ({"messages": [user(""), assistant("b")]}, "empty text: turn 1 of `messages` (user) is empty"),
        ({"messages": [user("a"), assistant([])]}, "no answer: turn 2"),
        ({"messages": [user("a"), assistant(None)]}, "no answer: turn 2 of `messages` (assistant) is empty"),
        ({"messages": [user("a\0"), assistant("b")]}, "invalid text: turn 1 of `messages` has a NUL byte"),
        (
            {"messages": [user("a"), assistant("") | {"tool_calls": [{"name": "f"}]}]},
            "tool calls: turn 2 of `messages` has `tool",
        ),
        (
            {"messages": [user("a"), {"role": "tool", "content": "7"}, assistant("b")]},
            "tool calls: turn 2 of `messages` is by 'tool'",
        ),
        (
            {"messages": [user("a"), assistant("b") | {"reasoning_content": "c"}]},
            "unread key: turn 2 of `messages` has `reas",
        ),
        (
            {"messages": [user([{"type": "audio", "audio": "a.wav"}]), assistant("b")]},
            "unread key: turn 1 of `messages` has a part of the type str 'audio'",
        ),
        ({"messages": [user([{"type": "video"}, TEXT]), assistant("b")]}, "unread key: turn 1"),
        ({"messages": [user(["a"]), assistant("b")]}, "unread key: turn 1 of `messages` has a part str 'a'"),
        ({"messages": [user("a"), assistant([PICTURE])]}, "image places: turn 2 of `messages` has a picture"),
        ({"messages": [user([PICTURE]), assistant("b")]}, "image places: `messages` has 1 for pictures"),
        ({"messages": [user([PICTURE]), assistant("b")], "images": ["x", "y"]}, "image places: `messages` has 1 "),
        (
            {"messages": [user("a"), assistant("b")], "images": ["x"], "image": "y"},
            "several columns: `images` and `image` both",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}]},
            "not trained on: turn 2 of `conversations`, the answer, is not to be learned, as its `weight` is 0",
        ),
        (
            {"prompt": [user("a")], "completion": [assistant("b"), user("c"), assistant("d")]},
            "roles: `completion` has 3 turns",
        ),
        ({"prompt": [user("a"), assistant("b")], "completion": "c"}, "roles: the turns of `prompt + completion`"),
        ({"prompt": "a", "completion": ""}, "no answer: `completion` (assistant) is empty"),
        ({"prompt": "a", "completion": None}, "no answer: `completion`"),
        ({"instruction": "a", "output": "b", "history": "q"}, "wrong type: `history` is str"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "wrong type: entry 1 of `history` is list"),
        ({"instruction": "a", "output": "b", "history": [["q", ""]]}, "empty text: entry 1 of `history` (assistant)"),
        ({"instruction": "a", "output": "b", "input": [7]}, "wrong type: `input` is list"),
        ({"instruction": "a", "output": "b", "input": False}, "wrong type: `input` is bool False"),
        ({"instruction": "a", "output": "b", "system": ["s"]}, "unread key: `system` has a part str 's'"),
        ({"question": "a", "answer": True}, "wrong type: `answer` is bool True, not text"),
        ({"question": "a", "answer": float("nan")}, "wrong type: `answer` is float nan, not text"),
        (
            {"question": None, "answer": "b"},
            "missing value: `question` is missing or null; the row has: question, answer",
        ),
    ],
)
def test_what_is_refused_says_what_was_found(row, problem):
    with pytest.raises(DataError) as error:
        read(row)
    assert str(error.value).startswith(problem) and "\n" not in str(error.value)


def test_a_mapped_place_inside_of_a_column():
    row = {"data": {"q": "a", "picture": "x.png"}, "output": "b"}
    assert side(read(row, instruction="data.q", image_url="data.picture")) == (["a", "b"], ["/data/x.png"])
    with pytest.raises(DataError, match="missing value: `data.q`"):
        read(row | {"data": None}, instruction="data.q")
    with pytest.raises(DataError, match="wrong type: `data` is str 'a', not an object with `q`"):
        read(row | {"data": "a"}, instruction="data.q")


def test_addresses_of_pictures():
    content = base64.b64encode(b"png").decode()
    row = {"instruction": "a", "output": "b"}
    (image,) = read(row | {"image_url": f"data:image/png;base64,{content}"}, root=None)["image_url"]
    assert image == {"bytes": b"png", "path": None}
    (image,) = read(row | {"image_url": ["file:///a%20b.png"]}, root=None)["image_url"]
    assert image == {"bytes": None, "path": "/a b.png"}
    with pytest.raises(DataError, match="image address: .*https://host/a.png"):
        read(row | {"image_url": "https://host/a.png"})


def test_base64_alone_is_no_path():
    with pytest.raises(DataError) as error:
        read({"instruction": "a", "output": "b", "image_url": "iVBORw0KGgo" + "A" * 1_000_000})
    assert "holds 1,000,011 characters, 'iVBORw0KGgo" in str(error.value) and len(str(error.value)) < 300


def test_values_of_any_depth_are_described():
    deep = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(DataError, match="wrong type: `output` is list"):
        read({"instruction": "a", "output": deep})


@pytest.mark.parametrize(("number", "text"), [(7, "7"), (0, "0"), (-1.5, "-1.5")])
def test_numbers_are_their_texts(number, text):
    assert side(read({"question": number, "answer": number}))[0] == [text, text]
    assert side(read({"messages": [user("a"), assistant(number)]}))[0] == ["a", text]
    assert read({"instruction": "a", "input": number, "output": "b"})["instruction"] == f"a\n\n{text}"


@pytest.mark.parametrize("none", [[None], {"bytes": None, "path": None}, [{"bytes": None, "path": None}]])
def test_pictures_that_are_null_are_none(none):
    row = {"instruction": "a", "output": "b", "image_url": none}
    assert read(row)["image_url"] == []
    assert read(row | {"image_url_2": none, "instruction_2": None, "output_2": None})["instruction_2"] is None
    with pytest.raises(DataError, match="wrong type: `image_url` holds NoneType None"):
        read(row | {"image_url": [None, "x.png"]})
