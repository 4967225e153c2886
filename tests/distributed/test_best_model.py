"""`load_best_model_at_end`: what is saved in the end is the best checkpoint, under every engine."""

import json
from pathlib import Path

import pytest
from torch.testing import assert_close

from .conftest import Run


pytestmark = pytest.mark.distributed
FLAGS = {
    "eval_steps": 1,
    "eval_strategy": "steps",
    "greater_is_better": True,  # the first, so that the best is not the last
    "load_best_model_at_end": True,
    "metric_for_best_model": "entropy",
    "save_steps": 1,
    "save_strategy": "steps",
}


@pytest.mark.parametrize(("engine", "adapters"), [("ddp", True), ("zero3", False), ("fsdp2", False)])
def test_best_model(launch, workspace, engine, adapters):
    flags = FLAGS | {"eval_dataset_name": workspace / "eval.jsonl"}
    run = launch(engine, use_peft=adapters, **flags)
    state = json.loads((run.output_dir / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name != "checkpoint-4"
    weights, expected, last = run.weights, Weights(best).weights, Weights(run.output_dir / "checkpoint-4").weights
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(weights[name], value, rtol=0, atol=0, msg=name)
    assert any((last[name] != value).any() for name, value in expected.items())


class Weights(Run):
    def __init__(self, folder):
        self.output_dir = folder
