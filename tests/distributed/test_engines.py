"""The same numbers under every engine as in one process."""

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close


pytestmark = pytest.mark.distributed
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDPModule",
}
ALIGN = {"trainable_parts": "aligner,vision_tower_low,vision_tower_high", "lambda_kl": 0.5}
CASES = {
    "align": ALIGN,
    "all-untied-head": {"lambda_kl": 0.5, "gradient_checkpointing": True},
    "frozen-teacher": {"lambda_kl": 0.5, "teacher": "frozen"},
    "sft": {"use_kl": False},
}


def assert_same(run, reference):
    assert run.losses == pytest.approx(reference.losses, abs=1e-5)
    assert run.grad_norms == pytest.approx(reference.grad_norms, rel=1e-4)
    for name, value in reference.weights.items():
        assert_close(run.weights[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_engines_equal_one_process(launch, workspace, case):
    """Image-less rows on one rank only, and an uneven last batch, are in the data of every case."""
    flags = CASES[case] | {"eval_dataset_name": workspace / "pairs.jsonl"}
    reference = launch("single", **flags)
    for engine, wrapper in WRAPPERS.items():
        run = launch(engine, **flags)
        assert [facts["world_size"] for facts in run.facts] == [2, 2], engine
        assert run.facts[0]["wrapper"] == wrapper
        assert run.facts[0]["device"] == "cpu"
        if engine == "zero3":
            assert run.facts[0]["ds_status"] == "NOT_AVAILABLE"
        assert_same(run, reference)
        if flags.get("use_kl", True):
            assert run.facts[0]["eval"]["eval_loss"] == pytest.approx(
                reference.facts[0]["eval"]["eval_loss"], abs=1e-5
            )


def test_ddp_with_accumulation_equals_one_process(launch):
    reference = launch("single", max_steps=3)
    run = launch("ddp", per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=3)
    assert [facts["world_size"] for facts in run.facts] == [2, 2]
    for name, value in reference.weights.items():
        assert_close(run.weights[name], value, rtol=0, atol=1e-6, msg=name)


def test_text_only_rows_with_a_frozen_vision_tower_under_ddp(launch, workspace):
    flags = {"use_kl": False, "trainable_parts": "language_model", "dataset_name": workspace / "text.jsonl"}
    assert_same(launch("ddp", **flags), launch("single", **flags))


def test_saved_names_are_native(launch, workspace):
    run = launch("zero3", max_steps=1)
    assert set(run.saved) == set(load_file(workspace / "model" / "model.safetensors"))
