"""Forms are found by columns, and what is not read is listed, or refused where it would be missed."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from puma_trl.data.columns import PUBLISHED, find_form
from puma_trl.data.files import find_chunks, find_sources
from puma_trl.data.forms import find_forms
from puma_trl.data.lookalikes import find_picture
from puma_trl.data.readers import read_chunk
from puma_trl.data.rows import read_row
from puma_trl.errors import DataError

from .samples import ONE, PAIR, TURNS, texts


PNG = b"\x89PNG\r\n\x1a\n"

FORMS = {
    "published": (ONE | {"image_url": "/a.png"}, ["a", "b", None, None, "/a.png"]),
    "published pair": (PAIR | {"image_url_2": "/a.png"}, ["a", "b", "c", "b", "/a.png"]),
    "Alpaca": (ONE | {"input": "i", "system": "s", "history": [["q", "r"]]}, ["a\n\ni", "b", None, None]),
    "messages": ({"messages": TURNS, "images": ["/a.png"]}, ["a", "b", None, None, "/a.png"]),
    "messages, one image": ({"messages": TURNS, "image": "/a.png"}, ["a", "b", None, None, "/a.png"]),
    "messages, pair": (
        {"messages": TURNS, "messages_2": TURNS, "images_2": ["/a.png"]},
        ["a", "b", "a", "b", "/a.png"],
    ),
    "conversations": (
        {
            "conversations": [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}],
            "image": "/a.png",
        },
        ["<image>\na", "b", None, None, "/a.png"],
    ),
    "prompt": ({"prompt": "a", "completion": "b"}, ["a", "b", None, None]),
    "prompt of turns": (
        {"prompt": TURNS[:1], "completion": TURNS[1:], "images": ["/a.png"]},
        ["a", "b", None, None, "/a.png"],
    ),
    "question": ({"question": "a", "answer": "b", "image": "/a.png"}, ["a", "b", None, None, "/a.png"]),
    "problem": ({"problem": "a", "solution": "b"}, ["a", "b", None, None]),
    "query": ({"query": "a", "response": "b", "system_prompt": "s"}, ["a", "b", None, None]),
    "question, pair": (
        {"question": "a", "answer": "b", "question_2": "c", "answer_2": "b", "image_2": "/a.png"},
        ["a", "b", "c", "b", "/a.png"],
    ),
    "sides of two forms": (ONE | {"messages_2": TURNS, "image_2": "/a.png"}, ["a", "b", "a", "b", "/a.png"]),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_are_known_by_their_columns(name, suffix, find):
    row, expected = FORMS[name]
    (source,) = find([row | {"id": 7, "source": "x"}] * 2, suffix=suffix)
    assert texts(source) == [expected] * 2
    assert source.form.unread == ["id", "source"] and set(source.form.read) == set(row)


def test_each_file_has_its_own_form(find):
    sources = find([ONE], [{"question": "q", "answer": "r"}], [{"messages": TURNS}])
    assert [texts(source)[0][:2] for source in sources] == [["a", "b"], ["q", "r"], ["a", "b"]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"q": "a", "a": "b"}, "fits no form of rows. Its columns are: `q`, `a`. Needed are instruction .* output"),
        ({"Instruction": "a", " output": "b"}, "`columns: {instruction: Instruction, output: ' output'}`"),
        (
            {"instruction": "a", "instruction_2": "b"},
            "fits no form .* answer with `columns: {output: …}`",
        ),
        ({"subject": "a", "answer": "b"}, "with `columns: {instruction: …}`"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "with `columns: {completion: …}`"),
        ({"instruction_2": "a", "output_2": "b"}, "fits no form"),
        (
            {"problem": "a", "solution": "b", "answer": "c"},
            "several columns that may be `output`: `answer`, `solution`",
        ),
        (ONE | {"messages": TURNS}, "can be read in several ways"),
        (ONE | {"question": "a", "answer": "b"}, "can be read in several ways"),
        (PAIR | {"messages_2": TURNS}, "can be read in several ways"),
    ],
)
def test_columns_that_fit_no_form_or_several(row, reason, find):
    with pytest.raises(DataError, match=reason):
        find([row])


LOOKALIKES = [
    *("image", "images", "img", "picture", "pictures", "pic", "photo", "figure", "diagram", "image_path", "image_2"),
    *(
        "Image",
        "IMG_PATH",
        "imagePath",
        "decoded_image",
        "query_image",
        "image_url2",
        "imageurl_2",
        "image_urls",
        "图片",
    ),
    *("ＩＭＡＧＥ", "jpg", "video", "audio_path", "input", "Input", "history", "question", "problem", "query"),
    *("context", "hint", "choices", "options", "choice_1", "optionA", "tools", "prompt", "completion", "message"),
    *("Instruction", "instuction", "intsruction", "instruction_3", "instructions", " output", "outputs", "chosen"),
]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_columns_that_look_as_if_they_should_be_read_are_an_error(name, find):
    row = {"question": "a", "answer": "b"} if name in ("input", "history") else PAIR  # which reads these two
    with pytest.raises(DataError, match="has columns that are not read, but look as if they should be") as error:
        find([row | {name: "something"}])
    message = str(error.value)
    assert f"`{name}`" in message and "\n" not in message
    assert yaml.safe_load(message.rpartition("`columns: ")[2].removesuffix("`.")) == {name: "ignore"}
    (source,) = find([row | {name: "something"}], columns={name: "ignore"})
    assert source.form.unread == [name] and len(texts(source)) == 1
    (source,) = find([row | {name: value} for value in (None, "", [])])  # of no consequence while empty
    assert source.form.unread == [name] and len(texts(source)) == 3


HARMLESS = (
    "id pid source category kind level answer solution rationale subject question_id prompt_id image_id image_width "
    "image_caption has_image num_images image_hash answer_type question_type metadata url text license split score "
    "model language difficulty final_answer ground_truth output_type"
).split()


def test_other_columns_are_listed(find):
    (source,) = find([PAIR | dict.fromkeys(HARMLESS, "something")])
    assert source.form.unread == HARMLESS and texts(source) == [["a", "b", "c", "b"]]


@pytest.mark.parametrize(
    "value",
    [
        *("/p/a.png", "a.JPG", "b c.webp?raw=1", "https://host/a.jpeg", "data:image/png;base64,AAAA", "/9j/4AAQ"),
        *(["x", "a.png"], {"path": "a.png"}, {"src": {"file": "a.gif"}}, [{"url": "http://host/a.bmp"}]),
        *(PNG, {"bytes": PNG, "path": None}, [{"bytes": PNG}]),
    ],
)
def test_pictures_that_are_not_read_are_an_error_under_any_name(value, find):
    suffix = "parquet" if "PNG" in repr(value) else "jsonl"  # JSON has no bytes
    with pytest.raises(
        DataError, match="`blob` holds .*`columns: {image_url_2: blob[a-z.]*}`.*`columns: {blob: ignore}`"
    ):
        find([PAIR | {"blob": None}, PAIR | {"blob": value}], suffix=suffix)
    (source,) = find([PAIR | {"blob": value}], columns={"blob": "ignore"}, suffix=suffix)
    assert texts(source) == [["a", "b", "c", "b"]]


@pytest.mark.parametrize(
    "value", ["see a.png for\nmore", "word", "png", 7, ["a"], {"n": 1}, "x" * 2000 + ".png", None]
)
def test_what_is_no_picture(value):
    assert find_picture(value) is None


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_that_turn_up_late_are_found_row_by_row(suffix, find):
    late = [{"image": "here"}, {"blob": "/a.png"}, {"note": "n"}]
    rows = [PAIR] * 120 + [PAIR | more for more in late]
    if suffix == "parquet":
        rows = [dict.fromkeys(("blob", "note")) | row for row in rows if "image" not in row]
    (source,) = find(rows, suffix=suffix)
    problems, unread = [], []
    for chunk in find_chunks([source]):
        for _, raw in read_chunk(source, chunk):
            try:
                unread.append(read_row(raw, None, source.form)["unread"])
            except DataError as error:
                problems.append(str(error))
    assert problems[-1] == "unread column: `blob` is not read, but holds a picture ('/a.png')"
    if suffix == "jsonl":
        assert problems[0] == "unread column: `image` is not read, but has the name of pictures"
        assert unread == [None] * 120 + [["note"]]
    assert len(problems) == (2 if suffix == "jsonl" else 1)


def test_late_columns_of_a_form_are_read(find):
    rows = [ONE] * 120 + [ONE | {"image_url": "/a.png", "input": "i"}, PAIR | {"image_url_2": "/b.png"}]
    (source,) = find(rows)
    assert texts(source)[120:] == [["a\n\ni", "b", None, None, "/a.png"], ["a", "b", "c", "b", "/b.png"]]


@pytest.mark.parametrize(
    ("row", "lacking", "remedy"),
    [
        (ONE | {"instruction_2": "c"}, "`instruction_2` needs `output_2`", "{output_2: output}"),
        (ONE | {"image_url_2": "/a.png"}, "`image_url_2` needs `instruction_2` and `output_2`", "{instruction_2: "),
        (
            {"question": "a", "answer": "b", "image_2": "/a.png"},
            "`image_2` needs `question_2` and `answer_2`",
            "{instruction_2: question}",
        ),
    ],
)
def test_half_of_a_second_side_is_an_error(row, lacking, remedy, find):
    with pytest.raises(DataError) as error:
        find([row])
    assert lacking in str(error.value) and remedy in str(error.value)


def test_choices_in_columns_of_letters(find):
    with pytest.raises(DataError, match="`A` may belong to the question as a choice"):
        find([{"question": "a", "answer": "A", "A": "1", "B": "2"}])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n \n", "is empty. Pass a file with at least one row."),
        ("broken\n{\n", "No row of '.*' can be read. The first one: x.jsonl:1: broken JSON"),
        ("7\n[1]\n", "The first one: x.jsonl:1: it is int 7, not an object with columns"),
    ],
)
def test_files_without_a_row(text, reason, tmp_path):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=reason):
        find_forms(find_sources([str(tmp_path / "x.jsonl")], None, None, "train"))


@pytest.mark.parametrize("name", ["x.json", "x.csv", "x.parquet"])
def test_tables_and_lists_without_a_row(name, tmp_path):
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist([], schema=pa.schema([("instruction", "string")])), path)
    else:
        path.write_text("[ ]" if name.endswith("json") else "instruction,output\n")
    with pytest.raises(DataError, match=f"{name}' is empty. Pass a file with at least one row."):
        find_forms(find_sources([str(path)], None, None, "train"))


@pytest.mark.parametrize(
    ("header", "said"),
    [("a;b", "semicolons .* .'a;b'."), ("a\tb", "tabs"), ("a|b", "bars"), ("'a';'b'", "semicolons")],
)
def test_csv_with_other_separators_says_so(header, said, tmp_path):
    (tmp_path / "x.csv").write_text(f"{header}\n1, 2{header[1]}3, 4\n")
    with pytest.raises(DataError, match=f"x.csv' has {said}.*Save it with commas"):
        find_forms(find_sources([str(tmp_path / "x.csv")], None, None, "train"))


@pytest.mark.parametrize(
    ("encoding", "name", "text"),
    [
        ("gbk", "GBK", "这个角是多少度？"),
        ("cp1252", "Latin-1", "Où est l'élève, à l'école ?"),
        ("shift_jis", "Shift JIS", "この角度はいくつですか。"),
    ],
)
def test_csv_in_another_encoding_says_which(encoding, name, text, tmp_path):
    for line, content in ((1, f"{text},output\n"), (2, f"instruction,output\n{text},b\n")):
        (tmp_path / "x.csv").write_bytes(content.encode(encoding))
        with pytest.raises(DataError, match=f"x.csv' is not UTF-8 text on line {line}, but perhaps {name}.* as UTF-8"):
            find_forms(find_sources([str(tmp_path / "x.csv")], None, None, "train"))


def test_columns_of_csv_without_a_name_have_one(tmp_path):
    (tmp_path / "x.csv").write_text(",instruction,output,\n0,a,b,/p.png\n")
    sources = find_sources([str(tmp_path / "x.csv")], None, None, "train")
    with pytest.raises(DataError, match="`Unnamed: 3` holds a picture .*{image_url: 'Unnamed: 3'}"):
        find_forms(sources)
    (source,) = find_forms(sources, {"image_url": "Unnamed: 3"})
    assert texts(source) == [["a", "b", None, None, "/p.png"]] and source.form.unread == ["Unnamed: 0"]


def test_rows_that_are_broken_do_not_hide_the_form(tmp_path):
    (tmp_path / "x.jsonl").write_text("broken\n" * 200 + json.dumps(ONE))
    (source,) = find_forms(find_sources([str(tmp_path / "x.jsonl")], None, None, "train"))
    assert source.form.read == ["instruction", "output"]


def test_tables_are_read_without_columns_that_do_not_matter(find):
    (source,) = find([ONE | {"size": 1.5, "words": ["a"], "note": "n"}], suffix="parquet")
    ((_, row),) = [row for chunk in find_chunks([source]) for row in read_chunk(source, chunk)]
    assert list(row) == ["instruction", "output", "words", "note"]  # texts might turn out to name pictures


def test_categories_and_other_types_of_tables(tmp_path):
    columns = {"instruction": ["a"], "output": pa.array(["b"]).dictionary_encode(), "none": pa.nulls(1), "n": [1.5]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    (source,) = find_forms(find_sources([str(tmp_path / "x.parquet")], None, None, "train"))
    assert texts(source) == [["a", "b", None, None]] and source.form.passed == ("none", "n")
    pq.write_table(pa.table(columns | {"kind": pa.array(["a.png"]).dictionary_encode()}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="`kind` holds a picture"):
        find_forms(find_sources([str(tmp_path / "y.parquet")], None, None, "train"))


def test_the_default_form_is_the_published_one():
    assert PUBLISHED.read == ["image_url", "instruction", "output", "image_url_2", "instruction_2", "output_2"]
    assert repr(find_form(["output", "instruction"])) == repr(find_form(["output", "instruction"]))


@pytest.mark.parametrize(
    "text",
    [
        '{"question": ["a", "c"], "answer": ["b", "d"]}',
        '{"question": {"0": "a", "1": "c"}, "answer": {"0": "b", "1": "d"}}',
        '{\n"question": ["a", "c"],\n"answer": ["b", "d"]\n}',
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_files_that_are_written_by_columns(text, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_text(text if suffix == "json" else text.replace("\n", ""))
    with pytest.raises(DataError, match="is written by columns, not by rows.*`DataFrame.to_json"):
        find_forms(find_sources([str(path)], None, None, "train"))


@pytest.mark.parametrize("name", ["audio", "video_path", "speech"])
def test_sounds_and_films_are_left_out(name, find):
    with pytest.raises(DataError, match=f"`{name}` has the name of sounds or films.*Leave it out with") as error:
        find([{"question": "a", "answer": "b", name: "x.wav"}])
    assert "image_url" not in str(error.value) and "input" not in str(error.value)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_names_that_stand_twice_inside_of_a_row(suffix, tmp_path):
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    bad = good.replace('"content": "a"', '"content": "a", "content": "c"')
    path = tmp_path / f"a.{suffix}"
    path.write_text(f"{good}\n{bad}" if suffix == "jsonl" else f"[{good}, {bad}]")
    (source,) = find_forms(find_sources([str(path)], None, None, "train"))
    (chunk,) = find_chunks([source])
    (_, first), (_, second) = read_chunk(source, chunk)
    assert isinstance(first, dict)
    assert second.problem == "duplicate column: `content` stands more than once in the row"


def test_lines_that_end_in_cr_alone(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "a", "answer": "b"}\r' * 3)
    with pytest.raises(DataError, match="broken JSON: line 1: its lines end in CR alone; save the file with LF"):
        find_forms(find_sources([str(tmp_path / "a.jsonl")], None, None, "train"))
