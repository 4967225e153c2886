"""The Slurm script, with stand-ins for Slurm's commands and the launcher: who gets the signal, when it requeues."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[1] / "recipes" / "slurm" / "train.sbatch"
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then echo node0; else echo "$@" >> requeued; fi',
    # starts the step's command here, past the options
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; echo $$ > step; SLURM_NODEID=0 exec "$@"',
    "scancel": "kill -USR1 $(cat step)",
    # a launcher with one training process, which saves when it gets the signal and ends with $RANK_EXIT
    "accelerate": """{python} -c "
import os, signal, sys, time
def stop(*_):
    open('saved', 'w').close()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open('training', 'w').write(' '.join(sys.argv[1:]))
for _ in range(int(os.environ['STEPS'])):
    time.sleep(0.05)
sys.exit(int(os.environ['RANK_EXIT']))
" "$@"
exit $?""",
}


@pytest.fixture
def job(tmp_path):
    """Returns a function that starts the script in a folder of its own and waits until training has begun."""
    for name, code in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/bash\n" + code.replace("{python}", sys.executable))
        path.chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "node0", "NNODES": "1", "CPUS_PER_TASK": "1", "SUBMIT_DIR": str(tmp_path)}

    def start(steps=1200, rank_exit=0, **variables):
        environment = os.environ | variables | {f"SLURM_{name}": value for name, value in slurm.items()}
        environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "STEPS": str(steps)}
        environment["RANK_EXIT"] = str(rank_exit)
        argv = ["bash", str(SCRIPT), "recipes/stage2.yaml", "--lambda_kl", "0.5"]
        process = subprocess.Popen(argv, cwd=tmp_path, env=environment)
        deadline = time.monotonic() + 30
        while not (tmp_path / "training").exists() or not (tmp_path / "training").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return process

    return start


@pytest.mark.parametrize("target", ["batch script", "step"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_saves_and_requeues(job, tmp_path, target, number):
    process = job()
    os.kill(process.pid if target == "batch script" else int((tmp_path / "step").read_text()), number)
    assert process.wait(30) == 0
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert not list(tmp_path.glob(".stopped*"))
    assert (
        (tmp_path / "training")
        .read_text()
        .endswith("puma_trl/run.py recipes/stage2.yaml --lambda_kl 0.5 --resume_from_checkpoint true")
    )


@pytest.mark.parametrize("rank_exit", [0, 3])
def test_a_run_that_ends_by_itself_is_not_requeued(job, tmp_path, rank_exit):
    assert job(steps=1, rank_exit=rank_exit).wait(30) == rank_exit
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("active", "used"), [("", True), ("somewhere", False)])
def test_the_environment_of_make_install_is_used_unless_another_is_active(job, tmp_path, active, used):
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "accelerate").write_text(f'#!/bin/bash\ntouch used\nexec {tmp_path}/bin/accelerate "$@"')
    (folder / "accelerate").chmod(0o755)
    assert job(steps=1, VIRTUAL_ENV=active, CONDA_PREFIX="").wait(30) == 0
    assert (tmp_path / "used").exists() == used
