"""
Runs one stage of Math-PUMA from a recipe.

```bash
accelerate launch --config_file accelerate_configs/zero3_8xa100.yaml puma_trl/run.py recipes/stage2.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml puma_trl/run.py recipes/mini/stage2.yaml --max_steps 20
accelerate launch -m puma_trl.run --config recipes/stage3.yaml --resume_from_checkpoint true
```
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import parse_flag_from_env
from datasets import DatasetDict
from transformers import ProcessorMixin, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from puma_trl.config import PumaKLConfig, parse_recipe
from puma_trl.data.collator import DataCollatorForPumaPairs, find_placeholder_sides
from puma_trl.data.files import DROPPED
from puma_trl.data.load import DataReport, load_data, render_prompt
from puma_trl.models.adapters import build_peft_config
from puma_trl.models.families import get_family
from puma_trl.models.load import check_attention, load_config, load_model, load_processor
from puma_trl.models.parts import count_parameters, set_trainable_parts
from puma_trl.record.hub import CURVES, check_login, push_or_exit
from puma_trl.record.provenance import (
    PROVENANCE,
    RECIPE,
    ProvenanceCallback,
    describe_data,
    describe_run,
    describe_software,
    merge_recipe,
    save_provenance,
)
from puma_trl.record.report import CurvesCallback, draw_curves, print_startup
from puma_trl.train.trainer import COMPLETE_MARKER, PumaKLTrainer, rows_per_step


logger = get_logger(__name__)


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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(f"`output_dir: {folder}` cannot be written: {error}. Choose another folder.") from error
        # a run that failed before its first step leaves these
        left = {path.name for path in folder.iterdir()} - {RECIPE, PROVENANCE, DROPPED}
        if resume.lower() == "false" and left:
            raise ValueError(
                f"`output_dir: {folder}` is not empty, and a new run would overwrite it. Set `resume_from_checkpoint: "
                "true` to go on with the run there, or choose another folder."
            )
    state.wait_for_everyone()
    if resume.lower() == "false":
        return None
    if resume.lower() != "true":
        if not os.path.isdir(resume):
            raise ValueError(f"`resume_from_checkpoint: {resume}` is no folder. Name a checkpoint, or set it to true.")
        checkpoint = resume
    else:
        checkpoint = last_complete_checkpoint(folder)
    logger.warning(f"Resuming from {checkpoint}" if checkpoint else f"No checkpoint in {folder}: starting afresh")
    if checkpoint and (Path(checkpoint) / COMPLETE_MARKER).exists():
        _require_same_steps(checkpoint, args)
    return checkpoint


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
            f"{args.gradient_accumulation_steps} (`gradient_accumulation_steps`) × {args.world_size} processes. It would "
            "go on at other rows of the data. Keep the product, or start a new run from the checkpoint with "
            "`model_name_or_path`."
        )


def last_complete_checkpoint(folder: Path) -> str | None:
    """Returns the newest checkpoint that was written to its end; one that a killed run cut short is passed over."""
    checkpoints = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-[0-9]*")}
    for _, path in sorted(checkpoints.items(), reverse=True):
        if _is_complete(path):
            return str(path)
        logger.warning(
            f"{path} was cut short while it was written, or holds the model only (`save_only_model`): the one before it is "
            "used"
        )
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        # the one file that is written after the marker
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (checkpoint / COMPLETE_MARKER).exists()


def to_prompt_completion(dataset: DatasetDict, tokenizer) -> DatasetDict:
    """Renders rows for TRL's text path, which tokenises and packs them; for stage 1 on a text model."""
    return dataset.map(
        lambda row: {"prompt": render_prompt(tokenizer, row["instruction"], 0), "completion": row["output"]},
        remove_columns=dataset["train"].column_names,
    )


def data_lines(reports: dict[str, DataReport]) -> list[tuple[str, str]]:
    """Returns the lines of the start-up table about the data."""
    lines = []
    for split, report in reports.items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items()) or "none dropped"
        lines.append((f"Rows: {split}", f"{report.rows_kept:,} of {report.rows_read:,} ({dropped})"))
        lines.append((f"Answer tokens: {split}", f"{report.answer_tokens:,}"))
    return lines


def require_fsdp(trainer: PumaKLTrainer) -> None:
    """
    Makes sure that FSDP runs if it was asked for.

    Raises:
        ValueError: on a CPU, where accelerate would silently run DDP instead.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not trainer.is_fsdp_enabled:
        raise ValueError(
            "The accelerate configuration asks for FSDP, which accelerate does not run on a CPU: it would run DDP instead. "
            "Launch with accelerate_configs/ddp.yaml, or on GPUs."
        )


def end_process_group() -> None:
    """
    Ends the process group, so that the process can end after it.

    DDP holds the group, and so its threads, beyond that (PyTorch 2.14). A thread of gloo that drops the tensor of the
    last collective waits for the interpreter's lock, and aborts the process (SIGABRT) if the interpreter ends meanwhile.
    """
    if torch.distributed.is_initialized():
        time.sleep(0.5)  # leaves the lock to such threads
        PartialState().destroy_process_group()


def main(argv: list[str]) -> None:
    """Runs the stage that the command line describes."""
    # nothing is there yet that could be lost; a scheduler that sees exit code 0 may start it again
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # 1. Recipe
    script_args, training_args, model_args, recipe = parse_recipe(argv)
    check_login(training_args)
    checkpoint = find_checkpoint(training_args)
    set_seed(training_args.seed)

    # 2. Data
    config = load_config(model_args, training_args)
    check_attention(model_args)
    processor = load_processor(model_args, training_args)
    family = get_family(config)
    dataset, reports = load_data(script_args, training_args, processor, family)

    # 3. Model
    model = load_model(model_args, training_args, config, family)
    peft_config = build_peft_config(model, model_args, training_args.trainable_parts, family)
    if peft_config is None:
        set_trainable_parts(model, training_args.trainable_parts, family)

    # 4. Trainer
    collator = None
    if isinstance(processor, ProcessorMixin):
        sides = find_placeholder_sides(dataset, training_args.trainable_parts)
        collator = DataCollatorForPumaPairs(processor, family, training_args.use_kl, placeholder_sides=sides)
    else:
        dataset = to_prompt_completion(dataset, processor)
    trainer = PumaKLTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("eval"),
        processing_class=processor,
        callbacks=[ProvenanceCallback(), CurvesCallback()],
        peft_config=peft_config,
    )
    require_fsdp(trainer)
    if trainer.is_world_process_zero():
        facts = describe_run(training_args, model, peft_config) | describe_software()
        facts["data"] = describe_data(
            reports, dataset, {"train": script_args.dataset_name, "eval": script_args.eval_dataset_name}
        )
        save_provenance(training_args.output_dir, merge_recipe(argv, recipe), facts)
        parts = count_parameters(trainer.model, family)
        name = f"{type(model).__name__} from {model_args.model_name_or_path}"
        print_startup(training_args, name, parts, data_lines(reports), len(trainer.train_dataset))

    # 5. Training
    signal.signal(signal.SIGTERM, lambda *_: setattr(trainer, "stop_requested", True))
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.stop_requested and trainer.state.global_step < trainer.state.max_steps:
        logger.warning(
            f"Stopped by SIGTERM after step {trainer.state.global_step}, checkpoint saved. Launch the same command with "
            "`--resume_from_checkpoint true` to go on."
        )
        end_process_group()
        return

    # 6. Saving
    trainer.save_model(_internal_call=True)  # without pushing, which comes when all is saved
    trainer.save_state()
    end_process_group()
    if trainer.is_world_process_zero():
        draw_curves(trainer.state.log_history, Path(training_args.output_dir) / CURVES)
        trainer.create_model_card()
        if training_args.push_to_hub:
            push_or_exit(training_args.output_dir)  # where its recipe says


if __name__ == "__main__":
    main(sys.argv[1:])
