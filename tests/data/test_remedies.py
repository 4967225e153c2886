"""Remedies can be used as they stand, and both sides of pairs get the same conversation."""

import pytest
import yaml

from puma_trl.data.files import find_chunks
from puma_trl.data.readers import read_chunk
from puma_trl.data.rows import read_row
from puma_trl.errors import DataError

from .samples import ONE, PAIR, texts


@pytest.mark.parametrize(
    "name", ["picture, main", "fig: a", "image #1", "no", "null", "1", " pic ", "{img}", "'", "图片", "a.b"]
)
def test_names_are_quoted_as_yaml_needs(name, find):
    with pytest.raises(DataError, match="are not read, but look") as error:
        find([PAIR | {name: "/a.png"}])
    first, second = (
        yaml.safe_load(part.partition("}`")[0] + "}") for part in str(error.value).split("`columns: ")[1:]
    )
    assert (first, second) == ({"image_url_2": name}, {name: "ignore"})
    for columns in (first, second):
        find([PAIR | {name: "/a.png"}], columns=columns)


def test_a_picture_inside_of_a_column_has_a_dotted_name(find):
    row = PAIR | {"metadata": {"id": 7, "more": {"image": "/a.png"}}}
    with pytest.raises(DataError, match="{image_url_2: metadata.more.image}"):
        find([PAIR | {"metadata": {}}, row])
    (source,) = find([row], columns={"image_url_2": "metadata.more.image"})
    assert texts(source) == [["a", "b", "c", "b", "/a.png"]]


HISTORY = [["q", "r"]]


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ({"system": "s"}, "{system_2: system}"),
        ({"system_2": "s"}, "{system: system_2}"),
        ({"system_prompt": "s"}, "{system_2: system_prompt}"),
        ({"history": HISTORY}, "{history_2: history}"),
    ],
)
def test_what_one_side_alone_reads_before_the_question_is_an_error(more, remedy, find):
    (name,) = more
    with pytest.raises(DataError, match=f"has `{name}` for one side .* other conversations.*`columns: {remedy}`"):
        find([PAIR, PAIR | more])
    find([PAIR | dict.fromkeys(more)])
    (source,) = find([PAIR] * 100)
    with pytest.raises(DataError, match=f"unread column: `{name}` is given for one side alone"):
        read_row(PAIR | more, None, source.form)
    if not name.endswith("_2"):
        find([ONE | more, PAIR | {f"{name}_2": None}])
    (source,) = find([PAIR | more], columns=yaml.safe_load(remedy))
    (chunk,) = find_chunks([source])
    ((_, raw),) = read_chunk(source, chunk)
    row = read_row(raw, None, source.form)
    assert row["history"] == row["history_2"] != []
    (source,) = find([PAIR | more], columns={name: "ignore"})
    assert texts(source) == [["a", "b", "c", "b"]]
