"""
Runs `accelerate launch` commands in forks of one process that has imported everything: that takes ten seconds and
more, which otherwise each launcher and each of its ranks takes anew.

It is accelerate's own launcher, with torch's own agent under it, that reads the configuration, makes the environment
of each rank, watches over the ranks and ends them. Only where it would start an interpreter for a rank, a fork of this
process runs the script as its main program, and ends as an interpreter ends. A rank inherits imports and nothing else:
there are no threads of Python, no process groups and no seeds here. One thing differs: the hash of a string is the
same in all ranks, so that they go through a set in the same order. The launches of test_configs.py have no such help.

Its one argument is the number of a socket. Each message there is the arguments of a command, with its log and a socket
to which its process id and then its exit code are sent. When the socket closes, as it does however the tests end, this
process ends and all others with it.
"""

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from types import SimpleNamespace

import accelerate.commands.launch as launcher
import bitsandbytes  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import numpy
import peft  # noqa: F401
import torch.distributed.run  # noqa: F401
import transformers.models.qwen2_vl.image_processing_qwen2_vl
import transformers.models.qwen2_vl.modeling_qwen2_vl
import transformers.models.qwen2_vl.processing_qwen2_vl
import transformers.models.qwen2_vl.video_processing_qwen2_vl  # noqa: F401
from accelerate.commands.config.config_args import load_config_from_file
from deepspeed.accelerator import get_accelerator
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler as agent

import puma_trl.run  # noqa: F401


PR_SET_PDEATHSIG = 1


def fork():
    """Forks; the child is killed when its parent ends."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return pid


class Rank:
    """A fork that waits for its command; the launchers use it as a `subprocess.Popen`."""

    def __init__(self):
        reader, writer = os.pipe()
        self.returncode = None
        self.pid = fork()
        self.pipe = os.fdopen(*((reader, "r") if self.pid == 0 else (writer, "w")))
        os.close(writer if self.pid == 0 else reader)

    def give(self, args, env):
        print(json.dumps({"args": args, "env": env}), file=self.pipe, flush=True)

    def run(self):
        """In the fork: runs the command that is given."""
        command = json.loads(self.pipe.readline())
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background ignore
        os.environ.clear()
        os.environ.update(command["env"])
        sys.argv = [piece for piece in command["args"][1:] if piece != "-u"]
        sys.path[0] = os.path.dirname(sys.argv[0])
        torch.seed()
        numpy.random.seed()
        runpy.run_path(sys.argv[0], run_name="__main__")

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=float("inf")):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode


def launch(argv, log, answers):
    """In a fork: runs `accelerate launch` with the arguments, and tells how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(log, 1)
    os.dup2(log, 2)
    answers = socket.socket(fileno=answers)
    sys.argv = ["accelerate", *argv]
    args = launcher.launch_command_parser().parse_args()
    ranks = []
    # the launcher has no threads yet
    for _ in range(args.num_processes or load_config_from_file(args.config_file).num_processes):
        ranks.append(Rank())
        if ranks[-1].pid == 0:
            answers.close()
            return ranks[-1].run()

    def popen(args, env, **_):
        rank = ranks.pop(0)
        rank.give(args, env)
        return rank

    agent.Popen = popen
    launcher.subprocess = SimpleNamespace(Popen=popen, CalledProcessError=subprocess.CalledProcessError)
    answers.send(str(os.getpid()).encode())
    code = 1
    try:
        launcher.launch_command(args)
        code = 0
    except BaseException:
        traceback.print_exc()
    answers.send(str(code).encode())
    os._exit(code)


def main():
    for name in ("ShareMemCommBuilder", "CPUAdamBuilder"):  # compiled where they are not yet
        get_accelerator().create_op_builder(name).load()
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombies
    gc.collect()
    gc.freeze()
    requests.send(b"ready")
    while True:
        message, files, *_ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return
        if fork() == 0:
            requests.close()
            return launch(json.loads(message), *files)
        for file in files:
            os.close(file)


if __name__ == "__main__":
    main()
