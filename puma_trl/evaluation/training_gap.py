"""The modality gap by generation while a model trains: measured on held-out pairs, logged, and good to choose by."""

import copy
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import ProcessorMixin, Trainer, TrainerCallback

from ..config import PumaKLConfig, PumaScriptArguments
from ..data.files import find_sources
from ..data.load import load_data
from ..data.policy import DataReport
from ..data.shared import word_shared
from ..errors import ConfigError, DataError
from ..models.families import Family
from ..train.trainer import PumaKLTrainer
from ..train.whole_model import whole_model
from .gap_answers import answer_sides, join_answers, longest_reply
from .gap_summary import summarise_answers
from .local_model import Generator


logger = get_logger(__name__)

REMEDY = "Name pairs that are held out."
# What the best model may be chosen by, and what is logged besides
METRICS = ("text_rich_accuracy", "vision_rich_accuracy", "gap", "agreement")
LENGTHS = ("text_rich_tokens", "vision_rich_tokens")


def load_gap_pairs(
    data: PumaScriptArguments,
    args: PumaKLConfig,
    processor: ProcessorMixin,
    family: Family,
    trained: DataReport,
) -> Dataset | None:
    """
    Loads and checks the pairs on which a run measures its gap, by the rules of training.

    Args:
        data ([`PumaScriptArguments`]):
            `gap_dataset_name` is read, of a dataset of the Hub its `dataset_test_split`. The names of the data to
            train on are looked at.
        args ([`PumaKLConfig`]):
            Training arguments.
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the model.
        family ([`Family`]):
            Its family.
        trained ([`DataReport`]):
            What [`load_data`] told of the data to train on.

    Returns:
        The pairs, or `None` where no gap is measured.

    Raises:
        ConfigError: if the model reads no pictures, or the best model is chosen by what is not measured.
        DataError: if the pairs cannot be used, or are trained on.
    """
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if data.gap_dataset_name is None:
        if metric in METRICS:
            raise ConfigError(
                f"`metric_for_best_model: {metric}` is measured on pairs: name them with `gap_dataset_name`, and set "
                "`gap_eval_steps`."
            )
        return None
    if not isinstance(processor, ProcessorMixin):
        raise ConfigError("`gap_dataset_name` is set, but the model reads no pictures. Leave it out.")
    named = ((data.dataset_name, data.dataset_train_split), (data.gap_dataset_name, data.dataset_test_split))
    sources = [find_sources(names, args.image_root, data.dataset_config, split) for names, split in named]
    identities = {source.identity for source in sources[0]}
    shared = next((source for source in sources[1] if source.identity in identities), None)
    if shared is not None:
        raise DataError(f"`gap_dataset_name`: '{shared.path or shared.name}' is trained on. {REMEDY}")
    settings = copy.copy(args)
    settings.use_kl, settings.answer_mismatch, settings.max_length = True, "student", None
    settings.on_policy_share = 0.0  # replies are compared with answers
    settings.columns = args.columns if args.use_kl else None  # which is of one-sided rows
    pairs = PumaScriptArguments(
        dataset_name=data.gap_dataset_name,
        dataset_config=data.dataset_config,
        dataset_train_split=data.dataset_test_split,
    )
    splits, reports = load_data(pairs, settings, processor, family)
    # without KL one side is trained on, and where answers are sampled, prompts alone
    kind = "side_digest" if not args.use_kl else "prompt_digest" if args.on_policy_share else "digest"
    line = word_shared("gap", reports["train"].digests[kind], trained.digests[kind], REMEDY)
    if line is not None:
        logger.warning(line)
    return splits["train"]


class GapCallback(TrainerCallback):
    """
    Measures the gap every so many steps and at the last one, on all processes, and logs it as `eval_gap`,
    `eval_text_rich_accuracy`, `eval_vision_rich_accuracy` and `eval_agreement`, with the interval of the gap and the
    mean lengths of replies.

    Args:
        trainer ([`PumaKLTrainer`]):
            The trainer, whose `processing_class` reads the pairs.
        pairs ([`~datasets.Dataset`]):
            What [`load_gap_pairs`] returned.
        steps (`int`):
            Optimizer steps between two measurements. Where the best model is chosen by one of the metrics, each
            evaluation measures it too.
    """

    def __init__(self, trainer: PumaKLTrainer, pairs: Dataset, steps: int):
        self.trainer, self.pairs, self.steps = trainer, pairs, steps
        self.measured: tuple[int, dict[str, float]] | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        name = (args.metric_for_best_model or "").removeprefix("eval_")
        if name in METRICS and not self._is_measured(state.global_step):
            self._measure(state.global_step)
        if metrics is not None and self._is_measured(state.global_step):
            metrics |= self.measured[1]  # among which the trainer looks for that of the best model

    def _is_measured(self, step: int) -> bool:
        return self.measured is not None and self.measured[0] == step

    def _measure(self, step: int) -> None:
        trainer, is_training = self.trainer, self.trainer.model.training
        should_log = trainer.control.should_log
        trainer.pause_clock()
        summary = measure_gap(trainer, self.pairs)
        logs = {f"eval_{name}": summary[name] for name in METRICS + LENGTHS}
        logs |= {"eval_gap_low": summary["gap_interval"][0], "eval_gap_high": summary["gap_interval"][1]}
        self.measured = (step, logs)
        # what training has measured since its last log, and that log, if this step has one, are still to come
        trainer.model.eval()
        trainer.log(dict(logs))
        trainer.model.train(is_training)
        trainer.control.should_log = should_log


def measure_gap(trainer: Trainer, pairs: Dataset) -> dict[str, Any]:
    """
    Measures the gap of the model in training; its state is afterwards as it was. Each process answers a share.

    Returns:
        What [`summarise_answers`] returns, the same on all processes.
    """
    accelerator, args = trainer.accelerator, trainer.args
    rank, ranks = accelerator.process_index, accelerator.num_processes
    with whole_model(trainer) as model:
        generator = Generator(model, trainer.processing_class, args.per_device_eval_batch_size, longest_reply(pairs))
        answers = answer_sides(generator, pairs, "gap", lambda batches: batches[rank::ranks])
    accelerator.wait_for_everyone()
    return summarise_answers(join_answers(pairs, gather_object([answers]) if ranks > 1 else [answers]))
