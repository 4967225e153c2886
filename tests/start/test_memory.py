"""The memory plan: of every family, and as the headers of the first recipes tell it; and dry runs of those."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig
from trl import ModelConfig

from puma_trl import run
from puma_trl.config import PumaKLConfig
from puma_trl.mini import write_data
from puma_trl.recipe import parse_recipe
from puma_trl.start.memory import (
    NF4,
    count,
    count_teacher,
    empty_model,
    make_setting,
    patches_per_token,
    plan_setting,
)

from ..models.family_models import MINI, OTHERS, build_family


ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "benchmarks" / "configs").glob("*.json"))
# Folder of recipes → configuration, bytes of a number in the forward, GB of the machine, and a tiny model of the kind
FIRST = {
    "smolvlm_256m": ("SmolVLM-256M", 4, 16, "idefics3"),
    "qwen2_5_vl_3b_24gb": ("Qwen2.5-VL-3B", 2, 24, "qwen2_5_vl"),
}
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--tf32", "false"]
STAGES = [(folder, stage) for folder in FIRST for stage in (1, 2, 3)]


def read_config(name):
    return AutoConfig.for_model(**json.loads((ROOT / "benchmarks" / "configs" / f"{name}.json").read_text())["config"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_have_the_published_number_of_parameters(path):
    assert empty_model(read_config(path.stem)).num_parameters() == json.loads(path.read_text())["num_parameters"]


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_every_family_is_planned(name):
    config = build_family(name)[1].config
    args = PumaKLConfig("x", use_cpu=True, bf16=False, trainable_parts="all", max_length=128)
    counts = count(empty_model(config), ModelConfig("x"), ["all"])
    assert counts.frozen == 0 and counts.trained == empty_model(config).num_parameters()
    setting = make_setting(config, args, width=4)
    assert setting.patches == 64 * patches_per_token(config)
    plan = plan_setting(config, counts, setting, is_adapted=False)
    assert plan.parameters == plan.gradients == 4 * counts.trained and plan.optimizer == 8 * counts.trained
    kept = plan_setting(config, counts, replace(setting, checkpointing=False), is_adapted=False)
    assert 0 < plan.activations < kept.activations
    text = make_setting(config, replace_parts(args, ["language_model"]), width=4)
    assert text.patches == 0


def replace_parts(args, parts):
    args.trainable_parts = parts
    return args


def test_frozen_weights_in_fp32_under_bf16():
    """Full fine-tuning on one GPU: weights are fp32, and autocast keeps its casts of those that train."""
    config = read_config("SmolVLM-256M")
    counts = count(empty_model(config), ModelConfig("x"), ["aligner"])
    setting = make_setting(config, PumaKLConfig("x", use_cpu=True, bf16=False, trainable_parts="aligner"))
    plans = [plan_setting(config, counts, replace(setting, stored=stored), False) for stored in (2, 4)]
    assert plans[1].parameters - plans[0].parameters == 2 * counts.frozen
    assert plans[1].other - plans[0].other == 2 * counts.trained


def test_a_second_model_that_teaches():
    """Whole on every process, sharded under ZeRO-3 unless it is in 4 bits; none where the model teaches itself."""
    config, other = read_config("SmolVLM-256M"), read_config("Qwen2-VL-2B")
    counts = count(empty_model(config), ModelConfig("x"), ["aligner"])
    sizes = [empty_model(each).num_parameters() for each in (config, other)]

    def parameters(zero=0, is_adapted=False, stored=None, **values):
        if values.get("teacher") == "model":
            values |= {"teacher_model_name_or_path": "x"}
        args = PumaKLConfig("x", use_cpu=True, bf16=False, trainable_parts="aligner", **values)
        teacher = count_teacher(args, counts, is_adapted, other)
        setting = make_setting(config, args, zero=zero, processes=8, stored=stored, teacher=teacher)
        return plan_setting(config, counts, setting, is_adapted).parameters

    assert parameters(2, teacher="frozen") == 2 * parameters(2) == 2 * 2 * sizes[0]
    assert parameters(3, teacher="frozen") == 2 * parameters(3) == 2 * 2 * sizes[0] / 8
    assert parameters(0, teacher="ema") == 2 * parameters(0)
    assert parameters(0, True, teacher="frozen") == parameters(0, True, teacher="ema") == parameters(0)
    assert parameters(2, use_kl=False) == parameters(2)
    for adapted in (False, True):
        assert parameters(2, adapted, teacher="model") == parameters(2) + 2 * sizes[1]
        assert parameters(3, adapted, teacher="model") == parameters(3) + 2 * sizes[1] / 8
    half = {"teacher": "model", "teacher_model_init_kwargs": {"dtype": "bfloat16"}}
    assert parameters(0, stored=4, **half) == parameters(0, stored=4) + 2 * sizes[1]
    assert parameters(0, stored=4, teacher="model") == parameters(0, stored=4) + 4 * sizes[1]
    in_4bit = parameters(2, teacher="model", teacher_load_in_4bit=True) - parameters(2)
    head, tower = 2 * other.text_config.vocab_size * other.text_config.hidden_size, 2 * 0.7e9
    assert NF4 * sizes[1] < in_4bit < NF4 * sizes[1] + head + tower < 2 * sizes[1]


@pytest.mark.parametrize(("folder", "stage"), STAGES)
def test_headers_tell_the_plan(folder, stage):
    name, width, room, _ = FIRST[folder]
    path = ROOT / "recipes" / folder / f"stage{stage}.yaml"
    _, args, model_args, _ = parse_recipe([str(path), *ON_CPU])
    config = read_config(name)
    counts = count(empty_model(config), model_args, args.trainable_parts)
    size = plan_setting(config, counts, make_setting(config, args, width=width), model_args.use_peft).total / 1e9
    told = re.search(r"# Memory plan: ([\d.]+) GB of (\d+) GB. Not yet run at full size.", path.read_text())
    assert told.groups() == (f"{size:.1f}", str(room)) and size < 0.95 * room
    assert (
        json.loads((ROOT / "benchmarks" / "configs" / f"{name}.json").read_text())["source"]
        .split("/blob")[0]
        .endswith("Instruct")
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, num_rows=4, num_heldout=1, seed=0, num_proc=1)
    return folder


@pytest.mark.parametrize(("folder", "stage"), STAGES)
def test_first_recipes_pass_a_dry_run(folder, stage, data, tmp_path, capsys):
    """On a tiny model of the same classes, whose tiles are small."""
    processor, model = build_family(FIRST[folder][3])
    for each in (processor, model):
        each.save_pretrained(tmp_path / "model")
    argv = [str(ROOT / "recipes" / folder / f"stage{stage}.yaml"), *ON_CPU, "--dtype", "float32", "--dry_run", "true"]
    argv += ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(data / f"stage{stage}.jsonl")]
    argv += ["--output_dir", str(tmp_path / "out"), "--dataset_num_proc", "1"]
    if folder == "smolvlm_256m" and stage > 1:
        argv += ["--max_pixels", "3136"]
    run.main(argv)
    table = capsys.readouterr().out
    assert "4 of 4 (none dropped)" in table and "Trains in all" in table
