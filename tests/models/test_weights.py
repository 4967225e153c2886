"""The files of a model folder, before anything is loaded: torn JSON, weights missing, pickled, cut or elsewhere."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.errors import ModelError
from puma_trl.models.families import get_family
from puma_trl.models.load import load_config, load_model
from puma_trl.models.weights import JSON_FILES, check_folder, convert_command


@pytest.fixture
def folder(tiny_model, processor, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    return tmp_path / "shards"


def test_whole_folders_pass(folder, shards):
    check_folder(folder)
    check_folder(shards)
    check_folder("me/model")  # of the Hub
    assert len(list(shards.glob("*.safetensors"))) > 2


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "qwen2_', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON.*utf-8"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "is not a JSON object but a list"),
    ],
    ids=["torn", "empty", "bytes", "deep", "list"],
)
def test_torn_json_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"/{name} {message}"):
        check_folder(folder)


def test_a_fifo_does_not_hang(folder):
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")
    with pytest.raises(ModelError, match="generation_config.json is not a regular file"):
        check_folder(folder)


def test_the_run_says_so_before_it_reads_data(folder, tmp_path):
    (folder / "config.json").write_text("{")
    args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True)
    with pytest.raises(ModelError, match="config.json is not valid JSON"):
        load_config(ModelConfig(str(folder)), args)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match="No usable weights.*neither model.safetensors nor model.safetensors.index.json"
    ):
        check_folder(folder)


def test_cut_weights(folder, shards):
    for path in (folder / "model.safetensors", sorted(shards.glob("*.safetensors"))[1]):
        with path.open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(ModelError, match=f"{path} cannot be read.*holds 5,000 bytes and is truncated"):
            check_folder(path.parent)


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_are_refused_with_a_remedy_that_works(folder, tmp_path, sharded):
    weights = load_file(folder / "model.safetensors")
    names = list(weights)
    pickles = {"pytorch_model.bin": names}
    if sharded:
        pickles = {f"pytorch_model-0000{i + 1}-of-00002.bin": part for i, part in enumerate((names[:9], names[9:]))}
        (folder / "pytorch_model.bin.index.json").write_text("{}")
    for file, part in pickles.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    check_folder(folder)  # which are not read where there are safetensors
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has only pickled weights.*unpickling a file can run code") as error:
        check_folder(folder)
    command = convert_command(folder)
    assert f"`{command}`" in str(error.value)
    subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], cwd=tmp_path, check=True)
    check_folder(folder)
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == weights.keys() and all(torch.equal(saved[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/model.safetensors", "a/../../secret.safetensors"])
def test_an_index_leads_nowhere_else(shards, name):
    (shards.parent / "secret.safetensors").touch()
    index = shards / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"index.json names '{name}', which lies outside of its folder"):
        check_folder(shards)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_map": {}}, "has no `weight_map`"),
        ({"weight_map": {"a": 1}}, "has no `weight_map`"),
        ({"metadata": None}, "has no `metadata`"),
        ({"weight_map": {"a": "model-00009.safetensors"}}, "lacks 1 of the 1 weight files.*model-00009.safetensors"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_damaged_index(shards, change, message):
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        check_folder(shards)


def test_loading_reads_no_pickle(folder, tmp_path, monkeypatch):
    """Of the Hub either, whose files are not there to be judged before."""
    args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True)
    model_args = ModelConfig(str(folder))
    config = load_config(model_args, args)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="No usable weights"):
        load_model(model_args, args, config, get_family(config))
