"""`PumaKLTrainer`: TRL's `SFTTrainer` with the pair step of Math-PUMA."""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from ..config import PumaKLConfig
from ..data.collator import DataCollatorForPumaPairs
from ..models.adapters import prepare_adapters
from ..models.families import get_family
from ..models.parts import split_groups
from ..record.hub import CITATION, TAGS, write_card
from ..record.provenance import describe_run, read_provenance
from ..step.forward import SUMS, SelfTeacher, SeparateTeacher, add_pair_forward
from ..step.teacher import AdapterEMACallback, make_teacher
from ..step.tower_memo import TowerMemo
from .sampling import EpochLengthGroupedSampler


# Written into a checkpoint when all ranks have written their parts, and before older checkpoints are deleted
COMPLETE_MARKER = "checkpoint_complete"
# In checkpoints, the moving average of a teacher
ADAPTER_AVERAGE = "adapter_average.safetensors"
AVERAGE_MODEL = "ema_teacher"
COLUMNS = ["row_id", "image_url", "instruction", "output", "image_url_2", "instruction_2", "output_2"]
# for length-grouped sampling, which reads the data set after the other columns are gone
COLUMNS += ["length"]


class PumaKLTrainer(SFTTrainer):
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
        # Sums over answer tokens since the last log, on the device; reduced over ranks only when logged
        self._sums: dict[str, torch.Tensor | int] = defaultdict(int)
        # Positions of the batches since the last log: (read, all)
        self._slots: dict[str, torch.Tensor | int] = defaultdict(int)
        # Row ids and loss of each micro-batch since the last check that all losses are finite
        self._unchecked: list[tuple[list[str], torch.Tensor]] = []
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
        # Qwen2.5-VL and Qwen3-VL declare False, which would turn the token mean of the global batch into a mean of
        # micro-batch means
        self.model_accepts_loss_kwargs = True
        # checked here instead, where the rows are known, and without a device synchronisation per micro-batch
        self.args.logging_nan_inf_filter = False
        self._is_pair_data = isinstance(processing_class, ProcessorMixin)
        base_model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        if is_deepspeed_zero3_enabled() and "_weight_conversions" in vars(base_model):
            # transformers 5.23 keeps all renamings that it knows here, not those that loading used, and saving would
            # put `model.model.` before the language model's names
            base_model._weight_conversions = [each for each in base_model._weight_conversions if each.was_used()]
        self._prepare_precision(fresh=peft_config is not None)
        self.teacher = make_teacher(self) if args.use_kl else SelfTeacher()
        memo = None
        if isinstance(self.teacher, SelfTeacher) and not self.is_fsdp_enabled and not is_deepspeed_zero3_enabled():
            memo = TowerMemo(base_model, get_family(base_model.config))
        add_pair_forward(base_model, args, self.teacher, memo)

    def _prepare_precision(self, fresh: bool) -> None:
        """Sees to it that what trains is kept in fp32, by us or by the engine."""
        mixed, is_engine = self.args.bf16 or self.args.fp16, self.is_deepspeed_enabled or self.is_fsdp_enabled
        if is_peft_model(self.model):
            # in half precision DeepSpeed keeps its own fp32 copies, and accelerate makes them for FSDP, but not beside
            # 4-bit weights; ZeRO-3 has sharded the parameters already
            is_4bit = getattr(self.model, "is_loaded_in_4bit", False)
            has_copies = mixed and is_engine and not (self.is_fsdp_enabled and is_4bit)
            if not has_copies and not is_deepspeed_zero3_enabled():
                prepare_adapters(self.model, autocast=mixed, fresh=fresh)
        elif not is_engine and (
            half := {p.dtype for p in self.model.parameters() if p.requires_grad} - {torch.float32}
        ):
            warnings.warn(
                f"The weights train in {', '.join(map(str, half))} without fp32 copies, so that small updates are rounded "
                "away. Set `dtype: float32` beside `bf16: true`, or use DeepSpeed, FSDP2 or adapters."
            )

    # Step

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # resumed from its last step: Trainer would take one more before it looks
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

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
            self._mask_repeated_rows(batch_samples[-1])
        return super()._get_num_items_in_batch(batch_samples, device)

    def _mask_repeated_rows(self, batch: dict[str, Any]) -> None:
        """
        Takes the rows that accelerate repeats to fill the last batch of an epoch out of the loss.

        Ranks must run the same number of batches, so the last ones are filled with rows from the start of the data.
        Counted twice, they would make the result depend on the number of processes. In padding-free batches (packing)
        rows are not told apart, and count.
        """
        state, num_processes = self.accelerator.gradient_state, self.accelerator.num_processes
        if num_processes == 1 or self.args.dataloader_drop_last or not state.end_of_dataloader or self.padding_free:
            return
        dataset = state.active_dataloader.dataset
        if "labels" not in batch or isinstance(dataset, torch.utils.data.IterableDataset):
            return
        # accelerate's own `remainder` is unknown in an epoch that is resumed
        batch_size = batch["labels"].shape[0]
        remainder = len(dataset) % (batch_size * num_processes)
        if remainder == 0:
            return
        num_real = remainder - self.accelerator.process_index * batch_size
        for name in ("labels", "teacher_labels"):
            if name in batch:
                batch[name][max(num_real, 0) :] = -100

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        row_ids = inputs.pop("row_id", [])
        for name in ("attention_mask", "teacher_attention_mask"):
            if name in inputs:
                mask = inputs[name]
                self._slots[mode] += torch.stack((mask.sum(), mask.new_full((), mask.numel())))
        if self.args.use_kl:
            result = loss = self._pair_loss(model, inputs, num_items_in_batch, mode)
        else:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = result[0] if return_outputs else result
        if mode == "train":
            self._unchecked.append((row_ids, loss.detach()))
        return result

    def _pair_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None, mode: str
    ) -> torch.Tensor:
        teacher_inputs = {name: inputs.pop(name) for name in list(inputs) if name.startswith("teacher_")}
        teacher_inputs = {name.removeprefix("teacher_"): value for name, value in teacher_inputs.items()}
        num_tokens = inputs["attention_mask"].sum().double()
        output = model(**inputs, teacher_inputs=teacher_inputs, num_items_in_batch=num_items_in_batch)
        self._sums[mode] += torch.cat((output.sums, num_tokens[None]))
        loss = output.loss
        # `num_items_in_batch` counts the answer tokens of every rank, and the engines average gradients over ranks
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        self._mask_repeated_rows(inputs)
        return super().prediction_step(model, inputs, prediction_loss_only or self.args.use_kl, ignore_keys)

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        slots, sums = self._slots.pop(mode, 0), self._sums.pop(mode, 0)
        counts = torch.cat([value.double() for value in (slots, sums) if torch.is_tensor(value)] or [torch.empty(0)])
        totals = self._reduce(counts.to(self.args.device))
        if torch.is_tensor(slots):
            num_read, num_slots, *totals = totals
            self._metrics[mode]["padding_share"] = [1 - num_read / num_slots]
        if mode == "train" and self.args.part_learning_rates and "learning_rate" in logs:
            logs |= {f"learning_rate/{group['part']}": group["lr"] for group in self.optimizer.param_groups}
        if torch.is_tensor(sums):
            metrics = self._pair_metrics(dict(zip((*SUMS, "input_tokens"), totals, strict=True)), mode)
            for name, value in metrics.items():
                self._metrics[mode][name] = [value]
            if mode == "eval" and "eval_loss" in logs:
                # the exact mean over tokens instead of Trainer's mean over batches
                logs["eval_loss"] = metrics["kl"] * self.args.lambda_kl + metrics["ce"] * (1 - self.args.lambda_kl)
        super().log(logs, start_time)

    def _pair_metrics(self, sums: dict[str, float], mode: str) -> dict[str, float]:
        if mode == "train":
            self._total_train_tokens += int(sums["input_tokens"])
        count = max(sums["num_tokens"], 1.0)
        means = {
            name: sums[name] / count for name in ("kl", "forward_kl", "reverse_kl", "ce", "teacher_ce", "entropy")
        }
        return means | {
            "mean_token_accuracy": sums["correct"] / count,
            "teacher_mean_token_accuracy": sums["teacher_correct"] / count,
            "num_tokens": self._total_train_tokens,
        }

    def _reduce(self, counts: torch.Tensor) -> list[float]:
        """
        Sums `counts` over ranks, and in the same reduction tells all ranks of what one of them has seen.

        Stops the run, on all ranks, if a loss since the last call was NaN or infinite on one; saves and stops, on all
        ranks, if one was asked to.
        """
        unchecked, self._unchecked = self._unchecked, []
        losses = torch.stack([counts.new_zeros((), dtype=torch.float32), *(loss.float() for _, loss in unchecked)])
        bad = (~losses.isfinite()).any()[None].double()
        stop = torch.tensor([self.stop_requested], dtype=torch.double, device=bad.device)
        any_bad, any_stop, *totals = self.accelerator.reduce(torch.cat((bad, stop, counts.double())), "sum").tolist()
        if any_bad:
            self._refuse_losses(unchecked)
        if any_stop:
            self.stop_requested = self.control.should_training_stop = self.control.should_save = True
        return totals

    def _refuse_losses(self, unchecked: list[tuple[list[str], torch.Tensor]]) -> None:
        bad = [(rows, loss.item()) for rows, loss in unchecked if not loss.isfinite()]
        rows = "; ".join(f"loss {loss} at rows {', '.join(rows)}" for rows, loss in bad[:3])
        raise FloatingPointError(
            f"The loss is not finite by step {self.state.global_step}: {rows or 'the rows are named by another rank'}. "
            f"The last checkpoint in {self.args.output_dir} was written before that and is good. Look at these rows, "
            "or lower `learning_rate` or `max_grad_norm`, then resume."
        )

    # Checkpoints

    def _save_checkpoint(self, model, trial):
        self._reduce(torch.empty(0, device=self.args.device))
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
        # Trainer's own way loads non-strictly under names that vision-language checkpoints do not use, and so keeps
        # the base weights (transformers 5.23). `from_pretrained` knows the names.
        _load_weights(self.model if model is None else model, resume_from_checkpoint)

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
            _load_weights(self.teacher.model, Path(checkpoint) / AVERAGE_MODEL)

    def _load_best_model(self) -> None:
        if is_peft_model(self.model) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        _load_weights(self.model, self.state.best_model_checkpoint)

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
        facts = read_provenance(self.args.output_dir)
        if facts is None:
            is_peft = is_peft_model(self.model)
            model = self.model.get_base_model() if is_peft else self.model
            facts = describe_run(self.args, model, self.model.peft_config["default"] if is_peft else None)
            if isinstance(self.train_dataset, Dataset):
                sources = [dataset_name] if dataset_name else []
                rows = {"sources": sources, "rows_kept": len(self.train_dataset), "dropped": {}}
                facts["data"] = {"train": rows}
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


def rows_per_step(args: PumaKLConfig) -> int:
    """Returns the number of rows of an optimizer step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def _load_config(model: str | PreTrainedModel):
    return AutoConfig.from_pretrained(model) if isinstance(model, str) else model.config


def _load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    loaded = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True)
