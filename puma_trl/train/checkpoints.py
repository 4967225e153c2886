"""Checkpoints: which one a run goes on from, when one counts, and what it holds beside Trainer's own files."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import PumaKLConfig, rows_per_step
from ..data.files import DROPPED
from ..record.provenance import PROVENANCE, RECIPE
from ..step.forward import SelfTeacher, SeparateTeacher
from ..step.teacher import AdapterEMACallback


logger = get_logger(__name__)

# Written into a checkpoint when all ranks have written their parts, and before older checkpoints are deleted
COMPLETE_MARKER = "checkpoint_complete"
# In checkpoints, the moving average of a teacher
ADAPTER_AVERAGE = "adapter_average.safetensors"
AVERAGE_MODEL = "ema_teacher"


def find_checkpoint(args: PumaKLConfig) -> str | None:
    """
    Returns the checkpoint to resume from, if any, and makes sure that the output folder can be used.

    Raises:
        ValueError: if the folder cannot be written, holds another run that is not to be resumed, or the checkpoint
            that is named does not exist or has another number of rows per step.
    """
    folder = Path(args.output_dir)
    resume = str(args.resume_from_checkpoint or "false")
    state = PartialState()
    if state.is_main_process:
        _require_usable(folder, is_new=resume.lower() == "false")
    state.wait_for_everyone()
    if resume.lower() == "false":
        return None
    if resume.lower() != "true":
        if not os.path.isdir(resume):
            raise ValueError(
                f"`resume_from_checkpoint: {resume}` is not a folder. Name a checkpoint, or set it to true."
            )
        checkpoint = resume
    else:
        checkpoint = last_complete_checkpoint(folder)
    logger.warning(f"Resuming from {checkpoint}" if checkpoint else f"No checkpoint in {folder}: starting afresh")
    if checkpoint and (Path(checkpoint) / COMPLETE_MARKER).exists():
        _require_same_steps(checkpoint, args)
    return checkpoint


def _require_usable(folder: Path, is_new: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"`output_dir: {folder}` cannot be written: {error}. Choose another folder.") from error
    # a run that failed before its first step leaves these
    left = {path.name for path in folder.iterdir()} - {RECIPE, PROVENANCE, DROPPED}
    if is_new and left:
        raise ValueError(
            f"`output_dir: {folder}` is not empty, and a new run would overwrite it. Set `resume_from_checkpoint: "
            "true` to go on with the run there, or choose another folder."
        )


def _require_same_steps(checkpoint: str, args: PumaKLConfig) -> None:
    """A step must read as many rows as before; and DeepSpeed does not divide again what each process holds."""
    saved = json.loads((Path(checkpoint) / COMPLETE_MARKER).read_text())
    if args.deepspeed_plugin is not None and saved["num_processes"] != args.world_size:
        raise ValueError(
            f"{checkpoint} was written by {saved['num_processes']} processes under DeepSpeed, which cannot be resumed "
            f"with {args.world_size}. Launch {saved['num_processes']} processes, or start a new run from it with "
            "`model_name_or_path`."
        )
    if saved["rows_per_step"] != rows_per_step(args):
        raise ValueError(
            f"{checkpoint} is of a run with {saved['rows_per_step']} rows per optimizer step, but this one has "
            f"{rows_per_step(args)}: {args.per_device_train_batch_size} (`per_device_train_batch_size`) × "
            f"{args.gradient_accumulation_steps} (`gradient_accumulation_steps`) × {args.world_size} processes. It "
            "would go on at other rows of the data. Keep the product, or start a new run from the checkpoint with "
            "`model_name_or_path`."
        )


def last_complete_checkpoint(folder: Path) -> str | None:
    """Returns the newest checkpoint that was written to its end; one that a killed run cut short is passed over."""
    checkpoints = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-[0-9]*")}
    for _, path in sorted(checkpoints.items(), reverse=True):
        if _is_complete(path):
            return str(path)
        logger.warning(
            f"{path} was cut short while it was written, or holds the model only (`save_only_model`): the one before it "
            "is used"
        )
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        # the one file that is written after the marker
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (checkpoint / COMPLETE_MARKER).exists()


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Loads what `save_pretrained` wrote, all of it and nothing else."""
    loaded = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True)


class ExactCheckpoints:
    """
    What [`~transformers.Trainer`] needs for checkpoints that resume to the same weights, bit for bit: to be inherited
    before it, with `self.teacher` and `self.stop_requested` of [`PumaKLTrainer`].
    """

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # Workaround (transformers 5.23, no upstream issue found): resumed from its last step, Trainer would take
            # one more before it looks
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        if self.args.should_save:
            # left by the run that is being repeated from an earlier checkpoint
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (Path(self._get_output_dir(trial)) / name / COMPLETE_MARKER).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The last that each rank writes. What follows is the main process's `trainer_state.json` and the end of older
        # checkpoints, so this one must count before that.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            facts = {"num_processes": self.accelerator.num_processes, "rows_per_step": rows_per_step(self.args)}
            (Path(output_dir) / COMPLETE_MARKER).write_text(json.dumps(facts))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # with `save_strategy: best` its answer decides whether to save, also in a run that was asked to save and stop
        return super()._determine_best_metric(metrics, trial) or self.stop_requested

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if is_peft_model(self.model) or self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Workaround (transformers 5.23, huggingface/transformers#43701): Trainer's own way loads non-strictly under
        # names that vision-language checkpoints do not use, and so keeps the base weights. `from_pretrained` knows
        # the names.
        load_weights(self.model if model is None else model, resume_from_checkpoint)

    def _adapter_average(self) -> AdapterEMACallback | None:
        """The teacher's moving average that no one else saves: of adapters, under DeepSpeed and FSDP."""
        is_engine = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return self.teacher.average if is_engine and isinstance(self.teacher, SelfTeacher) else None

    def _has_average_model(self) -> bool:
        return self.args.teacher == "ema" and isinstance(self.teacher, SeparateTeacher)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if (average := self._adapter_average()) is not None:
            state = average.state()  # on all ranks
            if self.args.should_save:
                save_file(state, Path(output_dir) / ADAPTER_AVERAGE)
        if self._has_average_model() and self.args.should_save:
            self.teacher.model.save_pretrained(Path(output_dir) / AVERAGE_MODEL)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        # here, and not with the weights, which DeepSpeed loads by itself
        if (average := self._adapter_average()) is not None:
            average.restore(load_file(Path(checkpoint) / ADAPTER_AVERAGE))
        if self._has_average_model():
            load_weights(self.teacher.model, Path(checkpoint) / AVERAGE_MODEL)

    def _load_best_model(self) -> None:
        if is_peft_model(self.model) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        # for the reason given in `_load_from_checkpoint`
        load_weights(self.model, self.state.best_model_checkpoint)
