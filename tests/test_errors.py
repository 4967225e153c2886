"""How a command ends: one line for errors of the user's, a traceback for others, and one process that speaks."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from puma_trl import entry
from puma_trl.entry import error_line
from puma_trl.errors import DataError, HubError, printable


TOKEN = "hf_" + "secretsecret" * 3
START = "import sys\nfrom puma_trl.entry import run_command\nfrom puma_trl.errors import DataError\n"


def run(code, **environment):
    """Runs a command whose body is given, in a process of its own."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment
    argv = [sys.executable, "-c", f"{START}def main():\n{body}run_command(main)\n"]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("code", "returned", "out", "err"),
    [
        ("print('done')", 0, "done\n", ""),
        ("return 3", 3, "", ""),
        ("print('begun')\nraise DataError('No rows.')", 2, "begun\n", "error: No rows.\n"),
        ("open('/no/such/file')", 2, "", "error: [Errno 2] No such file or directory: '/no/such/file'\n"),
        ("raise FloatingPointError('The loss is nan at a.jsonl:3.')", 2, "", "error: The loss is nan at a.jsonl:3.\n"),
        ("raise KeyboardInterrupt", 130, "", ""),
        ("sys.exit(4)", 4, "", ""),
    ],
)
def test_how_a_command_ends(code, returned, out, err):
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (returned, out, err)


def test_a_fault_of_the_code_is_told_with_its_place():
    done = run(f"raise RuntimeError('no {TOKEN}')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("RuntimeError: no <hidden>\n")


def test_the_line_is_the_last_one_behind_a_progress_bar():
    done = run("from tqdm import tqdm\nglobal bar\nbar = tqdm(total=3)\nbar.update()\nraise DataError('No rows.')")
    assert done.stderr.splitlines()[-1] == "error: No rows." and "1/3" in done.stderr


def test_logs_and_tracebacks_hide_secrets():
    code = (
        "import logging\nlog = logging.getLogger('x')\nlog.warning('got %s', '{token}')\nlog.warning('%d rows', 3)\n"
        "try:\n    raise ValueError('{token}')\nexcept ValueError:\n    raise TypeError('bad')"
    )
    done = run(code.replace("{token}", TOKEN))
    assert TOKEN not in done.stderr and "got <hidden>\n3 rows\n" in done.stderr and "TypeError: bad" in done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("No rows.", "No rows."),
        (
            "2 rows cannot be used. The first ones:\n  a:1: missing\n  a:2: missing\nRepair them.",
            "2 rows cannot be used. The first ones: a:1: missing; a:2: missing; Repair them.",
        ),
        (f"The Hub sent {TOKEN} back", "The Hub sent <hidden> back"),
        ("a row says \x1b[2J\x07 and \u202e", r"a row says \x1b[2J\x07 and \u202e"),
    ],
)
def test_line_of_an_error(text, line):
    assert error_line(DataError(text)) == f"error: {line}"


def test_an_error_without_words_is_named():
    assert error_line(HubError()) == "error: HubError"


def test_printable():
    assert printable("π ≈ 3,\u30001\n\t\x1b[31m\x9b\u200b\ud800") == "π ≈ 3,\u30001\n\\t\\x1b[31m\\x9b\\u200b\\ud800"


RANKS = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from puma_trl import entry
from puma_trl.errors import DataError
entry.PATIENCE = float(sys.argv[2])

def main():
    if os.environ["RANK"] == "0":
        time.sleep(1.0)
        if sys.argv[1] == "1":
            time.sleep(60)
    if os.environ["RANK"] == "1" and sys.argv[1] == "lost":
        raise RuntimeError("Connection closed by peer")
    raise DataError("No rows.")

entry.run_command(main)
"""


def launch(tmp_path, *arguments):
    (tmp_path / "ranks.py").write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "ranks.py"), *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    return done


@pytest.mark.distributed
@pytest.mark.parametrize("failing", ["both", "lost"])
def test_the_main_process_speaks(tmp_path, failing):
    """Others fail a little earlier, with the same error or for want of the main process, and say nothing."""
    done = launch(tmp_path, failing, "30")
    own = [line for line in done.stderr.splitlines() if line.startswith("error:") or "closed by peer" in line]
    assert own == ["error: No rows."]
    before = done.stderr.split("error: No rows.")[0]
    assert "Traceback" not in before and "exitcode  : 2" in done.stderr


@pytest.mark.distributed
def test_another_process_speaks_if_it_fails_alone(tmp_path):
    done = launch(tmp_path, "1", "1")
    assert "error: No rows.\n" in done.stderr


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("processes", "change", "message"),
    [
        (2, {"alpha_kl": 3}, "error: `alpha_kl` is 3, but it must be between 0 and 1."),
        (2, {"output_dir": "full"}, "error: `output_dir: full` is not empty"),
        (2, {}, "error: 1 of 2 rows of the train data cannot be used (1 no answer)."),
        (1, {}, "error: 1 of 2 rows of the train data cannot be used (1 no answer)."),
    ],
    ids=["recipe", "folder", "rows", "rows-one-process"],
)
def test_errors_of_a_launched_run(tmp_path, tiny_model, processor, processes, change, message):
    """One line, from the main process alone, and nothing of the script's after it."""
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    row = {"instruction": "Is it?", "output": "It is.", "instruction_2": "What?", "output_2": "It is."}
    rows = [row, row | {"output": " ", "output_2": " "}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "use_cpu": True, "mixed_precision": "no"}
    engine |= {"num_processes": processes, "distributed_type": "MULTI_GPU" if processes > 1 else "NO"}
    (tmp_path / "engine.yaml").write_text(json.dumps(engine))
    recipe = {"model_name_or_path": "model", "dataset_name": "pairs.jsonl", "output_dir": "out", "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"bf16": False, "report_to": "none"} | change))
    root = Path(__file__).parents[1]
    argv = ["-m", "accelerate.commands.launch", "--config_file", "engine.yaml", str(root / "puma_trl" / "run.py")]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, *argv, "recipe.yaml"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    before, line = done.stderr.split("error: ", 1)
    assert f"error: {line}".startswith(message), done.stderr
    assert "Traceback" not in before and "error: " not in line.split("\n", 1)[1]
    launcher = "failed (exitcode: 2) local_rank: 0" if processes > 1 else "returned non-zero exit status 2"
    assert launcher in line and "rank1" not in done.stderr
    # nor a word of other libraries
    assert not re.search("gemm_4bit|Setting accelerator|is deprecated", done.stdout + done.stderr)


def test_bars_are_for_terminals():
    code = "import datasets, transformers\n"
    code += "print(datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled())"
    bars = {"HF_HUB_DISABLE_PROGRESS_BARS": None, "HF_DATASETS_DISABLE_PROGRESS_BARS": None}
    environment = {name: value for name, value in os.environ.items() if name not in bars}
    body = f"import sys\n{{}}import puma_trl.entry\n{code}"
    for terminal, expected in (("", "True False"), ("sys.stderr.isatty = lambda: True\n", "False True")):
        argv = [sys.executable, "-c", body.format(terminal)]
        environment |= {"PYTHONPATH": str(Path(__file__).parents[1])}
        assert subprocess.run(argv, env=environment, capture_output=True, text=True).stdout.strip() == expected


def test_other_libraries_are_quiet():
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
    record = logging.makeLogRecord({"msg": "Setting accelerator to CPU. If you have GPU", "levelno": logging.WARNING})
    assert not logging.getLogger("DeepSpeed").filter(record)
    assert logging.getLogger("DeepSpeed").filter(logging.makeLogRecord({"msg": "Out of memory"}))
    with warnings.catch_warnings(record=True) as told:
        warnings.resetwarnings()
        entry._quieten()
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning)
        warnings.warn("`other` is deprecated.", FutureWarning)
    assert [str(each.message) for each in told] == ["`other` is deprecated."]
