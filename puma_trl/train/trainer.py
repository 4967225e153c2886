"""`PumaKLTrainer`: TRL's `SFTTrainer` with the pair step of Math-PUMA."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import is_peft_model, parse_flag_from_env
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from ..config import PumaKLConfig
from ..data.collator import DataCollatorForPumaPairs, split_sides
from ..data.rows import ROW_COLUMNS
from ..models.families import get_family
from ..models.parts import split_groups
from ..record.hub import CITATION, TAGS, write_card
from ..record.provenance import describe_trainer, read_provenance
from ..step.forward import SelfTeacher, add_pair_forward
from ..step.teacher import make_teacher
from ..step.tower_memo import TowerMemo
from .checkpoints import ExactCheckpoints
from .metrics import StepMetrics, TokenMeans
from .precision import prepare_precision
from .sampling import EpochLengthGroupedSampler, mask_repeated_rows


# `length` is for length-grouped sampling, which reads the data set after the other columns are gone
COLUMNS = ["row_id", *ROW_COLUMNS, "length"]


class PumaKLTrainer(TokenMeans, ExactCheckpoints, SFTTrainer):
    """
    Trainer for Math-PUMA ([Math-PUMA: Progressive Upward Multimodal Alignment to Enhance Mathematical
    Reasoning](https://huggingface.co/papers/2408.08640)).

    With `use_kl=True` (stage 2) a step reads every problem twice: the model's own next-token distribution on the
    text-rich form, without gradient, teaches the vision-rich form through forward and reverse KL beside the
    cross-entropy. With `use_kl=False` (stages 1 and 3) the step is [`~trl.SFTTrainer`]'s.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained; what trains is what requires grad (see [`set_trainable_parts`]). A string is the id of
            a model on the Hub or a folder.
        args ([`PumaKLConfig`], *optional*):
            Configuration for this trainer.
        data_collator (`Callable`, *optional*):
            Defaults to [`DataCollatorForPumaPairs`] where the processing class is a processor.
        train_dataset ([`~datasets.Dataset`]):
            Checked rows, as [`load_data`] returns them; with a tokenizer as processing class, any data set that
            [`~trl.SFTTrainer`] takes.
        eval_dataset ([`~datasets.Dataset`], *optional*):
            Rows to evaluate on, in the same form.
        processing_class ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor of the model, or the tokenizer of a text model.
        callbacks (`list[~transformers.TrainerCallback]`, *optional*):
            Further callbacks.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter configuration; the base model is frozen then.

    Attributes:
        stop_requested (`bool`):
            Setting it on any process makes all of them save a checkpoint and stop at the next logging step, the same
            one everywhere; afterwards it is true on all.

    Raises:
        ValueError: if the pair step is asked of a text model, or packing of a vision-language one.
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
        model: str | PreTrainedModel,
        args: PumaKLConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: ProcessorMixin | PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
    ):
        args = args or PumaKLConfig("PUMA")
        if isinstance(processing_class, ProcessorMixin):
            if args.packing or args.padding_free:
                raise ValueError(
                    "`packing` and `padding_free` are not available for vision-language models. Set both to false."
                )
            # rows become tensors in the collator, where images are opened
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
            if data_collator is None:
                config = _load_config(model)
                data_collator = DataCollatorForPumaPairs(processing_class, get_family(config), use_kl=args.use_kl)
        elif args.use_kl:
            raise ValueError(
                f"`use_kl: true` needs the processor of a vision-language model as `processing_class`, but it is "
                f"{type(processing_class).__name__}. For stage 1 on a text model set `use_kl: false`."
            )
        self.stop_requested = False
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            peft_config=peft_config,
        )
        # Workaround (transformers 5.23, huggingface/transformers#40333): Qwen2.5-VL, Qwen3-VL and others declare
        # False, which would turn the token mean of the global batch into a mean of micro-batch means
        self.model_accepts_loss_kwargs = True
        # checked here instead, where the rows are known, and without a device synchronisation per micro-batch
        self.args.logging_nan_inf_filter = False
        self._step_metrics = StepMetrics(self.args.device)
        self._is_pair_data = isinstance(processing_class, ProcessorMixin)
        is_engine = self.is_deepspeed_enabled or self.is_fsdp_enabled
        prepare_precision(self.model, args, is_engine, self.is_fsdp_enabled, fresh=peft_config is not None)
        self._add_pair_step()
        # Workaround (accelerate 1.15, no upstream issue found): it would run DDP without a word
        if parse_flag_from_env("ACCELERATE_USE_FSDP") and not self.is_fsdp_enabled:
            raise ValueError(
                "The accelerate configuration asks for FSDP, which accelerate does not run on a CPU: it would run DDP "
                "instead. Launch with accelerate_configs/ddp.yaml, or on GPUs."
            )

    def _add_pair_step(self) -> None:
        base_model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        if is_deepspeed_zero3_enabled() and "_weight_conversions" in vars(base_model):
            # Workaround (transformers 5.23, no upstream issue found): it keeps all renamings that it knows here, not
            # those that loading used, and saving would put `model.model.` before the language model's names
            base_model._weight_conversions = [each for each in base_model._weight_conversions if each.was_used()]
        self.teacher = make_teacher(self) if self.args.use_kl else SelfTeacher()
        memo = None
        if isinstance(self.teacher, SelfTeacher) and not self.is_fsdp_enabled and not is_deepspeed_zero3_enabled():
            memo = TowerMemo(base_model, get_family(base_model.config))
        add_pair_forward(base_model, self.args, self.teacher, memo, watch=self._keep_sft_output)

    def _keep_sft_output(self, output: FusedCausalLMOutput) -> None:
        self._sft_output = output

    # Step

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None and self._is_pair_data:
            self._signature_columns = COLUMNS
        super()._set_signature_columns_if_needed()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if type(sampler) is LengthGroupedSampler:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            sampler = EpochLengthGroupedSampler(sampler.batch_size, sampler.lengths, seed)
        return sampler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        if batch_samples:
            mask_repeated_rows(batch_samples[-1], self.accelerator, self.args, self.padding_free)
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        row_ids = inputs.pop("row_id", [])
        self._step_metrics.add_positions(mode, inputs)
        if self.args.use_kl:
            result = loss = self._pair_loss(model, inputs, num_items_in_batch, mode)
        else:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = result[0] if return_outputs else result
            output, self._sft_output = self._sft_output, None
            if mode == "eval":  # the loss is a mean over the tokens of this rank's batch
                num_tokens = output.label_mask.sum()
                sums = (loss * num_tokens, output.entropy.sum(), output.is_top1.sum(), num_tokens)
                self._step_metrics.add_sums(mode, torch.stack([value.detach().double() for value in sums]))
        if mode == "train":
            self._step_metrics.add_loss(row_ids, loss)
        return result

    def _pair_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None, mode: str
    ) -> torch.Tensor:
        student, teacher = split_sides(inputs)
        output = model(**student, teacher_inputs=teacher, num_items_in_batch=num_items_in_batch)
        num_inputs = student["attention_mask"].sum()
        self._step_metrics.add_sums(mode, torch.cat((output.sums, num_inputs.to(output.sums.dtype)[None])))
        loss = output.loss
        # `num_items_in_batch` counts the answer tokens of every rank, and the engines average gradients over ranks
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        mask_repeated_rows(inputs, self.accelerator, self.args, self.padding_free)
        return super().prediction_step(model, inputs, prediction_loss_only or self.args.use_kl, ignore_keys)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Writes the model card (see [`write_card`]), from `provenance.json` if the run script has written it.

        Args:
            model_name (`str`, *optional*):
                Name of the model, where there is no repository yet.
            dataset_name (`str`, *optional*):
                Name of the training data, where there is no `provenance.json`.
            tags (`str` or `list[str]`, *optional*):
                Tags besides our own.
        """
        if not self.is_world_process_zero():
            return
        facts = read_provenance(self.args.output_dir) or describe_trainer(self, dataset_name)
        tags = [tags] if isinstance(tags, str) else tags or []
        write_card(self.args.output_dir, facts, self.hub_model_id or model_name, tags)

    # Optimizer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.args.part_learning_rates:
            family = get_family(self.accelerator.unwrap_model(self.model).config)
            named = (self.model if model is None else model).named_parameters()
            split_groups(optimizer, named, family, self.args.part_learning_rates)
        return optimizer


def _load_config(model: str | PreTrainedModel):
    return AutoConfig.from_pretrained(model) if isinstance(model, str) else model.config
