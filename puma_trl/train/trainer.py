"""`PumaKLTrainer`: TRL's `SFTTrainer` with the pair step of Math-PUMA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from rich.text import Text
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from ..config import PumaKLConfig, rows_per_step
from ..data.collator import TEACHER, split_sides
from ..data.show import describe_sample
from ..errors import ConfigError
from ..models.adapters import below_adapters
from ..models.families import get_family
from ..models.parts import split_groups
from ..record.hub import CITATION, TAGS, write_card
from ..record.provenance import SIGNS, describe_trainer, read_provenance
from ..step.forward import SelfTeacher, add_pair_forward
from ..step.teacher import make_teacher
from ..step.tower_memo import TowerMemo
from .checkpoints import ExactCheckpoints
from .dropped import DroppedRows
from .metrics import ON_POLICY, StepMetrics, TokenMeans
from .on_policy import OnPolicy
from .precision import prepare_precision
from .prepare import COLUMNS, name_splits, prepare, prepare_model, prepare_rows
from .sampling import EpochLengthGroupedSampler, keep_last, mask_repeated_rows, require_batches
from .whole_model import describe_generation


@contextmanager
def _hide_settings(args: PumaKLConfig, is_pair_data: bool, has_limit: bool) -> Iterator[None]:
    """
    Hides settings from TRL: its padding-free batches are of texts, and go with no other collator; and for them it
    refuses `max_length` without packing, which rows that were checked keep to.
    """
    padding_free, max_length = args.padding_free, args.max_length
    if padding_free and has_limit and not args.packing:
        args.max_length = None
    args.padding_free = padding_free and not is_pair_data
    try:
        yield
    finally:
        args.padding_free, args.max_length = padding_free, max_length


class PumaKLTrainer(TokenMeans, ExactCheckpoints, SFTTrainer):
    """
    Trainer for Math-PUMA ([Math-PUMA: Progressive Upward Multimodal Alignment to Enhance Mathematical
    Reasoning](https://huggingface.co/papers/2408.08640)).

    With `use_kl=True` (stage 2) a step reads every problem twice: the model's own next-token distribution on the
    text-rich form, without gradient, teaches the vision-rich form through forward and reverse KL beside the
    cross-entropy. With `use_kl=False` (stages 1 and 3) the step is [`~trl.SFTTrainer`]'s.

    What the settings say holds whoever made the arguments, a recipe or Python: rows of any form are read and checked,
    the processor gets template and sizes of pictures, the named parts train.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained, or its id on the Hub or folder. `args.trainable_parts` says what trains; without it,
            what requires grad.
        args ([`PumaKLConfig`], *optional*):
            Configuration for this trainer.
        data_collator (`Callable`, *optional*):
            Defaults to [`DataCollatorForPumaPairs`] for a vision-language model. Another one is tried on the first
            row.
        train_dataset ([`~datasets.Dataset`]):
            Rows in one of the forms of docs/data.md, or as [`load_data`] returns them; for a text model also what
            [`~trl.SFTTrainer`] takes.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows to evaluate on, in the same forms; of several datasets none may be called `train`.
        processing_class ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`], *optional*):
            Processor of the model, or the tokenizer of a text model. Defaults to what lies beside the model.
        compute_loss_func, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, \
        preprocess_logits_for_metrics, quantization_config, peft_config, formatting_func (*optional*):
            As in [`~trl.SFTTrainer`]. With pairs there are no logits, so the functions of loss and logits are refused
            there, and `formatting_func` on vision-language models.

    Attributes:
        stop_requested (`bool`):
            Setting it on any process makes all of them save a checkpoint and stop at the next logging step, the same
            one everywhere; afterwards it is true on all.
        watch ([`Watch`]):
            Tells signs of collapse; its `stopped_by` is the one that has stopped the training, if one has.

    Raises:
        PumaError: if settings, data and model do not go together, or something that is given would have no effect.
        FloatingPointError: in training, if the loss of a micro-batch is not finite; its rows are named.
    """

    _tag_names = list(TAGS)
    _name = "PUMA"
    _paper = {
        "title": "Math-PUMA: Progressive Upward Multimodal Alignment to Enhance Mathematical Reasoning",
        "id": "2408.08640",
        "citation": CITATION,
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: PumaKLConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: ProcessorMixin | PreTrainedTokenizerBase | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable | None = None,
    ):
        args = args or PumaKLConfig("PUMA")
        functions = {
            "compute_loss_func": compute_loss_func,
            "compute_metrics": compute_metrics,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
            "formatting_func": formatting_func,
            "quantization_config": quantization_config,
        }
        given = prepare(model, args, processing_class, train_dataset, eval_dataset, data_collator, functions)
        self._is_pair_data, self.teacher_side = isinstance(given.processor, ProcessorMixin), given.teacher
        self.stop_requested = False
        with _hide_settings(args, self._is_pair_data, given.has_limit):
            super().__init__(
                model=model,
                args=args,
                data_collator=given.collator,
                train_dataset=given.train_dataset,
                eval_dataset=given.eval_dataset,
                processing_class=given.processor,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                peft_config=peft_config,
                **functions,
            )
        self._prepare_rows = partial(
            prepare_rows,
            args=args,
            processor=given.processor,
            config=self.model.config,
            formatting_func=formatting_func,
            teacher=given.teacher,
        )
        prepare_model(self.model, args, given)
        # Workaround (transformers 5.23, huggingface/transformers#40333): Qwen2.5-VL, Qwen3-VL and others declare
        # False, which would turn the token mean of the global batch into a mean of micro-batch means
        self.model_accepts_loss_kwargs = True
        # checked here instead, where the rows are known, and without a device synchronisation per micro-batch
        self.args.logging_nan_inf_filter = False
        self._step_metrics, self._dropped = StepMetrics(self.args.device), DroppedRows(self.args.output_dir)
        is_engine = self.is_deepspeed_enabled or self.is_fsdp_enabled
        prepare_precision(self.model, args, is_engine, self.is_fsdp_enabled, fresh=peft_config is not None)
        require_batches(self.train_dataset, args)
        self._require_fsdp()
        self._add_pair_step()

    def _require_fsdp(self) -> None:
        # Workaround (accelerate 1.15, no upstream issue found): it would run DDP without a word
        if parse_flag_from_env("ACCELERATE_USE_FSDP") and not self.is_fsdp_enabled:
            raise ConfigError(
                "The accelerate configuration asks for FSDP, which accelerate does not run on a CPU: it would run DDP "
                "instead. Launch with accelerate_configs/ddp.yaml, or on GPUs."
            )

    def _add_pair_step(self) -> None:
        base_model = below_adapters(self.model)
        if is_deepspeed_zero3_enabled() and "_weight_conversions" in vars(base_model):
            # Workaround (transformers 5.23, no upstream issue found): it keeps all renamings that it knows here, not
            # those that loading used, and saving would put `model.model.` before the language model's names
            base_model._weight_conversions = [each for each in base_model._weight_conversions if each.was_used()]
        self.teacher = make_teacher(self) if self.args.use_kl else SelfTeacher()
        memo = None
        if isinstance(self.teacher, SelfTeacher) and not self.is_fsdp_enabled and not is_deepspeed_zero3_enabled():
            memo = TowerMemo(base_model, get_family(base_model.config))
        add_pair_forward(base_model, self.args, self.teacher, memo, watch=partial(setattr, self, "_sft_output"))
        self._on_policy = OnPolicy(self) if self.args.on_policy_share else None
        self.generation_seen = describe_generation(base_model.generation_config)

    def describe_sample(self) -> Text:
        """Returns the first row as the model gets it (see [`describe_sample`]), for a terminal."""
        row = self.train_dataset[0]
        batch = self.data_collator([row]) if self._is_pair_data else row
        return describe_sample(batch, self.processing_class, self.teacher_side and self.teacher_side.processor)

    # Step

    def _begin_metrics(self, state: TrainerState) -> None:
        super()._begin_metrics(state)
        if self._on_policy is not None:
            self._on_policy.tell_if_idle(state)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None and self._is_pair_data:
            self._signature_columns = COLUMNS
        super()._set_signature_columns_if_needed()

    def _get_dataloader(self, *args, **kwargs) -> torch.utils.data.DataLoader:
        if kwargs.get("is_training"):
            return super()._get_dataloader(*args, **kwargs)
        with keep_last(self.args):
            return super()._get_dataloader(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if type(sampler) is LengthGroupedSampler:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            sampler = EpochLengthGroupedSampler(rows_per_step(self.args), sampler.lengths, seed)
        return sampler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        if self._on_policy is not None:
            self._on_policy.write_answers(batch_samples)
        if batch_samples:
            mask_repeated_rows(batch_samples[-1], self.accelerator, self.args.dataloader_drop_last, self.padding_free)
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        row_ids = inputs.pop("row_id", [])
        self._dropped.add(inputs.pop("dropped_rows", []), mode)
        self._step_metrics.add_positions(mode, inputs)
        for name in ("prompts", "blank_tokens"):
            inputs.pop(name, None), inputs.pop(f"{TEACHER}{name}", None)
        if self.args.use_kl:
            result = loss = self._pair_loss(model, inputs, num_items_in_batch, mode)
        else:
            if self._is_pair_data and "cu_seq_lens_q" in inputs:
                # TRL counts tokens by it, and else by positions, of which it knows one axis
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = result[0] if return_outputs else result
            output, self._sft_output = self._sft_output, None
            if output is not None:
                num_tokens = output.label_mask.sum()
                # the loss of an evaluation is a mean over the tokens of this rank's batch; that of training is logged
                sums = (loss * num_tokens, output.entropy.sum(), output.is_top1.sum(), num_tokens)
                self._step_metrics.add_sums(mode, torch.stack([value.detach().double() for value in sums]))
        if mode == "train":
            self._step_metrics.add_loss(row_ids, loss)
        return result

    def _pair_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None, mode: str
    ) -> torch.Tensor:
        completions = inputs.pop("completions", None)  # of a batch whose answers the student has written
        student, teacher = split_sides(inputs)
        lambda_kl = None if completions is None else 1.0
        output = model(**student, teacher_inputs=teacher, num_items_in_batch=num_items_in_batch, lambda_kl=lambda_kl)
        if completions is None:
            self._step_metrics.add_sums(mode, output.sums)
        else:
            self._step_metrics.add_sums(ON_POLICY, torch.cat((output.sums, completions)))
        loss = output.loss
        # `num_items_in_batch` counts the answer tokens of every rank, and the engines average gradients over ranks
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            rows = self._prepare_rows(name_splits(eval_dataset))
            eval_dataset = rows if isinstance(eval_dataset, dict) else rows["eval"]
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        return super().predict(self._prepare_rows({"test": test_dataset})["test"], ignore_keys, metric_key_prefix)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        mask_repeated_rows(inputs, self.accelerator, False, self.padding_free)
        return super().prediction_step(model, inputs, prediction_loss_only or self.args.use_kl, ignore_keys)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Writes the model card (see [`write_card`]), from `provenance.json` if the run script has written it.

        Args:
            model_name (`str`, *optional*):
                Title of the card. Defaults to the last part of the repository or folder.
            dataset_name (`str`, *optional*):
                Name of the training data, where there is no `provenance.json`.
            tags (`str` or `list[str]`, *optional*):
                Tags besides our own.
        """
        if not self.is_world_process_zero():
            return
        facts = read_provenance(self.args.output_dir)
        facts = facts or describe_trainer(self, dataset_name) | {SIGNS: self.watch.signs}
        tags = [tags] if isinstance(tags, str) else tags or []
        write_card(self.args.output_dir, facts, self.hub_model_id, tags, model_name)

    # Optimizer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.args.part_learning_rates:
            family = get_family(self.accelerator.unwrap_model(self.model).config)
            named = (self.model if model is None else model).named_parameters()
            split_groups(optimizer, named, family, self.args.part_learning_rates)
        return optimizer
