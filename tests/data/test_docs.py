"""The page on data: every row in it is read, or refused, as it says."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.load import load_data
from puma_trl.errors import DataError
from puma_trl.models.families.qwen import QWEN_VL


PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCK = re.compile(
    r"<!-- (form|unlabelled|refused|bad row|columns of): (.+?) -->\n```(?:json|yaml)\n(.+?)\n```", re.DOTALL
)
BLOCKS = {(kind, name): text for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8"))}


@pytest.fixture
def load(tmp_path, processor):
    """Returns a function that reads a row of the page, as pairs or as single sides."""
    Image.new("RGB", (56, 56), "red").save(tmp_path / "triangle.png")

    def load(text, columns=None, **settings):
        (tmp_path / "rows.jsonl").write_text(text + "\n", encoding="utf-8")
        pairs = any(name.endswith("_2") for name in json.loads(text))
        options = {"use_kl": pairs, "allow_text_only": True, "columns": columns, "max_length": None} | settings
        args = PumaKLConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[], **options)
        return load_data(PumaScriptArguments(dataset_name=[str(tmp_path / "rows.jsonl")]), args, processor, QWEN_VL)

    return load


def test_no_block_is_left_out():
    assert len(BLOCKS) == PAGE.read_text(encoding="utf-8").count("```") // 2 >= 20


@pytest.mark.parametrize("name", [name for kind, name in BLOCKS if kind == "form"])
def test_every_form_is_read(name, load):
    mapping = BLOCKS.get(("columns of", name))
    text = BLOCKS["form", name]
    dataset, reports = load(text, None if mapping is None else yaml.safe_load(mapping)["columns"])
    (row,) = dataset["train"]
    texts = json.dumps(row, default=repr, ensure_ascii=False)
    for said in words(json.loads(text), reports["train"].unread):
        assert json.dumps(said, ensure_ascii=False)[1:-1] in texts
    assert sum(reports["train"].images.values()) == text.count("triangle.png")
    assert ("instruction_2" in row) == ("_2" in text)


def words(value, unread=()):
    """Yields all that a row says, but names of roles and types and what is said to be left out."""
    if isinstance(value, dict):
        passed = (*unread, "role", "from", "type", "unit")
        for name, part in value.items():
            if name not in passed:
                yield from words(part)
    elif isinstance(value, list):
        for part in value:
            yield from words(part)
    elif value is not None:
        yield value


@pytest.mark.parametrize("name", [name for kind, name in BLOCKS if kind == "unlabelled"])
def test_pairs_without_answers(name, load):
    text = BLOCKS["unlabelled", name]
    dataset, reports = load(text, on_policy_share=1)
    (row,) = dataset["train"]
    assert (row["output"], row["output_2"], reports["train"].rows_without_answer) == ("", "", 1)
    for said in words(json.loads(text)):
        assert said in json.dumps(row, default=repr, ensure_ascii=False)
    with pytest.raises(DataError, match="`on_policy_share"):
        load(text)


@pytest.mark.parametrize("name", [name for kind, name in BLOCKS if kind in ("refused", "bad row")])
def test_what_is_refused(name, load):
    kind = "refused" if ("refused", name) in BLOCKS else "bad row"
    with pytest.raises(DataError) as error:
        load(BLOCKS[kind, name])
    if kind == "bad row":
        assert f" rows.jsonl:1: {name}: " in str(error.value) and "`bad_rows: drop`" in str(error.value)
    else:
        assert "`columns: {" in str(error.value)
