"""The gap by generation in a run of two processes: under every engine it is that of the model that is saved."""

import json

import pytest

from puma_trl.evaluation.gap import load_pairs
from puma_trl.evaluation.gap_answers import answer_pairs, longest_reply
from puma_trl.evaluation.gap_summary import summarise_answers
from puma_trl.evaluation.local_model import Generator, load_for_generation
from puma_trl.evaluation.training_gap import LENGTHS, METRICS
from puma_trl.models.families import get_family


NAMES = METRICS + LENGTHS
pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_gap_of_two_processes(launch, workspace, engine):
    pairs = [json.loads(line) for line in (workspace / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    for pair in pairs[:2]:  # pairs all of which are trained on would be refused
        pair["instruction"] = f"Read this. {pair['instruction']}"
    held_out = workspace / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    # enough to learn that something "is" a number, and too little to learn which
    learning = {"learning_rate": 5e-3, "max_steps": 12, "optim": "adamw_torch"}
    run = launch(engine, gap_dataset_name=held_out, gap_eval_steps=12, **learning)
    (logs,) = [logs for logs in run.log if "eval_gap" in logs]
    model, processor = load_for_generation(str(run.output_dir))
    rows = load_pairs(str(held_out), None, None, processor, get_family(model.config))
    generator = Generator(model, processor, 2, longest_reply(rows, None))
    summary = summarise_answers(answer_pairs(generator, rows, "saved"))
    assert logs["step"] == 12
    assert {name: logs[f"eval_{name}"] for name in NAMES} == {name: summary[name] for name in NAMES}
    assert 0 < summary["agreement"]  # the replies say something
