"""The settings of a run, typed and checked: `PumaKLConfig` and `PumaScriptArguments`."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import get_scheduler
from trl import SFTConfig

from .best import choose_direction
from .checks import check_columns, check_teacher, read_rates
from .errors import ConfigError
from .fields import check_values
from .on_policy_config import OnPolicyConfig, check_on_policy
from .redact import hide_secrets
from .vllm_config import VLLMConfig, check_vllm


TEACHERS = ("live", "frozen", "ema", "model")
FOLLOWING = ("reduce_lr_on_plateau", "greedy")  # schedules that follow `metric_for_best_model`


def as_list(value: str | list[str] | None) -> list[str]:
    """Splits a comma-separated string, or each item of a list of such strings, into its stripped, non-empty parts."""
    if value is None:
        return []
    items = [value] if isinstance(value, str) else value
    return [part.strip() for item in items for part in str(item).split(",") if part.strip()]


def as_names(value: str | list[str] | None) -> list[str]:
    """Returns the names of datasets, `~` expanded: a list as it is, one that exists as it is, else its parts."""
    names = [value] if isinstance(value, str) else [name for name in value or [] if str(name).strip()]
    # a command line makes a list of the one value that it has
    names = as_list(names) if len(names) == 1 and not os.path.exists(os.path.expanduser(names[0])) else names
    return [os.path.expanduser(name) for name in names]


@dataclass
class PumaKLConfig(VLLMConfig, OnPolicyConfig, SFTConfig):
    r"""
    Configuration class for the [`PumaKLTrainer`].

    This class includes only the parameters that are specific to Math-PUMA training. Please refer to [`~trl.SFTConfig`]
    for training arguments, and to [`OnPolicyConfig`] and [`VLLMConfig`] for answers that the student writes itself.

    Args:
        use_kl (`bool`, *optional*, defaults to `True`):
            Whether the step is a pair step (stage 2 of the paper). With `False` it is TRL's SFT step (stages 1 and 3),
            on the vision-rich side when the data has pairs.
        alpha_kl (`float`, *optional*, defaults to `0.5`):
            Weight of the forward KL(teacher‖student) in the KL term; the reverse KL(student‖teacher) gets
            `1 - alpha_kl`.
        lambda_kl (`float`, *optional*, defaults to `0.1`):
            Weight of the KL term in the loss; the cross-entropy gets `1 - lambda_kl`.
        temp_kl (`float`, *optional*, defaults to `1.0`):
            Temperature of both distributions in the KL term, which is multiplied by its square. The cross-entropy is
            always taken at temperature 1.
        standardize_logits (`bool`, *optional*, defaults to `False`):
            Whether to shift each row of logits to mean 0 and scale it to standard deviation 1 over the vocabulary
            before the temperature, in the KL term only ([Logit Standardization in Knowledge
            Distillation](https://huggingface.co/papers/2403.01427)).
        teacher (`str`, *optional*, defaults to `"live"`):
            Who answers the text-rich side: `"live"`, the model being trained, as in the paper; `"frozen"`, its weights
            at the start of the stage (with adapters: the adapters switched off, at no cost in memory); `"ema"`, their
            exponential moving average (with adapters: a second adapter); `"model"`, another one with the same tokens.
        teacher_update_rate (`float`, *optional*, defaults to `0.05`):
            Share of the student's weights that enters the `"ema"` teacher at each synchronisation.
        teacher_sync_steps (`int`, *optional*, defaults to `1`):
            Number of optimizer steps between two synchronisations of the `"ema"` teacher.
        teacher_model_name_or_path (`str`, *optional*):
            Folder or id on the Hub of the `"model"` teacher: a language model, or a vision-language model.
        teacher_model_revision (`str`, *optional*):
            Branch, tag or commit of its repository.
        teacher_model_init_kwargs (`dict[str, Any]`, *optional*):
            Arguments of `from_pretrained`, such as `{dtype: bfloat16}`. Defaults to the student's dtype and attention.
        teacher_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether its language model is loaded in 4 bits (nf4).
        stop_on_collapse (`bool`, *optional*, defaults to `False`):
            Whether a sign of collapse (see [`~train.watch.Watch`]) saves a checkpoint and stops the training, besides
            being told.
        hub_strategy (`str`, *optional*, defaults to `"end"`):
            When to push. Trainer's `"every_save"` also pushes `dropped_rows.jsonl`, which is data.
        trainable_parts (`list[str]`, *optional*):
            Parts of the model to train: any of `language_model`, `aligner`, `vision_tower_low`, `vision_tower_high`,
            `vision_tower` (both) or `all`, as a list or separated by commas. An entry that ends with a dot is a prefix
            of parameter names. Without it all parts train under `run.py`, and in Python what requires grad.
        part_learning_rates (`dict[str, float]`, *optional*):
            Learning rates of single parts, such as `{aligner: 1e-4}`; the other parts use `learning_rate`.
        image_root (`str`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of the data file.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            What happens to rows that cannot be used: `"error"` stops before training and names them; `"drop"` leaves
            them out and writes them to `dropped_rows.jsonl` in the output folder.
        answer_mismatch (`str`, *optional*, defaults to `"error"`):
            What happens to pairs whose two answers differ: `"error"`, `"drop"`, or `"student"`, which gives the
            teacher the student's answer.
        columns (`dict[str, str | list[str]]`, *optional*):
            Where the data calls its columns otherwise: our column → theirs, such as `{image_url_2: picture}`, with
            dots into nested ones (`{output: answer.text}`); pictures may be in several (`{image_url: [a, b]}`).
        special_tokens (`str`, *optional*, defaults to `"error"`):
            What happens to special tokens of the model in a text of the data: `"error"`, the row cannot be used (see
            `bad_rows`), or `"escape"`, they are encoded as plain text.
        min_pixels (`int`, *optional*), max_pixels (`int`, *optional*):
            Pictures with fewer or more pixels are enlarged or reduced to that by the processor, with which both are
            saved. Refused for families whose processor cannot.
        decode_images (`bool`, *optional*, defaults to `False`):
            Whether the check before training decodes every picture, which finds what headers, ends and checksums do
            not tell.
        allow_changed_data (`bool`, *optional*, defaults to `False`):
            Whether a run that is resumed goes on with other rows, or rows in another order, than its checkpoint's;
            both are recorded.
        allow_text_only (`bool`, *optional*, defaults to `False`):
            Whether the aligner and vision towers may train in stage 3 on data without any picture.

    Raises:
        ValueError: if a value is out of its range.
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS + ["part_learning_rates", "columns", "teacher_model_init_kwargs"]
    _VALID_DICT_FIELDS += ["generation_kwargs"]

    use_kl: bool = field(
        default=True,
        metadata={"help": "Whether the step is a pair step (stage 2) rather than TRL's SFT step (stages 1 and 3)."},
    )
    alpha_kl: float = field(
        default=0.5,
        metadata={"help": "Weight of the forward KL in the KL term; the reverse KL gets `1 - alpha_kl`."},
    )
    lambda_kl: float = field(
        default=0.1,
        metadata={"help": "Weight of the KL term in the loss; the cross-entropy gets `1 - lambda_kl`."},
    )
    temp_kl: float = field(
        default=1.0,
        metadata={"help": "Temperature of both distributions in the KL term, which is multiplied by its square."},
    )
    standardize_logits: bool = field(
        default=False,
        metadata={"help": "Whether to standardise each row of logits over the vocabulary, in the KL term only."},
    )
    teacher: str = field(
        default="live",
        metadata={
            "help": "Who answers the text-rich side: the model itself ('live'), its weights at the start of the stage "
            "('frozen'), their moving average ('ema') or another model with the same tokens ('model').",
            "choices": list(TEACHERS),
        },
    )
    teacher_update_rate: float = field(
        default=0.05,
        metadata={"help": "Share of the student's weights that enters the 'ema' teacher at each synchronisation."},
    )
    teacher_sync_steps: int = field(
        default=1,
        metadata={"help": "Number of optimizer steps between two synchronisations of the 'ema' teacher."},
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or id on the Hub of the 'model' teacher."}
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the teacher's repository on the Hub."}
    )
    teacher_model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of `from_pretrained` for the teacher, such as its `dtype`."}
    )
    teacher_load_in_4bit: bool = field(
        default=False, metadata={"help": "Load the language model of the teacher in 4 bits."}
    )
    stop_on_collapse: bool = field(
        default=False, metadata={"help": "Save a checkpoint and stop at the first sign of collapse."}
    )
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "When to push. Trainer's default, 'every_save', also pushes `dropped_rows.jsonl`, which is data, "
            "while the run goes on."
        },
    )
    trainable_parts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts to train: any of language_model, aligner, vision_tower_low, vision_tower_high, or all; an "
            "entry that ends with a dot is a prefix of parameter names."
        },
    )
    part_learning_rates: dict | str | None = field(
        default=None,
        metadata={"help": "Learning rates of single parts; the other parts use `learning_rate`."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    bad_rows: str = field(
        default="error",
        metadata={"help": "What happens to rows that cannot be used.", "choices": ["error", "drop"]},
    )
    answer_mismatch: str = field(
        default="error",
        metadata={
            "help": "What happens to pairs whose two answers differ.",
            "choices": ["error", "drop", "student"],
        },
    )
    columns: dict | str | None = field(
        default=None,
        metadata={"help": "Our column → the column of the data that holds it, with dots into nested ones."},
    )
    special_tokens: str = field(
        default="error",
        metadata={
            "help": "Special tokens of the model in a text: the row cannot be used, or they are plain text.",
            "choices": ["error", "escape"],
        },
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Pictures with fewer pixels are enlarged, where the family can."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Pictures with more pixels are reduced, where the family can."}
    )
    decode_images: bool = field(
        default=False, metadata={"help": "Decode every picture once before training, not only its header."}
    )
    allow_changed_data: bool = field(
        default=False,
        metadata={"help": "Allow a resumed run to go on with other rows, or another order, than its checkpoint's."},
    )
    allow_text_only: bool = field(
        default=False, metadata={"help": "Allow more than the language model to train on rows without any picture."}
    )

    def __post_init__(self):
        _check_fields(self)
        if self.trainable_parts is not None:
            self.trainable_parts = as_list(self.trainable_parts)
        if self.trainable_parts == []:
            raise ConfigError("`trainable_parts` is empty, so nothing would train. Name the parts, or `all`.")
        if self.use_kl and self.packing:
            raise ConfigError(
                "`packing` is not available with `use_kl: true`: the two sides of a pair have different lengths. Set "
                "it to false; `padding_free: true` leaves no padding either."
            )
        if self.padding_free and self.neftune_noise_alpha:
            raise ConfigError(
                "`neftune_noise_alpha` does not go with `padding_free: true`: its noise is scaled by the length of a "
                "batch, which is that of all rows there. Leave one of them out."
            )
        if self.activation_checkpointing is None:  # TRL 1.16 sets the old name, and transformers 5.23 warns of it
            self.activation_checkpointing = self.gradient_checkpointing
        given = self.greater_is_better  # which transformers sets to true for all that does not end in `loss`
        super().__post_init__()
        if self.metric_for_best_model is not None:
            self._set_direction(choose_direction(self.metric_for_best_model, given))
        plain = {"label_smoothing_factor": 0, "loss_type": "nll"}
        others = [f"`{name}: {getattr(self, name)}`" for name in plain if getattr(self, name) != plain[name]]
        if self.use_kl and others:
            raise ConfigError(
                f"{' and '.join(others)} would change TRL's own loss, which `use_kl: true` replaces. Leave it out, or "
                "set `use_kl: false`."
            )
        if self.part_learning_rates is not None:
            self.part_learning_rates = read_rates(self.part_learning_rates)
        check_teacher(self)
        check_on_policy(self)
        check_vllm(self)
        self._check_training_settings()
        self._check_data_settings()

    def to_dict(self) -> dict[str, Any]:
        return hide_secrets(super().to_dict())  # which trackers keep

    def __getstate__(self) -> dict[str, Any]:
        return hide_secrets(vars(self)) | {"hub_token": None}  # for `training_args.bin`, which is pushed

    def _set_direction(self, is_greater_better: bool | None) -> None:
        """Tells the choice of the best model, and a schedule that follows the metric, which way round it is."""
        if is_greater_better is not None:
            self.greater_is_better = is_greater_better
        if self.lr_scheduler_type in FOLLOWING:
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode} | (self.lr_scheduler_kwargs or {})
            if self.lr_scheduler_kwargs["mode"] != mode:
                raise ConfigError(
                    f"`lr_scheduler_kwargs` has the mode {self.lr_scheduler_kwargs['mode']}, but "
                    f"`metric_for_best_model: {self.metric_for_best_model}` needs {mode}. Leave the mode out."
                )

    def _check_training_settings(self) -> None:
        if self.activation_offloading and self.device.type == "cpu":
            raise ConfigError(
                "`activation_offloading: true` needs a GPU: it moves activations to the CPU. Leave it out."
            )
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            raise ConfigError(
                f"`warmup_steps: {self.warmup_steps}` has no effect with `lr_scheduler_type: constant`. Set "
                "`lr_scheduler_type: constant_with_warmup`, or leave it out."
            )
        try:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            get_scheduler(self.lr_scheduler_type, optimizer, 10, 100, self.lr_scheduler_kwargs)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"`lr_scheduler_kwargs: {self.lr_scheduler_kwargs}` does not go with `lr_scheduler_type: "
                f"{self.lr_scheduler_type.value}`: {error}"
            ) from error

    def _check_data_settings(self) -> None:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(
                f"`min_pixels: {self.min_pixels}` is more than `max_pixels: {self.max_pixels}`. Set it to less."
            )
        if self.columns is not None:
            check_columns(self.columns)


def _check_fields(settings: Any) -> None:
    """Brings the values into the types of their fields, and refuses those of other types or out of range."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    given = {field.name: values[field.name] for field in fields(settings) if values.get(field.name) != field.default}
    typed, problems = check_values({name: given[name] for name in given.keys() & values.keys()}, [type(settings)])
    if problems:
        raise ConfigError(" ".join(problems))
    for name, value in typed.items():
        setattr(settings, name, value)


def rows_per_step(args: PumaKLConfig) -> int:
    """Returns the number of rows of an optimizer step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


@dataclass
class PumaScriptArguments:
    r"""
    Arguments of the training script: where the data comes from.

    Args:
        dataset_name (`list[str]`):
            One or several json, jsonl, csv or parquet files, folders, or datasets of the Hub, as a list or separated
            by commas.
        dataset_config (`str`, *optional*):
            Configuration of the Hub datasets.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split of the Hub datasets to train on.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split of those of `eval_dataset_name` and `gap_dataset_name`.
        eval_dataset_name (`list[str]`, *optional*):
            Data to evaluate on, in the same forms as `dataset_name`.
        eval_split_size (`float`, *optional*):
            Part of the training data to evaluate on instead, chosen by the seed: a share below 1, or a number of rows.
        gap_dataset_name (`list[str]`, *optional*):
            Held-out pairs, in the same forms as `dataset_name`, which the model answers on both sides as it trains.
        gap_eval_steps (`int`, *optional*):
            Optimizer steps between two measurements of the gap on them, which are logged as `eval_gap`,
            `eval_text_rich_accuracy`, `eval_vision_rich_accuracy` and `eval_agreement`; each may be the
            `metric_for_best_model`.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to stop before training: recipe, data and model are checked, and the first row is shown as the
            model gets it.

    Raises:
        ValueError: if a value is out of its range, or both kinds of evaluation data are given.
    """

    dataset_name: list[str] = field(
        default_factory=list,
        metadata={"help": "Files (json, jsonl, csv, parquet), folders or Hub datasets, separated by commas."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub datasets."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of the Hub datasets to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split of those that are evaluated on."})
    eval_dataset_name: list[str] | None = field(default=None, metadata={"help": "Data to evaluate on, in such forms."})
    eval_split_size: float | None = field(
        default=None,
        metadata={"help": "Part of the training data to evaluate on: a share below 1, or a number of rows."},
    )
    gap_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "Held-out pairs on which the model is asked both sides while it trains."}
    )
    gap_eval_steps: int | None = field(
        default=None, metadata={"help": "Steps between two measurements of accuracy and gap on `gap_dataset_name`."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check everything, show the first row as the model gets it, and train nothing."},
    )

    def __post_init__(self):
        _check_fields(self)
        self.dataset_name = as_names(self.dataset_name)
        self.eval_dataset_name = as_names(self.eval_dataset_name) or None
        self.gap_dataset_name = as_names(self.gap_dataset_name) or None
        if (self.gap_dataset_name is None) != (self.gap_eval_steps is None):
            given, other = ("gap_dataset_name", "gap_eval_steps")[:: 1 if self.gap_eval_steps is None else -1]
            raise ConfigError(f"`{given}` is set without `{other}`. Set both, or neither.")
        if not self.dataset_name:
            raise ConfigError("`dataset_name` is missing: name the files, folders or datasets of the Hub to train on.")
        if self.eval_split_size is not None and self.eval_dataset_name is not None:
            raise ConfigError("Both `eval_split_size` and `eval_dataset_name` are set. Keep one of them.")
