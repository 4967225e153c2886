"""From which checkpoint a run goes on, chosen before anything is loaded, and what it must not overwrite."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ..config import PumaKLConfig
from ..data.files import DROPPED
from ..errors import CheckpointError, ConfigError
from ..files import unfinished
from ..record.provenance import PROVENANCE, RECIPE
from .compare import compare_settings, describe_settings
from .lock import LOCK, hold_lock
from .marker import STEP, Problem, find_problem, has_model, has_weights, read_marker


logger = get_logger(__name__)
Result = TypeVar("Result")

# A run that failed before its first step leaves these
LEFT_BEHIND = {RECIPE, PROVENANCE, DROPPED, LOCK}
NEW_RUN = "start a new run from the model with `model_name_or_path`"


def on_main_process(function: Callable[..., Result], *args: Any) -> Result:
    """
    Calls a function on the main process alone, since what it finds on a network disk may differ for another; all
    processes, each of which must call this, get what it returns or raises.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = function(*args)
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def find_checkpoint(args: PumaKLConfig) -> str | None:
    """
    Returns the checkpoint to resume from, if any, and makes sure that the output folder can be used: by this run
    alone, and without overwriting what another has made.

    Args:
        args ([`PumaKLConfig`]):
            `output_dir`, `resume_from_checkpoint`, and the settings that are compared with the checkpoint's.

    Raises:
        ConfigError: if the folder cannot be written, is used by another run, or holds what would be overwritten.
        CheckpointError: if the checkpoint that is named cannot be resumed from, or a checkpoint is of a run with other
            settings (see [`compare_settings`]) or another number of rows per step.
    """
    checkpoint = on_main_process(_find, args)
    if checkpoint is not None and not os.path.isdir(checkpoint):
        raise CheckpointError(
            f"The main process resumes from {checkpoint}, which does not exist on {socket.gethostname()}. Keep "
            "`output_dir` on a disk that all machines share."
        )
    return checkpoint


def _find(args: PumaKLConfig) -> str | None:
    folder = Path(args.output_dir)
    resume = str(args.resume_from_checkpoint or "false")
    _require_writable(folder)
    hold_lock(folder)
    if resume.lower() == "false":
        _require_empty(folder)
        return None
    if resume.lower() == "true":
        checkpoint = find_last(folder)
        if checkpoint is None:
            _require_no_model(folder)
            logger.warning(f"No checkpoint in {folder}: starting afresh")
            return None
    else:
        checkpoint = Path(resume)
        require_whole(checkpoint)
        if not _is_in(checkpoint, folder):
            _require_empty(folder)
        require_free(folder, checkpoint)
    check_settings(checkpoint, args)
    if not is_finished(checkpoint, args):
        _require_none_newer(checkpoint, folder)
        logger.warning(f"Resuming from {checkpoint}")
    return str(checkpoint)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"`output_dir: {folder}` cannot be written: {error}. Choose another folder.") from error


def _require_empty(folder: Path) -> None:
    for name in LEFT_BEHIND:  # and what a kill has left while one of them was written
        unfinished(folder / name).unlink(missing_ok=True)
    if {path.name for path in folder.iterdir()} - LEFT_BEHIND:
        raise ConfigError(
            f"`output_dir: {folder}` is not empty, and a new run would overwrite it. Set `resume_from_checkpoint: "
            "true` to go on with the run there, or choose another folder."
        )


def _require_no_model(folder: Path) -> None:
    if has_model(folder):
        raise ConfigError(
            f"`output_dir: {folder}` holds a model, and no checkpoint to go on from; a run that starts afresh would "
            "overwrite it. Choose another folder. To train that model further, name it as `model_name_or_path`."
        )


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Returns the checkpoints of an output folder, last steps first; only `checkpoint-<number>` is one."""
    paths = [path for path in Path(folder).glob("*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(paths, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(STEP.fullmatch(checkpoint.name)[1])


def find_last(folder: str | Path) -> Path | None:
    """
    Returns the newest whole checkpoint of a folder; those that are not whole are passed over, with a line.

    Raises:
        CheckpointError: if there is none, and one that is damaged or is no checkpoint of ours would be overwritten by
            a run that starts afresh. One that a kill cut short is no such loss.
    """
    lost: tuple[Path, Problem] | None = None
    for path in list_checkpoints(folder):
        problem = find_problem(path)
        if problem is None:
            return path
        logger.warning(f"{path} {problem.reason}: it is passed over")
        if not problem.is_unfinished:
            lost = lost or (path, problem)
    if lost is not None:
        raise CheckpointError(
            f"{lost[0]} {lost[1].reason}, and {folder} has no other checkpoint to go on from; a run that starts "
            "afresh would overwrite it. Delete it if it is not needed, or choose another `output_dir`."
        )
    return None


def require_whole(checkpoint: str | Path) -> None:
    """
    Makes sure that a checkpoint that was named can be resumed from.

    Raises:
        CheckpointError: if it is no folder, no checkpoint, or not whole.
    """
    if not Path(checkpoint).is_dir():
        raise CheckpointError(
            f"`resume_from_checkpoint: {checkpoint}` is not a folder. Name a checkpoint, or set it to true."
        )
    problem = find_problem(checkpoint)
    if problem is not None:
        raise CheckpointError(
            f"`resume_from_checkpoint: {checkpoint}` {problem.reason}. Name a whole checkpoint, set it to true for "
            f"the last one in `output_dir`, or {NEW_RUN}."
        )


def _is_in(checkpoint: str | Path, folder: str | Path) -> bool:
    return Path(checkpoint).resolve().parent == Path(folder).resolve()


def require_free(folder: str | Path, checkpoint: str | Path | None) -> None:
    """
    Makes sure that a run overwrites no checkpoint of another one, nor later ones of its own: it goes on in its own
    folder from the last one, and elsewhere in a folder without any.

    Args:
        folder (`str` or `Path`):
            The output folder.
        checkpoint (`str` or `Path`, *optional*):
            The checkpoint that the run goes on from, `None` for a new run.

    Raises:
        ConfigError: if there are such checkpoints. One that a kill cut short is no loss.
    """
    if checkpoint is None or not _is_in(checkpoint, folder):
        problems = {path: find_problem(path) for path in list_checkpoints(folder)}
        kept = [path for path, problem in problems.items() if problem is None or not problem.is_unfinished]
        if kept:
            raise ConfigError(
                f"`output_dir: {folder}` holds {kept[0].name} of another run, which would be overwritten. Set "
                "`resume_from_checkpoint: true` to go on with that run, or choose another folder."
            )
        return
    step = _step(Path(checkpoint))
    later = [path for path in list_checkpoints(folder) if _step(path) > step and not find_problem(path)]
    if later:
        # beside the model of a finished run nothing goes on, whatever is deleted
        remedy = "" if has_weights(folder) else ", or delete the later checkpoints"
        raise ConfigError(
            f"`resume_from_checkpoint: {checkpoint}` is not the last one in `output_dir: {folder}`; the run would "
            f"overwrite {later[-1].name}. Choose another `output_dir`{remedy}."
        )


def _require_none_newer(checkpoint: Path, folder: Path) -> None:
    step, reached = read_marker(checkpoint)["step"], _finished_step(folder)
    if reached is not None and reached > step:
        raise ConfigError(
            f"`output_dir: {folder}` holds the model of step {reached}, and its last checkpoint is of step {step}; to "
            f"go on from there would overwrite the model. Choose another folder, with `resume_from_checkpoint: "
            f"{checkpoint}`."
        )


def _finished_step(folder: Path) -> int | None:
    """Returns the step of the model that a run has saved at its end, which is before the state that is read here."""
    try:
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return None
    return state.global_step if has_weights(folder) else None


def is_finished(checkpoint: str | Path, args: PumaKLConfig) -> bool:
    """Returns whether the run has come to the end that it was to have, and has saved its model."""
    marker, now = read_marker(checkpoint), describe_settings(args)
    is_same_end = all(marker["settings"][name] == now[name] for name in ("max_steps", "num_train_epochs"))
    reached = _finished_step(Path(args.output_dir))
    return is_same_end and reached is not None and reached >= marker["total_steps"]


def check_settings(checkpoint: str | Path, args: PumaKLConfig) -> dict[str, list[Any]]:
    """
    Compares what the settings tell of a run with a checkpoint, and returns what differs and takes effect (see
    [`compare_settings`]).

    Raises:
        CheckpointError: if the run cannot go on from it.
    """
    marker = read_marker(checkpoint)
    _require_same_steps(checkpoint, marker, args)
    return compare_settings(checkpoint, marker["settings"], args)


def _require_same_steps(checkpoint: str | Path, marker: dict[str, Any], args: PumaKLConfig) -> None:
    """A step must read as many rows as before; and DeepSpeed does not divide again what each process holds."""
    if args.deepspeed_plugin is not None and marker["num_processes"] != args.world_size:
        raise CheckpointError(
            f"{checkpoint} was written by {marker['num_processes']} processes under DeepSpeed, which cannot be "
            f"resumed with {args.world_size}. Launch {marker['num_processes']} processes, or {NEW_RUN}."
        )
    # with `auto_find_batch_size` Trainer goes on with the size that the checkpoint's run had found
    batch_size = marker["batch_size"] if args.auto_find_batch_size else args.train_batch_size
    rows = batch_size * args.gradient_accumulation_steps * args.world_size
    if marker["rows_per_step"] != rows:
        raise CheckpointError(
            f"{checkpoint} is of a run with {marker['rows_per_step']} rows per optimizer step, but this one has "
            f"{rows}: {batch_size} (`per_device_train_batch_size`) × {args.gradient_accumulation_steps} "
            f"(`gradient_accumulation_steps`) × {args.world_size} processes. It would go on at other rows of the "
            f"data. Keep the product, or {NEW_RUN}."
        )
    accumulation = marker["rows_per_step"] // (marker["batch_size"] * marker["num_processes"])
    if args.dataloader_drop_last and args.gradient_accumulation_steps != accumulation:
        raise CheckpointError(
            f"{checkpoint} is of a run with `gradient_accumulation_steps: {accumulation}`, and with "
            f"{args.gradient_accumulation_steps} `dataloader_drop_last: true` would drop other rows, so that an epoch "
            f"had another number of steps. Set it back to {accumulation}, or {NEW_RUN}."
        )
