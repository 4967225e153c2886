"""`columns` says where the data calls a column otherwise, and what to leave out."""

import pytest
import yaml

from puma_trl.errors import DataError

from .samples import ONE, PAIR, TURNS, texts


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"q": "a", "r": {"text": "b", "n": 1}}, {"instruction": "q", "output": "r.text"}, ["a", "b", None, None]),
        (
            {"q": "a", "r.text": "b", "r": {"text": "c"}},
            {"instruction": "q", "output": "r.text"},
            ["a", "b", None, None],
        ),
        (PAIR | {"pic": "/a.png"}, {"image_url_2": "pic"}, ["a", "b", "c", "b", "/a.png"]),
        (
            {"question": "a", "question_2": "c", "answer": "b"},
            {"output_2": "answer"},
            ["a", "b", "c", "b"],
        ),
        (ONE | {"long_output": "c"}, {"output": "long_output"}, ["a", "c", None, None]),
        (ONE | {"messages": TURNS[:1] * 2}, {"instruction": "instruction"}, ["a", "b", None, None]),
        (ONE | {"messages": TURNS[:1] * 2}, {"messages": "ignore"}, ["a", "b", None, None]),
        ({"problem": "a", "solution": "b", "answer": "c"}, {"output": "solution"}, ["a", "b", None, None]),
        (
            {"chat": TURNS, "pics": ["/a.png"]},
            {"messages": "chat", "image_url": "pics"},
            ["a", "b", None, None, "/a.png"],
        ),
        ({"input": "a", "output": "b"}, {"instruction": "input"}, ["a", "b", None, None]),
        ({"question": "a", "answer": "b", "hint": "h"}, {"input": "hint"}, ["a\n\nh", "b", None, None]),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_mapping_wins(row, columns, expected, suffix, find):
    (source,) = find([row], columns=columns, suffix=suffix)
    assert texts(source) == [expected]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (["b", "c"], "r.0"),
        ({"text": ["b"], "start": [7]}, "r.text.0"),
        ([{"text": "b"}], "r.0.text"),
        ([["x"], ["b"]], "r.1.0"),
    ],
)
def test_a_mapping_leads_into_lists(value, name, suffix, find):
    (source,) = find([{"q": "a", "r": value}], columns={"instruction": "q", "output": name}, suffix=suffix)
    assert texts(source) == [["a", "b", None, None]]
    (source,) = find([{"q": "a", "r": value}, {"q": "a", "r": None}], columns={"instruction": "q", "output": name})
    with pytest.raises(DataError, match=f"no answer: `{name}` is missing or null"):
        texts(source)


def test_a_list_in_place_of_a_text_names_its_first(find):
    (source,) = find([{"question": "a", "answer": ["b"]}])
    with pytest.raises(DataError, match="`answer` is list .* not text; `columns` reads the first of it as `answer.0`"):
        texts(source)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("paired", [False, True])
def test_pictures_in_several_columns(paired, suffix, find):
    row = PAIR if paired else {"question": "Is <image 1> like <image 2>?", "answer": "b"}
    rows = [row | {"image_1": f"/{name}.png", "image_2": f"/{name}{name}.png"} for name in "ab"]
    if paired:
        rows.append(row | {"image_1": "/c.png", "image_2": None})
    with pytest.raises(DataError, match="`image_1` (looks|has the name).*`image_2` (looks|has the name)") as error:
        find(rows, suffix=suffix)
    columns = yaml.safe_load(str(error.value).split("`columns: ")[1].partition("}`")[0] + "}")
    assert columns == {f"image_url{'_2' if paired else ''}": ["image_1", "image_2"]}
    (source,) = find(rows, columns=columns, suffix=suffix)
    pictures = [["/a.png", "/aa.png"], ["/b.png", "/bb.png"], ["/c.png"]]
    assert [found[4:] for found in texts(source)] == pictures[: len(rows)]
    assert source.form.unread == []


def test_several_columns_are_for_pictures_alone(find):
    with pytest.raises(DataError, match="`columns` names several columns for `instruction` .q, r., but only pictures"):
        find([{"q": "a", "r": "b"}], columns={"instruction": ["q", "r"], "output": "r"})


def test_a_column_called_ignore(find):
    row = {"question": "a", "ignore": "b", "photo": "/a.png"}
    with pytest.raises(DataError, match="`columns` has `output: ignore`, .* but the data has a column `ignore` too"):
        find([row], columns={"output": "ignore"})
    (source,) = find([row | {"answer": "b"}], columns={"photo": "ignore"})
    assert source.form.unread == ["ignore", "photo"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image_ur": "q"}, "`image_ur` is not one of our columns. Did you mean `image_url`?"),
        ({"images_2": "q"}, "`images_2` is not one of our columns. Did you mean `image_url_2`?"),
        ({"pixels": "q"}, "`pixels` is not one of our columns. There are: instruction, output, image_url"),
        ({"instruction": "qq"}, "names `qq`, but no row has that column. Did you mean `q`?"),
        ({"output": "r.txt"}, "names `r.txt`, but `r` has no `txt` in it: it is dict"),
        ({"output": "q.text"}, "names `q.text`, but `q` has no `text` in it: it is str 'a'"),
        ({"photo": "ignore"}, "names `photo`, but no row has that column"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_mapping_to_nowhere(columns, reason, suffix, find):
    with pytest.raises(DataError, match=reason):
        find([{"q": "a", "r": {"text": "b"}}], columns=columns, suffix=suffix)


def test_a_mapping_counts_where_its_column_is(find):
    own, theirs = find([ONE | {"image_url": "/a.png"}], [ONE | {"pic": "/b.png"}], columns={"image_url": "pic"})
    assert texts(own) + texts(theirs) == [["a", "b", None, None, "/a.png"], ["a", "b", None, None, "/b.png"]]


def test_a_mapped_column_may_turn_up_late(find):
    rows = [ONE] * 150 + [ONE | {"more": {"pic": "/a.png"}}]
    (source,) = find(rows, columns={"image_url": "more.pic"})
    assert texts(source)[-1] == ["a", "b", None, None, "/a.png"] and texts(source)[0] == ["a", "b", None, None]


def test_a_column_to_ignore_may_turn_up_late(find):
    rows = [{"question": "1 + 1?", "answer": "2"}] * 101
    (source,) = find([*rows, rows[0] | {"photo": "me.png"}], columns={"photo": "ignore"})
    assert source.form.ignored == ("photo",)
    with pytest.raises(DataError, match="names `note.photo`, but no row has that column"):
        find([*rows, rows[0] | {"note": {"photo": "x"}}], columns={"note.photo": "ignore"})


def test_question_and_answer_by_a_mapping_keep_the_pictures_of_any_form(find):
    row = {"q": "Find AB.", "a": "3", "image": "d.png", "input": "AC is 2."}
    (source,) = find([row], columns={"instruction": "q", "output": "a"})
    assert set(source.form.read) == {"q", "a", "image", "input"}


def test_a_value_that_a_mapped_column_lacks_is_missing(find):
    (source,) = find([{"q": "a", "output": "b"}, {"instruction": "a", "output": "b"}], columns={"instruction": "q"})
    with pytest.raises(DataError, match="missing value: `q` is missing or null"):
        texts(source)


def test_both_sides_may_share_a_column(find):
    row = {name: value for name, value in PAIR.items() if name != "output_2"}
    (source,) = find([row], columns={"output_2": "output"})
    assert texts(source) == [["a", "b", "c", "b"]]
    (source,) = find([row, ONE | {"instruction_2": None}], columns={"output_2": "output"})
    assert texts(source) == [["a", "b", "c", "b"], ["a", "b", None, None]]


def test_a_mapping_of_half_a_side_is_an_error(find):
    with pytest.raises(DataError, match="`image_url_2` by `columns`, but that needs `instruction_2` and `output_2`"):
        find([ONE | {"pic": "/a.png"}], columns={"image_url_2": "pic"})


def test_parts_that_a_column_does_not_have(find):
    with pytest.raises(DataError, match="names `answer.t`, but `answer` has no `t` in it: it is str 'b'"):
        find([{"question": "a", "answer": "b"}], columns={"output": "answer.t"})


def test_an_answer_that_is_ignored_is_asked_for(find):
    with pytest.raises(DataError, match="Name the columns of the question and the answer with `columns: {output: …}`"):
        find([{"question": "a", "answer": "b"}], columns={"answer": "ignore"})
