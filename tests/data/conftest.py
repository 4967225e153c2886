"""A cache for each test, and functions that write rows and find their forms or load them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.files import find_sources
from puma_trl.data.forms import find_forms
from puma_trl.data.load import load_data
from puma_trl.models.families.qwen import QWEN_VL

from .samples import write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def find(tmp_path):
    """Returns a function that writes rows to files and finds their forms."""

    def find(*files, columns=None, suffix="jsonl"):
        paths = [tmp_path / f"{number}.{suffix}" for number in range(len(files))]
        for path, rows in zip(paths, files, strict=True):
            if suffix == "parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            else:
                write(path, rows)
        return find_forms(find_sources([str(path) for path in paths], None, None, "train"), columns)

    return find


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        Image.new("RGB", (28 * (index + 1), 56), "red").save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def load(folder, processor):
    """Returns a function that loads data: fields of either argument class → `(DatasetDict, reports)`."""

    def load(*names, processor=processor, **fields):
        script_fields = PumaScriptArguments.__dataclass_fields__.keys() & fields.keys()
        script_args = PumaScriptArguments(
            dataset_name=[str(name) for name in names], **{name: fields.pop(name) for name in script_fields}
        )
        defaults = {"output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "max_length": None}
        return load_data(script_args, PumaKLConfig(**defaults | {"report_to": []} | fields), processor, QWEN_VL)

    return load
