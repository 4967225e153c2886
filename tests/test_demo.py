"""`make demo`, with few rows and steps: a page of its own words, for the original's networks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from puma_trl.errors import PumaError
from puma_trl.start import demo


ROOT = Path(__file__).parents[1]
NOISE = re.compile("warning|deprecated|it/s|examples/s|Loading|Writing|Failed to", re.IGNORECASE)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["math_puma_qwen2", "deepseek_vl_hybrid"])
def test_demo(tmp_path, family):
    out = tmp_path / "out"
    flags = {"output_dir": out, "family": family, "n": 40, "heldout": 6, "max_steps": 8, "logging_steps": 1}
    flags |= {"per_device_train_batch_size": 4}
    argv = [
        sys.executable,
        "-m",
        "puma_trl.start.demo",
        *(str(piece) for name, value in flags.items() for piece in (f"--{name}", value)),
    ]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) <= 60 and result.stderr == "" and not NOISE.search(result.stdout)
    for number, stage in enumerate(("text", "alignment on pairs (PUMA)", "instruction tuning"), 1):
        start = lines.index(f"Stage {number} of 3, {stage}")
        shown = [line.split(" · ")[0] for line in lines[start + 1 :][: demo.SHOWN]]
        assert shown == [f"  step {step}/8" for step in (2, 3, 4, 6, 7, 8)]
        assert f"log in {out}/logs/stage{number}.log" in lines[start + 1 + demo.SHOWN]
        log = json.loads((out / f"stage{number}" / "trainer_state.json").read_text())["log_history"]
        assert sum("loss" in logs for logs in log) == 8
    measured = json.loads((out / "gap.json").read_text())["models"]
    assert [model["pairs"] for model in measured] == [6] * 4
    table = lines[next(number for number, line in enumerate(lines) if "Modality gap" in line) :]
    assert all(any(model["label"] in line for line in table) for model in measured)
    assert lines[-1].startswith("Next: puma-trl ")


def test_a_command_that_fails_is_told_with_its_log(tmp_path):
    log = tmp_path / "logs" / "mini.log"
    with pytest.raises(PumaError, match=r"mini\.log, tells why"):
        list(demo.run_logged(["--no_such_flag"], log, "puma_trl.mini"))
    assert "--no_such_flag" in log.read_text()
