"""
Runs one stage of Math-PUMA from a recipe.

```bash
accelerate launch --config_file accelerate_configs/zero2_8xa100.yaml puma_trl/run.py recipes/stage2.yaml
accelerate launch --config_file accelerate_configs/cpu.yaml puma_trl/run.py recipes/mini/stage2.yaml --max_steps 20
accelerate launch -m puma_trl.run --config recipes/stage3.yaml --resume_from_checkpoint true
```
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puma_trl.entry import run_command  # before the libraries that it quietens


# isort: split
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import DatasetDict
from rich.console import Console
from transformers import IntervalStrategy, ProcessorMixin, set_seed

from puma_trl.config import as_list
from puma_trl.data.load import load_data
from puma_trl.data.policy import DataReport
from puma_trl.errors import CollapseError, ConfigError, PumaError
from puma_trl.evaluation.training_gap import GapCallback, load_gap_pairs
from puma_trl.files import naming_disk
from puma_trl.models.adapters import below_adapters, build_peft_config
from puma_trl.models.families import get_family
from puma_trl.models.load import load_config, load_model, load_processor
from puma_trl.models.parts import check_rates_by_name, count_parameters
from puma_trl.models.probe import check_attention
from puma_trl.models.teacher_model import describe_teacher
from puma_trl.recipe import parse_recipe, split_recipe
from puma_trl.record.curves import CurvesCallback, draw_curves
from puma_trl.record.ending import next_commands, print_end
from puma_trl.record.hub import CURVES, check_login, push_saved
from puma_trl.record.provenance import (
    ProvenanceCallback,
    describe_data,
    describe_software,
    describe_trainer,
    save_provenance,
    saved_recipe,
)
from puma_trl.record.report import describe_cropping, print_startup
from puma_trl.train.prepare import prepare_readers
from puma_trl.train.resume import find_checkpoint, is_finished, on_main_process
from puma_trl.train.signals import end_on_signals, stop_on_signals
from puma_trl.train.space import describe_space
from puma_trl.train.trainer import PumaKLTrainer
from puma_trl.train.unused import name_idle


logger = get_logger(__name__)


def end_process_group() -> None:
    """
    Ends the process group, so that the process can end after it.

    Workaround (PyTorch 2.14, pytorch/pytorch#190489): DDP holds the group, and so its threads, beyond that. A thread
    of gloo that drops the tensor of the last collective waits for the interpreter's lock, and aborts the process
    (SIGABRT) if the interpreter ends meanwhile.
    """
    if torch.distributed.is_initialized():
        time.sleep(0.5)  # leaves the lock to such threads
        PartialState().destroy_process_group()


@contextmanager
def telling_refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Lets settings that TRL and transformers refuse, by errors of these kinds, be an error of the user's."""
    try:
        yield
    except PumaError:
        raise
    except kinds as error:
        raise ConfigError(str(error)) from error


def main(argv: list[str]) -> int | None:
    """Runs the stage that the command line describes; returns the exit code of a run that a signal has stopped."""
    end_on_signals()
    # 1. Recipe
    script_args, training_args, model_args, values = parse_recipe(argv)
    training_args.trainable_parts = training_args.trainable_parts or ["all"]
    training_args.disable_tqdm |= "disable_tqdm" not in values and not sys.stderr.isatty()  # bars, where none are seen
    for settings in (script_args, model_args):  # the trainer names those of its own
        name_idle(settings)
    check_login(training_args)
    if training_args.push_to_hub:
        values["hub_model_id"] = training_args.hub_model_id  # as the Hub calls it, for the push at the end
    checkpoint = find_checkpoint(training_args)
    if checkpoint and on_main_process(is_finished, checkpoint, training_args):
        logger.warning(f"The run in {training_args.output_dir} has come to its end: nothing is left to do.")
        return None
    set_seed(training_args.seed)

    # 2. Data
    config = load_config(model_args, training_args)
    attention = check_attention(model_args, training_args, config)
    processor = load_processor(model_args, training_args)
    family = get_family(config)
    check_rates_by_name(training_args, as_list(model_args.lora_modules_to_save), family)
    teacher = prepare_readers(training_args, processor, config, model_args.attn_implementation)
    dataset, reports = load_data(script_args, training_args, processor, family, teacher)
    gap_pairs = load_gap_pairs(script_args, training_args, processor, family, reports["train"])

    # 3. Model
    model = load_model(model_args, training_args, config, family)
    peft_config = build_peft_config(model, model_args, training_args.trainable_parts, family)

    # 4. Trainer
    with telling_refusals(ValueError, ImportError):
        trainer = PumaKLTrainer(
            model=model,
            args=training_args,
            train_dataset=dataset["train"],
            eval_dataset=dataset.get("eval"),
            processing_class=processor,
            callbacks=[ProvenanceCallback(), CurvesCallback()],
            peft_config=peft_config,
        )
    if gap_pairs is not None:
        trainer.add_callback(GapCallback(trainer, gap_pairs, script_args.gap_eval_steps))
    if checkpoint:
        trainer.compare_checkpoint(checkpoint)
    if trainer.is_world_process_zero():
        record_start(trainer, (script_args, model_args, values, attention), dataset, reports)
    if script_args.dry_run:
        return end_process_group()

    # 5. Training
    exit_code = stop_on_signals(trainer)
    with telling_refusals(ImportError):  # of optimizers whose packages are not installed
        trainer.train(resume_from_checkpoint=checkpoint or False)  # which `find_checkpoint` has decided
    if trainer.stop_requested and trainer.state.global_step < trainer.state.max_steps:
        return end_early(trainer, exit_code())

    # 6. Saving
    if trainer.eval_dataset is not None and training_args.eval_strategy == IntervalStrategy.NO:
        trainer.evaluate()
    return save(trainer, split_recipe(argv)[0])


def end_early(trainer: PumaKLTrainer, exit_code: int) -> int:
    """Tells why a run was stopped, ends the process group, and returns the exit code that a signal has asked for."""
    step = trainer.state.global_step
    if trainer.watch.stopped_by is not None:
        raise CollapseError(
            f"Stopped at step {step}, checkpoint saved: {trainer.watch.stopped_by} To go on in spite of it, launch "
            "the same command with `--resume_from_checkpoint true`."
        )
    logger.warning(
        f"Stopped by {'SIGINT' if exit_code else 'SIGTERM'} after step {step}, checkpoint saved. Launch the same "
        "command with `--resume_from_checkpoint true` to go on."
    )
    end_process_group()
    return exit_code


def record_start(trainer: PumaKLTrainer, given: tuple, dataset: DatasetDict, reports: dict[str, DataReport]) -> None:
    """Writes down what the run is made of, and prints the table that opens it and its first row."""
    script_args, model_args, values, attention = given
    args, model = trainer.args, below_adapters(trainer.model)
    facts = describe_trainer(trainer) | describe_software()
    if trainer.resumed:
        facts["resumed"] = list(trainer.resumed)
    sources = {"train": script_args.dataset_name, "eval": script_args.eval_dataset_name}
    facts["data"] = describe_data(reports, dataset, sources)
    save_provenance(args.output_dir, saved_recipe(values), facts)
    name = f"{type(model).__name__} from {model_args.model_name_or_path}"
    parts = count_parameters(trainer.model, get_family(model.config))
    teacher = trainer.teacher.model if args.teacher == "model" else None
    more = {
        "Teacher model": "" if teacher is None else describe_teacher(args, teacher),
        "Attention": attention,
        "Disk": describe_space(trainer),
        "Cut off": describe_cropping(dataset["train"], trainer.processing_class),
    }
    print_startup(args, name, parts, reports, len(trainer.train_dataset), more)
    Console().print(trainer.describe_sample())


def save(trainer: PumaKLTrainer, recipe: str | None) -> None:
    """Saves what the run has made and pushes it if the recipe says so; ends the process group in between."""
    with naming_disk(trainer.args.output_dir):
        trainer.save_model(_internal_call=True)  # without pushing, which comes when all is saved
        trainer.save_state()
    end_process_group()
    if trainer.is_world_process_zero():
        draw_curves(trainer.state.log_history, Path(trainer.args.output_dir) / CURVES)
        trainer.create_model_card()
        is_peft, args = is_peft_model(trainer.model), trainer.args
        commands = next_commands(args, recipe, is_peft, isinstance(trainer.processing_class, ProcessorMixin))
        first_step = trainer.resumed[-1]["step"] if trainer.resumed else 0
        print_end(args, trainer.state, commands, first_step, trainer.watch.signs.values())
        if args.push_to_hub:
            push_saved(args.output_dir)  # where its recipe says


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
