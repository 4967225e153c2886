"""
Runs `puma_trl/run.py` and writes down what really ran: the wrapper, the world size, whether parameters were sharded.

Launched by the tests with `accelerate launch … probe.py FACTS --key value …`, with FACTS the start of a file name.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import puma_trl.run as run
from puma_trl.entry import run_command
from puma_trl.step.forward import SeparateTeacher
from puma_trl.train import watch
from puma_trl.train.on_policy import OnPolicy
from puma_trl.train.trainer import PumaKLTrainer


def allow_fsdp_on_cpu():
    """accelerate turns FSDP into plain DDP on a CPU, silently; this keeps FSDP."""
    init = AcceleratorState.__init__

    def patched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if self.distributed_type != DistributedType.FSDP:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = kwargs.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
            if self._mixed_precision != "no":
                self.fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = patched


def held_share(teacher):
    """The share of a second model's weights that this rank holds, or none where the model teaches itself."""
    if not isinstance(teacher, SeparateTeacher):
        return None
    held = total = 0
    for parameter in teacher.model.parameters():
        if hasattr(parameter, "ds_tensor"):
            is_whole = parameter.ds_status.name == "AVAILABLE"
            held, total = held + (parameter if is_whole else parameter.ds_tensor).numel(), total + parameter.ds_numel
        else:
            here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            held, total = held + here.numel(), total + parameter.numel()
    return held / total


def count_units(teacher):
    """The number of pieces in which FSDP2 gathers a second model."""
    modules = teacher.model.modules() if isinstance(teacher, SeparateTeacher) else ()
    return sum(isinstance(module, FSDPModule) for module in modules)


def main():
    facts_file, *argv = sys.argv[1:]
    if "--fsdp_on_cpu" in argv:
        argv.remove("--fsdp_on_cpu")
        allow_fsdp_on_cpu()
    if "--without_head_fix" in argv:
        argv.remove("--without_head_fix")
        FSDPModule.unshard = lambda self, async_op=False: None  # FSDP itself does not call it
    pause = 0.5 if "--slow" in argv else 0  # seconds in each step, so that a signal comes before the end
    if pause:
        argv.remove("--slow")
    if "--collapse" in argv:  # whatever the teacher does is a sign after three steps
        argv.remove("--collapse")
        watch.STEPS, watch.TOKEN_SHARE, watch.CE_FACTOR = 3, -1.0, 0.0
    without_loading = "--memory_without_loading" in argv
    if without_loading:
        argv.remove("--memory_without_loading")
    row_ids, times, sampled = [], [], {}
    largest = {"tokens": 0, "patches": 0, "answers": 0}  # of a micro-batch, padding included
    train, compute_loss, sample = PumaKLTrainer.train, PumaKLTrainer.compute_loss, OnPolicy.sample

    def watched_loss(self, model, inputs, **kwargs):
        if self.model.training:
            row_ids.append(list(inputs["row_id"]))
            times.append(time.perf_counter())
            counts = {
                "tokens": inputs["input_ids"].numel(),
                "patches": len(inputs["pixel_values"]) if "pixel_values" in inputs else 0,
                "answers": int((inputs["labels"] != -100).sum()),
            }
            largest.update({name: max(largest[name], count) for name, count in counts.items()})
            time.sleep(pause)
        return compute_loss(self, model, inputs, **kwargs)

    def watched_sample(self, model, batch, step):
        answers = sample(self, model, batch, step)
        sampled.update({f"{step} {row_id}": answer for row_id, answer in zip(batch["row_id"], answers, strict=True)})
        return answers

    def watched_train(self, *args, **kwargs):
        if without_loading:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set begins anew
        result = train(self, *args, **kwargs)
        head = self.accelerator.unwrap_model(self.model_wrapped).get_output_embeddings().weight
        facts = {
            "world_size": self.accelerator.num_processes,
            "wrapper": "FSDPModule" if isinstance(self.model, FSDPModule) else type(self.model_wrapped).__name__,
            "ds_persist": getattr(head, "ds_persist", None),
            "ds_status": head.ds_status.name if hasattr(head, "ds_status") else None,
            "device": self.accelerator.device.type,
            "teacher_share": held_share(self.teacher),
            "teacher_units": count_units(self.teacher),
            "row_ids": row_ids,
            "times": times,
            "sampled": sampled,
            "largest": largest,
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,  # KiB
            "eval": self.evaluate() if self.eval_dataset is not None else None,
        }
        with open(f"{facts_file}.{self.accelerator.process_index}", "w") as file:
            json.dump(facts, file)
        return result

    PumaKLTrainer.compute_loss, PumaKLTrainer.train, OnPolicy.sample = watched_loss, watched_train, watched_sample
    torch.set_num_threads(1)
    code = run.main(argv)
    assert not torch.distributed.is_initialized()  # a process that ends with it may abort
    return code


if __name__ == "__main__":
    run_command(main)
