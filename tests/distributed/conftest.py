"""A tiny model and pairs on disk, and the launcher of the real script in two processes."""

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from puma_trl.mini import build_model, build_processor

from ..models.family_models import write_text_model


ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).parent / "probe.py"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja, which builds DeepSpeed's op
    "PYTHONPATH": str(ROOT),
    "TOKENIZERS_PARALLELISM": "false",
}
TIMEOUT = 300  # seconds; a hang fails
SIZES = {"num_hidden_layers": 2, "vision_embed_dim": 32, "vision_depth": 2, "num_heads": 4}
PADDING_FREE = {"attn_implementation": "varlen", "padding_free": True}
FSDP2 = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_offload_params": False,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}
# parameters of any size are really sharded; the defaults would keep those of a tiny model whole
ZERO3 = {
    "bf16": {"enabled": "auto"},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "overlap_comm": False,
        "stage": 3,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
    },
}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A folder with `model`, `wide`, `text` (a language model), `pairs.jsonl`, `text.jsonl` and a YAML per engine."""
    folder = tmp_path_factory.mktemp("workspace")
    processor = build_processor("qwen2_vl")
    # the head of the wide one is large enough for ZeRO-3 to shard it by default
    for name, hidden_size in (("model", 64), ("wide", 320)):
        model = build_model("qwen2_vl", processor, tie_word_embeddings=False, hidden_size=hidden_size, **SIZES)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    write_text_model(folder / "text")
    rng = random.Random(0)
    pairs, texts = [], []
    for index in range(10):
        answer = "so " * rng.randint(0, 3) + f"it is {rng.randrange(180)}"
        row = {"instruction": f"Angles {index}?", "output": answer, "instruction_2": "See.", "output_2": answer}
        texts.append({"instruction": row["instruction"], "output": answer})
        # images on either side of some rows only, so that ranks differ within a step
        for suffix, present in (("", index % 3 == 0), ("_2", index % 4 != 1)):
            if present:
                size = (28 * rng.randint(1, 2), 28 * rng.randint(1, 2))
                color = tuple(rng.randrange(256) for _ in range(3))
                Image.new("RGB", size, color).save(folder / f"{index}{suffix}.png")
                row[f"image_url{suffix}"] = f"{index}{suffix}.png"
        pairs.append(row)
    evals = [row | {"instruction": f"Which {row['instruction']}"} for row in pairs]
    for name, rows in (("pairs.jsonl", pairs), ("eval.jsonl", evals), ("text.jsonl", texts)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_engines(folder)
    return folder


def _write_engines(folder):
    (folder / "zero3.json").write_text(json.dumps(ZERO3))
    common = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "use_cpu": True}
    plain = {**common, "mixed_precision": "no"}
    zero2 = {"zero_stage": 2, "zero3_init_flag": False}
    zero2 |= {"offload_optimizer_device": "none", "offload_param_device": "none"}
    engines = {
        # MULTI_CPU would start one process
        "ddp": {**plain, "distributed_type": "MULTI_GPU"},
        "zero1": {**plain, "distributed_type": "DEEPSPEED", "deepspeed_config": zero2 | {"zero_stage": 1}},
        "zero2": {**plain, "distributed_type": "DEEPSPEED", "deepspeed_config": zero2},
        "zero3": {
            **common,
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {"deepspeed_config_file": str(folder / "zero3.json"), "zero3_init_flag": True},
        },
        "fsdp2": {**plain, "distributed_type": "FSDP", "fsdp_config": FSDP2},
        "single": {**plain, "distributed_type": "NO", "num_processes": 1},
    }
    for name, config in engines.items():
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML


class Run:
    """What a launched run left behind."""

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        self.facts = [json.loads(path.read_text()) for path in sorted(output_dir.parent.glob("facts.*"))]
        self.log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
        self.losses = [logs["loss"] for logs in self.log if "loss" in logs]
        self.grad_norms = [logs["grad_norm"] for logs in self.log if "grad_norm" in logs]

    @cached_property
    def weights(self):
        """The trained weights: those of the model as `from_pretrained` loads it, or of the adapter."""
        adapter = self.output_dir / "adapter_model.safetensors"
        if adapter.exists():
            return load_file(adapter)
        return dict(AutoModelForImageTextToText.from_pretrained(self.output_dir).named_parameters())


@pytest.fixture(scope="session")
def command(workspace, tmp_path_factory):
    """Returns a function that gives the command line of a run and its fresh output folder."""

    def command(engine, *, launch_flags=(), probe_flags=(), **flags):
        folder = tmp_path_factory.mktemp(engine)
        config = ROOT / "accelerate_configs" / engine if engine.endswith(".yaml") else workspace / f"{engine}.yaml"
        values = {
            "model_name_or_path": workspace / "model",
            "dataset_name": workspace / "pairs.jsonl",
            "output_dir": folder / "output",
            "bf16": False,
            "dtype": "float32",
            "gradient_checkpointing": False,
            "learning_rate": 0.3,  # large, so that errors show
            "logging_steps": 1,
            "max_grad_norm": 1e9,
            "max_steps": 4,
            "optim": "sgd",
            "per_device_train_batch_size": 4 if engine == "single" else 2,
            "per_device_eval_batch_size": 2,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
        } | flags
        launch = ["--config_file", str(config), *launch_flags]
        shim = ["--fsdp_on_cpu"] if engine.startswith("fsdp2") else []
        arguments = [str(piece) for key, value in values.items() for piece in (f"--{key}", value)]
        return [*launch, str(PROBE), str(folder / "facts"), *shim, *probe_flags, *arguments], folder / "output"

    return command


class Command:
    """A command that the fork server runs; used as a `subprocess.Popen`."""

    def __init__(self, requests, argv, log):
        self.answers, answers = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with open(log, "a") as file, answers:
            socket.send_fds(requests, [json.dumps(argv).encode()], [file.fileno(), answers.fileno()])
        self.pid = int(self.answers.recv(100))
        self.returncode = None

    def poll(self):
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self.answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(self.answers.recv(100) or -signal.SIGKILL)  # nothing comes from one that is killed
            self.answers.close()
        return self.returncode


@pytest.fixture(scope="session")
def start():
    """Returns a function that starts a command, its output in `log`, on the fork server."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    ours.settimeout(900)  # the first time, DeepSpeed's operators are compiled
    argv = [sys.executable, "-u", str(Path(__file__).parent / "fork_server.py"), str(theirs.fileno())]
    # a session of its own, so that Ctrl-C ends the test first
    server = subprocess.Popen(argv, env=ENVIRONMENT, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()
    with server, ours:
        assert ours.recv(100) == b"ready"
        yield partial(Command, ours)


@pytest.fixture(scope="session")
def launch(command, start):
    """Returns a function that launches a run, waits for it and reads what it left; the same run is launched once."""
    runs = {}

    def launch(engine, **flags):
        key = repr((engine, sorted(flags.items())))
        if key not in runs:
            argv, output_dir = command(engine, **flags)
            # a file of accelerate_configs as a user launches it
            run_to_end(argv, output_dir.parent / "log", start_alone if engine.endswith(".yaml") else start)
            runs[key] = Run(output_dir)
        return runs[key]

    return launch


def run_to_end(argv, log, start):
    """Runs a command; it must end well and in time."""
    process = start(argv, log)
    try:
        code = process.wait(TIMEOUT)
    finally:
        stop(process)
    assert code == 0, log.read_text()[-4000:]


def run_to_error(argv, log, start, message):
    """Runs a command; it must fail, in time and with the message in its log."""
    process = start(argv, log)
    try:
        assert process.wait(TIMEOUT) != 0
    finally:
        stop(process)
    assert message in log.read_text()


def start_alone(argv, log):
    """Starts a command as a user does, its output in `log`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    with open(log, "a") as file:
        return subprocess.Popen([*launcher, *argv], stdout=file, stderr=file, env=ENVIRONMENT)


def stop(process):
    """Ends a command and all its descendants: ranks are in process groups of their own."""
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        for descendant in [*launcher.children(recursive=True), launcher]:
            descendant.kill()
    process.wait()
