"""Checkpoints that resume to the same weights, bit for bit: how they are written, and how they are read."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from accelerate.utils.memory import should_reduce_batch_size
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from ..config import rows_per_step
from ..errors import CheckpointError, ConfigError
from ..files import naming_disk
from ..record.provenance import update_provenance
from ..record.report import count_steps
from ..step.forward import SelfTeacher, SeparateTeacher
from ..step.teacher import AdapterEMACallback
from .compare import compare_rows, compare_weights, describe_rows, describe_settings, describe_weights, word_changes
from .lock import hold_lock
from .marker import COMPLETE_MARKER, begin_checkpoint, find_damage, read_marker, write_marker
from .resume import (
    check_settings,
    find_checkpoint,
    find_last,
    list_checkpoints,
    on_main_process,
    require_free,
    require_whole,
)
from .signals import leave_signals
from .space import require_space


logger = get_logger(__name__)

# In checkpoints, the moving average of a teacher
ADAPTER_AVERAGE = "adapter_average.safetensors"
AVERAGE_MODEL = "ema_teacher"


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Loads what `save_pretrained` wrote, all of it and nothing else."""
    loaded = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True)


@contextmanager
def naming_damage(checkpoint: str | None) -> Iterator[None]:
    """
    Lets an error of what reads a checkpoint name the file that is damaged, if one is.

    Raises:
        CheckpointError: in place of that error.
    """
    try:
        yield
    except Exception as error:
        if checkpoint is None or isinstance(error, CheckpointError) or should_reduce_batch_size(error):
            raise
        damaged = find_damage(checkpoint)
        if damaged is None:
            raise
        raise CheckpointError(
            f"{damaged} is damaged ({type(error).__name__}), so {checkpoint} cannot be resumed from. Delete that "
            "folder and resume again: the checkpoint before it is used."
        ) from error


def naming_disk_of(checkpoint: Path) -> AbstractContextManager[None]:
    """Lets an error of writing a checkpoint name it, and how the run goes on (see [`naming_disk`])."""
    remedy = ", then resume from the checkpoint before it: `resume_from_checkpoint: true`"
    return naming_disk(checkpoint, remedy, CheckpointError)


class ExactCheckpoints:
    """
    What [`~transformers.Trainer`] needs to be stopped at any time and to go on as if it had not been: to be inherited
    before it, with `self.teacher` and `self.is_stopping` of [`PumaKLTrainer`].

    Attributes:
        resumed (`Sequence[dict[str, Any]]`):
            The checkpoints that the run has gone on from, in order: `checkpoint`, `step`, and what had `changed`.
    """

    resumed: Sequence[dict[str, Any]] = ()
    _compared_with: str | None = None
    _weights: dict[str, Any] | None = None
    _completed: Path | None = None
    _holds_limit = False

    # Resuming

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ):
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ConfigError(
                "No parameter of the model requires a gradient. Name what is to train: `trainable_parts`."
            )
        if resume_from_checkpoint is None and str(self.args.resume_from_checkpoint or "false").lower() != "false":
            resume_from_checkpoint = find_checkpoint(self.args)
        elif resume_from_checkpoint is True:
            last = on_main_process(find_last, self.args.output_dir)
            if last is None:
                raise CheckpointError(f"`output_dir: {self.args.output_dir}` has no checkpoint to resume from.")
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint:
            self.compare_checkpoint(resume_from_checkpoint)
        is_searched = trial is not None  # a search gives each of its runs a folder
        on_main_process(self._prepare_folder, resume_from_checkpoint or None, is_searched)
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def compare_checkpoint(self, checkpoint: str) -> None:
        """
        Compares settings, model, adapters and data with those of the checkpoint that is to be resumed from, names what
        has changed and takes effect, and adds to `resumed`. [`~Trainer.train`] does this, if it has not been done.

        Raises:
            CheckpointError: if it is not whole, or is of a run that cannot go on as this one.
        """
        if checkpoint != self._compared_with:
            self.resumed = on_main_process(self._compare, checkpoint)
            self._compared_with = checkpoint

    def _compare(self, checkpoint: str) -> list[dict[str, Any]]:
        require_whole(checkpoint)
        marker, now = read_marker(checkpoint), self._describe()
        changed = check_settings(checkpoint, self.args)
        compare_weights(checkpoint, marker["weights"], now["weights"])
        rows = compare_rows(checkpoint, marker["data"], now["data"], changed, self.args.allow_changed_data)
        for name in changed:
            logger.warning(f"From step {marker['step']} on with another setting: {word_changes(changed, [name])}")
        if rows:
            logger.warning(f"From step {marker['step']} on with other data: {', '.join(rows)}")
        changed |= {f"{split} data": values for split, values in rows.items()}
        return [*marker["resumed"], {"checkpoint": checkpoint, "step": marker["step"], "changed": changed}]

    def _describe(self) -> dict[str, Any]:
        """Returns, on the main process, what a run that resumes is compared by, besides its settings."""
        if self._weights is None:  # the engines wrap the model later
            teacher = self.teacher.model if self.args.teacher == "model" else None
            self._weights = describe_weights(self.model, teacher) | {"engine": self._name_engine()}
        return {"weights": self._weights, "data": describe_rows(self)}

    def _name_engine(self) -> str:
        if self.is_deepspeed_enabled:
            return f"DeepSpeed, ZeRO-{self.accelerator.state.deepspeed_plugin.zero_stage}"
        return "FSDP" if self.is_fsdp_enabled else "one process or DDP"

    def _prepare_folder(self, checkpoint: str | None, is_searched: bool) -> None:
        """
        If checkpoints will be written, takes the lock of the output folder and sees that nothing is overwritten; looks
        at the room on its disk.
        """
        self._describe()
        if self.args.save_strategy != SaveStrategy.NO:
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            hold_lock(self.args.output_dir)
            if not is_searched:
                require_free(self.args.output_dir, checkpoint)
        has_length = hasattr(self.train_dataset, "__len__")
        num_steps = count_steps(self.args, len(self.train_dataset)) if has_length else self.args.max_steps
        if (warning := require_space(self, num_steps)) is not None:
            logger.warning(warning)

    def _inner_training_loop(
        self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None
    ):
        if resume_from_checkpoint is not None and args.auto_find_batch_size:
            found = read_marker(resume_from_checkpoint)["batch_size"]
            if batch_size != found:
                raise CheckpointError(
                    f"The batch size of {resume_from_checkpoint}, {found}, which `auto_find_batch_size` found, does "
                    f"not fit into memory here, and with {batch_size} the run would go on at other rows of the data. "
                    "Resume it with `auto_find_batch_size: false`, a smaller `per_device_train_batch_size` and as "
                    "many more `gradient_accumulation_steps`."
                )
        if args.auto_find_batch_size and batch_size != args.per_device_train_batch_size:
            self._use_batch_size(batch_size)
        return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _use_batch_size(self, batch_size: int) -> None:
        """Lets settings and provenance tell the size that `auto_find_batch_size` has found."""
        asked, self.args.per_device_train_batch_size = self.args.per_device_train_batch_size, batch_size
        rows = rows_per_step(self.args)
        logger.warning(
            f"`auto_find_batch_size`: {asked} rows per device do not fit into memory. From here on each has "
            f"{batch_size} and a step {rows} in all; more `gradient_accumulation_steps` keep the rows of a step."
        )
        if self.is_world_process_zero():
            found = {"per_device_train_batch_size": batch_size, "global_batch_size": rows}
            update_provenance(self.args.output_dir, {"training": found})

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # Workaround (transformers 5.23, no upstream issue found): resumed from its last step, Trainer would take
            # one more before it looks
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        base = getattr(loader, "base_dataloader", loader)  # under accelerate's, which starts no workers itself
        base.worker_init_fn = partial(leave_signals, base.worker_init_fn)
        return loader

    # Writing

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:  # what a run has left that is being repeated from an earlier checkpoint
            (folder / COMPLETE_MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._completed = None
        limit, self._holds_limit = self.args.save_total_limit, True
        only_model = self.args.save_only_model
        self.args.save_only_model = only_model and not self.is_stopping  # a run that is stopped is to go on
        try:
            with naming_disk_of(folder):
                if self.args.should_save and not self.args.save_only_model:
                    begin_checkpoint(folder)
                super()._save_checkpoint(model, trial)
                self._complete(folder)
        finally:
            self.args.save_total_limit, self._holds_limit = limit, False
            self.args.save_only_model = only_model
        if self.args.should_save and limit is not None:
            self._delete_old(folder, limit)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self._holds_limit:
            # Workaround (transformers 5.23, no upstream issue found): Trainer would delete older checkpoints before
            # this one counts, and folders that have only names like theirs. Not before the arguments are saved.
            self.args.save_total_limit = None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._complete(Path(checkpoint_folder))  # so that the marker is pushed too
        super()._push_from_checkpoint(checkpoint_folder)

    def _complete(self, folder: Path) -> None:
        if self.args.save_only_model or self._completed == folder:
            return
        self.accelerator.wait_for_everyone()  # all ranks have written their parts
        if self.args.should_save:
            facts = {
                "step": self.state.global_step,
                "total_steps": self.state.max_steps,
                "num_processes": self.accelerator.num_processes,
                "batch_size": self._train_batch_size,
                "rows_per_step": self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
                "settings": describe_settings(self.args),
                "resumed": self.resumed,
            }
            write_marker(folder, facts | self._describe())
        self._completed = folder

    def _delete_old(self, newest: Path, limit: int) -> None:
        best = self.state.best_model_checkpoint
        kept = {newest.name} | ({Path(best).name} if best else set())
        old = [path for path in list_checkpoints(newest.parent) if path.name not in kept]
        # those that are not complete first
        old.sort(key=lambda path: ((path / COMPLETE_MARKER).exists(), path.stat().st_mtime, path.name))
        for path in old[: max(len(old) + len(kept) - limit, 0)]:
            shutil.rmtree(path, ignore_errors=True)

    def _finalize_training(self, *args, **kwargs):
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # see `save_model`
        try:
            output = super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        best = self.state.best_model_checkpoint
        if self.args.should_save and limit == 1 and best is not None:
            self._delete_old(Path(best), limit)
        return output

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # with `save_strategy: best` its answer decides whether to save, also in a run that was asked to save and stop
        return super()._determine_best_metric(metrics, trial) or self.is_stopping

    # What Trainer does not save, and how it reads

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

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        with naming_damage(resume_from_checkpoint):  # DeepSpeed and FSDP read all of it here
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with naming_damage(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with naming_damage(resume_from_checkpoint):
            if is_peft_model(self.model) or self.is_fsdp_enabled:
                return super()._load_from_checkpoint(resume_from_checkpoint, model)
            # Workaround (transformers 5.23, huggingface/transformers#43701): Trainer's own way loads non-strictly
            # under names that vision-language checkpoints do not use, and so keeps the base weights.
            # `from_pretrained` knows the names.
            load_weights(self.model if model is None else model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        # here, and not with the weights, which DeepSpeed loads by itself
        if (average := self._adapter_average()) is not None:
            average.restore(load_file(Path(checkpoint) / ADAPTER_AVERAGE))
        if self._has_average_model():
            load_weights(self.teacher.model, Path(checkpoint) / AVERAGE_MODEL)
        self._compare_schedule(checkpoint)

    def _compare_schedule(self, checkpoint: str) -> None:
        """Says so where nothing is left, or the checkpoint's learning rate is not what the schedule now has there."""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if self.state.global_step >= self.state.max_steps:
            logger.warning(f"{checkpoint} is of the last step, {self.state.global_step}: nothing is left to train.")
            return
        if not isinstance(scheduler, LambdaLR):
            return
        step = scheduler.last_epoch
        old, new = scheduler.get_last_lr()[0], scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)
        if not math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-12):
            logger.warning(
                f"The schedule of the learning rate is not that of {checkpoint} ({self.state.max_steps} steps now, "
                f"{read_marker(checkpoint)['total_steps']} then): step {step + 1} is taken at {old:.3g}, as that one "
                f"has it, and the steps after it follow the new schedule, which has {new:.3g} there. For a whole "
                "schedule, start a new run from the model with `model_name_or_path`."
            )

    def _load_best_model(self) -> None:
        if is_peft_model(self.model) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        # for the reason given in `_load_from_checkpoint`
        load_weights(self.model, self.state.best_model_checkpoint)
