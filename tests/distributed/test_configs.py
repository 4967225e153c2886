"""Every file of accelerate_configs launches the run script, and trains as one process does."""

import pytest

from .conftest import ROOT, TIMEOUT, Run, start_alone, stop
from .test_engines import assert_same


pytestmark = pytest.mark.distributed
CONFIGS = {  # file → wrapper, processes
    "single_gpu.yaml": (None, 1),
    "ddp.yaml": ("DistributedDataParallel", 2),
    "zero2_8xa100.yaml": ("DeepSpeedEngine", 2),
    "zero3_8xa100.yaml": ("DeepSpeedEngine", 2),
    "zero3_offload.yaml": ("DeepSpeedEngine", 2),
    "fsdp2.yaml": ("FSDPModule", 2),
}
# with the default epsilon, steps of Adam are signs of gradients, which rounding turns around
FLAGS = {"lambda_kl": 0.5, "optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-3}


@pytest.fixture(scope="module")
def flags(workspace):
    return FLAGS | {"model_name_or_path": workspace / "wide"}


@pytest.fixture(scope="module")
def on_a_cpu(launch, flags):
    return launch("cpu.yaml", per_device_train_batch_size=4, **flags)


def test_all_files_are_here():
    files = {path.name for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    assert files == {*CONFIGS, "cpu.yaml", "zero3_multinode.yaml"}


@pytest.mark.parametrize("config", CONFIGS)
def test_config(launch, flags, on_a_cpu, config):
    wrapper, num_processes = CONFIGS[config]
    launch_flags = ["--num_processes", str(num_processes)]
    run = launch(config, launch_flags=launch_flags, per_device_train_batch_size=4 // num_processes, **flags)
    assert [facts["world_size"] for facts in run.facts] == [num_processes] * num_processes
    assert wrapper is None or {facts["wrapper"] for facts in run.facts} == {wrapper}
    # large enough to be sharded between its uses
    assert run.facts[0]["ds_persist"] == (False if config.startswith("zero3") else None)
    assert_same(run, on_a_cpu)


def test_two_machines(command, launch, flags):
    """Two launchers on this machine, as the Slurm script starts one on every node; a second model is shared too."""
    flags = flags | {"teacher": "frozen"}
    machines = ["--main_process_ip", "127.0.0.1", "--main_process_port", "29511", "--num_processes", "2"]
    argv, output_dir = command("zero3_multinode.yaml", launch_flags=[*machines, "--machine_rank"], **flags)
    rank = argv.index("--machine_rank") + 1
    log = output_dir.parent / "log"
    processes = [start_alone([*argv[:rank], str(number), *argv[rank:]], log) for number in (0, 1)]
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            stop(process)
    assert codes == [0, 0], log.read_text()[-4000:]
    run = Run(output_dir)
    assert [facts["world_size"] for facts in run.facts] == [2, 2]
    assert run.facts[0]["ds_persist"] is False
    assert_same(run, launch("cpu.yaml", per_device_train_batch_size=4, **flags))
