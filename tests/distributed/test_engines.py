"""The same numbers under every engine as in one process."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from .conftest import PADDING_FREE, run_to_error


pytestmark = pytest.mark.distributed
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "zero1": "DeepSpeedEngine",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDPModule",
}
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}  # dropout differs by rank
QLORA = LORA | {"lambda_kl": 0.5, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
# In two of the four steps the student writes the answers
ON_POLICY = {"on_policy_share": 0.5, "max_completion_length": 5, "temperature": 2.0}
CASES = {
    "align": ON_POLICY | {"trainable_parts": "aligner,vision_tower_low,vision_tower_high", "lambda_kl": 0.5},
    "all-untied-head-checkpointing": {"lambda_kl": 0.5, "gradient_checkpointing": True},
    "all-frozen-teacher": {"lambda_kl": 0.5, "teacher": "frozen"},
    "all-ema-teacher": {"lambda_kl": 0.5, "teacher": "ema"},
    # of a text model, which reads the rows whose text-rich side has no picture
    "all-model-teacher": ON_POLICY | {"lambda_kl": 0.5, "teacher": "model", "bad_rows": "drop"},
    "lora-frozen-teacher": LORA | ON_POLICY | {"lambda_kl": 0.5, "teacher": "frozen", "gradient_checkpointing": True},
    "lora-whole-aligner": LORA | {"lambda_kl": 0.5, "lora_modules_to_save": "aligner"},
    "lora-ema-teacher": LORA | {"lambda_kl": 0.5, "teacher": "ema"},
    "qlora-model-teacher": QLORA | {"teacher": "model", "teacher_load_in_4bit": True, "bad_rows": "drop"},
    "sft": {"use_kl": False},
}

# The engines run these without padding, and are compared with one process with padding
WITHOUT_PADDING = {
    "all-untied-head-checkpointing",
    "all-frozen-teacher",
    "all-ema-teacher",
    "all-model-teacher",
    "lora-frozen-teacher",
    "lora-ema-teacher",
    "sft",
}

REFUSED = {  # engine, case → the reason
    ("zero3", "all-ema-teacher"): "checkpoints under ZeRO-3 and FSDP do not hold",
    ("fsdp2", "all-ema-teacher"): "checkpoints under ZeRO-3 and FSDP do not hold",
    ("zero3", "qlora-model-teacher"): "`teacher_load_in_4bit` does not go with ZeRO-3",
}
ENGINES = ("ddp", "zero2", "zero3", "fsdp2")


def assert_same(run, reference):
    assert run.losses == pytest.approx(reference.losses, abs=1e-5)
    assert run.grad_norms == pytest.approx(reference.grad_norms, rel=1e-4)
    sampled = {key: answer for facts in run.facts for key, answer in facts["sampled"].items()}
    # besides, rows that fill the last batch of an epoch, which do not count
    assert sampled.items() >= reference.facts[0]["sampled"].items()
    names = [name for name in reference.log[0] | reference.log[1] if name.startswith(("on_policy/", "completions/"))]
    for logs, expected in zip(run.log, reference.log, strict=False):
        expected = {name: expected[name] for name in names if name in expected}
        assert {name: logs[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert run.weights.keys() == reference.weights.keys()
    for name, value in reference.weights.items():
        assert_close(run.weights[name], value, rtol=0, atol=1e-5, msg=name)


def assert_engine(run, engine):
    """The engine that was asked for is the one that ran, on two processes, with parameters really divided."""
    assert [facts["world_size"] for facts in run.facts] == [2, 2]
    assert [facts["wrapper"] for facts in run.facts] == [WRAPPERS[engine]] * 2
    assert run.facts[0]["device"] == "cpu"
    assert run.facts[0]["ds_status"] == ("NOT_AVAILABLE" if engine == "zero3" else None)


def assert_teacher(run, engine, options):
    """A second model is sharded where the engine shards parameters, but not in 4 bits."""
    shares = [facts["teacher_share"] for facts in run.facts]
    teacher = options.get("teacher", "live")
    if teacher == "live" or (options.get("use_peft") and teacher != "model"):
        assert shares == [None, None]
    elif engine in ("zero3", "fsdp2") and not options.get("teacher_load_in_4bit"):
        assert shares == pytest.approx([0.5, 0.5], abs=0.02)
        layers = 4 if teacher == "frozen" else 2  # the copy has two of the language model and two of the tower
        assert [facts["teacher_units"] for facts in run.facts] == [1 + layers if engine == "fsdp2" else 0] * 2
    else:
        assert shares == [1.0, 1.0]


@pytest.fixture(scope="module")
def reference(launch, workspace):
    """Returns a function that gives the one-process run of a case."""
    return lambda case: launch("single", **flags(case, workspace))


def flags(case, workspace):
    teacher = {"teacher_model_name_or_path": workspace / "text"} if CASES[case].get("teacher") == "model" else {}
    return CASES[case] | teacher | {"eval_dataset_name": workspace / "eval.jsonl"}


@pytest.mark.parametrize(
    ("engine", "case"), [(engine, case) for engine in ENGINES for case in CASES if (engine, case) not in REFUSED]
)
def test_engine_equals_one_process(launch, workspace, reference, engine, case):
    """Image-less rows on one rank only, and an uneven last batch, are in the data of every case."""
    run = launch(engine, **flags(case, workspace), **(PADDING_FREE if case in WITHOUT_PADDING else {}))
    assert_engine(run, engine)
    assert_same(run, reference(case))
    assert_teacher(run, engine, CASES[case])
    if CASES[case].get("use_kl", True):
        expected = reference(case).facts[0]["eval"]["eval_loss"]
        assert [facts["eval"]["eval_loss"] for facts in run.facts] == pytest.approx([expected] * 2, abs=1e-5)


@pytest.mark.parametrize(("engine", "case"), REFUSED)
def test_refused_with_the_reason(command, start, workspace, engine, case):
    argv, output_dir = command(engine, **flags(case, workspace))
    run_to_error(argv, output_dir.parent / "log", start, REFUSED[engine, case])


def test_zero1_equals_one_process(launch, workspace, reference):
    run = launch("zero1", **flags("align", workspace))
    assert_engine(run, "zero1")
    assert_same(run, reference("align"))


def test_the_untied_head_of_fsdp2_needs_the_fix(launch, workspace, reference):
    """What the step reads the head with is what makes FSDP2 right: without it the same run goes astray."""
    broken = launch("fsdp2", probe_flags=["--without_head_fix"], **flags("sft", workspace))
    assert_engine(broken, "fsdp2")
    difference = (broken.weights["lm_head.weight"] - reference("sft").weights["lm_head.weight"]).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_a_rank_without_answer_tokens(launch, workspace, engine):
    """The second rank's only row of each step is the filling of an uneven batch, whose answers do not count."""
    rows = (workspace / "pairs.jsonl").read_text().splitlines()[:1]
    data = workspace / "one.jsonl"
    data.write_text("\n".join(rows))
    options = {"dataset_name": data, "per_device_train_batch_size": 1, "lambda_kl": 0.5}
    run = launch(engine, **options)
    assert_engine(run, engine)
    assert_same(run, launch("single", **options))


def test_ddp_with_accumulation_equals_one_process(launch):
    reference = launch("single", max_steps=3)
    run = launch("ddp", per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=3)
    assert_engine(run, "ddp")
    for name, value in reference.weights.items():
        assert_close(run.weights[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def text_options(workspace):
    return {"use_kl": False, "trainable_parts": "language_model", "dataset_name": workspace / "text.jsonl"}


@pytest.mark.parametrize("engine", ENGINES)
def test_text_only_rows_with_a_frozen_vision_tower(launch, text_options, engine):
    """Stage 1 of a vision-language model."""
    run = launch(engine, **text_options)
    assert_engine(run, engine)
    assert_same(run, launch("single", **text_options))


def test_adapters_beside_4_bit_weights_are_fp32_under_fsdp2(launch):
    """In half precision accelerate makes no fp32 copies there; small steps would be rounded away."""
    options = QLORA | {"bf16": True, "dtype": "bfloat16", "lora_modules_to_save": "aligner"}
    run = launch("fsdp2", **options, learning_rate=1e-6, max_steps=2)
    assert_engine(run, "fsdp2")
    assert {value.dtype for value in run.weights.values()} == {torch.float32}
    moved = [value for name, value in run.weights.items() if "lora_B" in name and value.abs().max() > 0]
    assert moved and max(value.abs().max() for value in moved) < 1e-3


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_saved_names_are_native(launch, workspace, engine):
    run = launch(engine, max_steps=1)
    saved = load_file(run.output_dir / "model.safetensors")
    expected = load_file(workspace / "model" / "model.safetensors")
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(value.dtype == torch.float32 for value in saved.values())
    assert json.loads((run.output_dir / "config.json").read_text())["model_type"] == "qwen2_vl"
