"""What a trainer is given → what it trains on: processor, parts, rows, collator; for class and script alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import ModelConfig

from ..config import PumaKLConfig
from ..data.cache import fill_first
from ..data.collator import TEACHER, DataCollatorForPumaPairs, find_placeholder_sides
from ..data.encode import tokenize_rows
from ..data.load import load_data
from ..data.policy import describe_rows, require_answers
from ..data.render import end_token_id
from ..data.rows import ROW_COLUMNS
from ..errors import ConfigError, DataError
from ..models.adapters import below_adapters
from ..models.attention import attention_of, check_padding_free
from ..models.families import get_family
from ..models.load import check_vocabulary, load_config, load_processor
from ..models.parts import check_parts, check_rates, count_parameters, resolve_part, set_trainable_parts
from ..models.pixels import set_pixels
from ..models.teacher_model import TeacherSide
from ..models.templates import set_chat_template
from ..models.tokenizers import get_tokenizer
from .teacher_side import prepare_teacher
from .unused import check_collator, name_idle, refuse_for_rows, refuse_unused, refuse_with_model


# `length` is for length-grouped sampling, which reads the dataset after the other columns are gone
COLUMNS = ["row_id", *ROW_COLUMNS, "length"]
# What `load_data` has measured on a row, by which checked rows are known
CHECKED = "num_answer_tokens"


@dataclass
class Prepared:
    """
    What [`prepare`] makes of a trainer's arguments.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.
        train_dataset, eval_dataset:
            Checked rows, tokenised for a text model, or what is left to TRL.
        collator (`Callable`, *optional*):
            The collator, or `None` where TRL makes one.
        has_own_rows (`bool`):
            Whether the rows are those of [`load_data`].
        has_limit (`bool`):
            Whether all rows were checked here, so that none is longer than `max_length`.
        teacher ([`TeacherSide`], *optional*):
            What reads the text-rich side, where another model teaches.
    """

    processor: ProcessorMixin | PreTrainedTokenizerBase
    train_dataset: Any
    eval_dataset: Any
    collator: Callable | None
    has_own_rows: bool
    has_limit: bool
    teacher: TeacherSide | None = None


def prepare(
    model: str | PreTrainedModel | PeftModel,
    args: PumaKLConfig,
    processor: ProcessorMixin | PreTrainedTokenizerBase | None,
    train_dataset: Dataset | IterableDataset,
    eval_dataset: Dataset | dict[str, Dataset] | None,
    collator: Callable | None,
    functions: dict[str, Any],
) -> Prepared:
    """
    Makes a trainer's arguments ready for TRL's trainer, before a model is loaded.

    Args:
        model, args, processor, train_dataset, eval_dataset, collator:
            Those of [`PumaKLTrainer`].
        functions (`dict[str, Any]`):
            Its functions of loss, logits and rows, and `quantization_config`, by name.

    Raises:
        PumaError: if they do not go together, or something would have no effect.
    """
    _require_kinds(model, args, train_dataset)
    init = args.model_init_kwargs or {}
    revision = init.get("revision") or "main"
    if isinstance(model, str):
        config = load_config(ModelConfig(model, model_revision=revision), args)
    else:
        refuse_with_model(args, functions["quantization_config"], model)
        config = model.config
    if processor is None:
        name = model if isinstance(model, str) else config._name_or_path
        if not name:
            raise ConfigError("`processing_class` is missing, and the model does not say where it is from. Give it.")
        processor = load_processor(ModelConfig(name, model_revision=revision), args)
    takes_images = isinstance(processor, ProcessorMixin)
    check_collator(args, collator, takes_images)
    attention = init.get("attn_implementation") if isinstance(model, str) else attention_of(config)
    teacher = prepare_readers(args, processor, config, attention, collator, functions)
    name_idle(args)
    has_own_rows, has_limit = collator is None or isinstance(collator, DataCollatorForPumaPairs), False
    if has_own_rows:
        given = {"train": train_dataset, **name_splits(eval_dataset)}
        splits = prepare_rows(given, args, processor, config, functions.get("formatting_func"), teacher)
        has_limit = takes_images or all(splits[name] is not rows for name, rows in given.items())  # left to TRL
        train_dataset = splits.pop("train")
        eval_dataset = splits if isinstance(eval_dataset, dict) else splits.get("eval")
    elif takes_images:
        _try_collator(collator, train_dataset, args)
    if takes_images:
        # rows become tensors in the collator, where images are opened
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if args.ddp_find_unused_parameters is None and has_own_rows:
            args.ddp_find_unused_parameters = _may_leave_unused(config)
        collator = collator or make_collator(train_dataset, eval_dataset, args, processor, config, teacher)
    own = has_own_rows and takes_images
    return Prepared(processor, train_dataset, eval_dataset, collator, own, has_limit, teacher)


def _try_collator(collator: Callable, rows: Any, args: PumaKLConfig) -> None:
    """Makes sure that a collator which is not ours makes a batch of the first row as training gives it."""
    wanted = ["input_ids", "labels"] + ([f"{TEACHER}input_ids"] if args.use_kl else [])
    row = next(iter(rows))
    if args.remove_unused_columns:
        row = {name: value for name, value in row.items() if name in COLUMNS}
    try:
        missing = [name for name in wanted if name not in collator([row])]
        problem = f"makes no {', '.join(f'`{name}`' for name in missing)} of it" if missing else ""
    except Exception as error:
        problem = f"ends with {type(error).__name__}: {str(error).strip() or 'no message'}"
    if problem:
        name = getattr(collator, "__name__", type(collator).__name__)
        raise ConfigError(
            f"`data_collator` ({name}) was tried on the first row of the train dataset, and {problem}. Leave it out, "
            "or give a `DataCollatorForPumaPairs` or a subclass."
        )


def _require_kinds(model: Any, args: Any, train_dataset: Any) -> None:
    if not isinstance(args, PumaKLConfig):
        raise ConfigError(
            f"`args` is of the type {type(args).__name__}. Give a `PumaKLConfig`, which takes its fields too."
        )
    if not isinstance(model, str) and (isinstance(model, type) or not hasattr(model, "config")):
        raise ConfigError(
            f"`model` is of the type {type(model).__name__}. Give a transformers model, or its id or folder as text."
        )
    if train_dataset is None:
        raise ConfigError("`train_dataset` is missing. Give the rows to train on.")


def _may_leave_unused(config: PreTrainedConfig) -> bool:
    """
    Returns whether a step may leave parameters without gradient, for which DDP must look in every step. TRL always
    lets it, for rows without pictures; the collator gives them a hidden one.
    """
    # LLaVA reads an inner layer of its tower
    return not get_family(config).parts or hasattr(config, "vision_feature_layer")


def prepare_model(model: PreTrainedModel | PeftModel, args: PumaKLConfig, given: Prepared) -> None:
    """
    Lets the named parts of a model train, and tells it where answers end.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, not yet wrapped.
        args ([`PumaKLConfig`]):
            `trainable_parts`, `min_pixels`, `max_pixels`, `pad_token` and `allow_text_only` are used.
        given ([`Prepared`]):
            What the trainer got.

    Raises:
        ModelError: if a part is not in the model, or `part_learning_rates` names one of which nothing trains.
        ConfigError: if adapters are on other parts than the named ones.
        DataError: if more than the language model would train on rows without any picture.
    """
    base = below_adapters(model)
    family = get_family(base.config)
    set_pixels(given.processor, base.config, args.min_pixels, args.max_pixels)
    if args.trainable_parts is not None and not is_peft_model(model):
        set_trainable_parts(model, args.trainable_parts, family)
    check_rates(model, args.part_learning_rates or {}, family)
    trained = {part for part, (trainable, _) in count_parameters(model, family).items() if trainable}
    if args.trainable_parts is not None and is_peft_model(model):
        _require_parts(trained, args.trainable_parts, family)
    if given.has_own_rows and not args.use_kl and not args.allow_text_only and trained - {"language_model"}:
        if not describe_rows(given.train_dataset).trained_images:
            raise DataError(
                f"No row of the train dataset has a picture, but {', '.join(sorted(trained))} train. Name the column "
                "of the pictures: `columns={'image_url': …}`; or set `trainable_parts=['language_model']`, or "
                "`allow_text_only=True`."
            )
    tokenizer = get_tokenizer(given.processor)
    generation = base.generation_config
    if generation is not None:
        ends = generation.eos_token_id
        ends = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
        if (end := end_token_id(given.processor)) not in ends:
            generation.eos_token_id = [end, *ends]
        if args.pad_token is not None:
            generation.pad_token_id = base.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _require_parts(trained: set[str], names: list[str], family: Any) -> None:
    if "all" in names or not family.parts or any(name.endswith(".") for name in names):
        return
    allowed = {
        prefix
        for name in names
        for part in resolve_part(name, family, "trainable_parts")
        for prefix in family.parts[part]
    }
    surplus = sorted(part for part in trained if not set(family.parts.get(part, (part,))) <= allowed)
    if surplus:
        raise ConfigError(
            f"`trainable_parts` is {', '.join(names)}, but the adapters train {', '.join(surplus)} too. Choose "
            "`target_modules` and `modules_to_save` of `peft_config` within these parts, or leave `trainable_parts` "
            "out."
        )


def prepare_readers(
    args: PumaKLConfig,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    attention: str | dict[str, str] | None,
    collator: Callable | None = None,
    functions: Mapping[str, Any] = MappingProxyType({}),
) -> TeacherSide | None:
    """
    Refuses settings that do not go with the model, and makes ready what reads the rows, before data is read: the
    processor of the model, and another teacher.

    Args:
        args ([`PumaKLConfig`]):
            The settings.
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model, which is changed.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model; some families keep the sizes of pictures in it too.
        attention (`str` or `dict[str, str]`, *optional*):
            The attention that the model is loaded with.
        collator (`Callable`, *optional*), functions (`Mapping[str, Any]`, *optional*):
            Those of [`prepare`].

    Returns:
        [`TeacherSide`], *optional*: what reads the text-rich side, where another model teaches.

    Raises:
        ModelError: if a setting does not fit the model, or the teacher does not.
        ConfigError: if something would have no effect, or the pad token is not in the vocabulary.
    """
    takes_images = isinstance(processor, ProcessorMixin)
    refuse_unused(args, takes_images, functions)
    if takes_images and args.padding_free:
        check_padding_free(config, attention)
    _prepare_processor(processor, config, args)
    return prepare_teacher(args, processor, attention, collator)


def _prepare_processor(
    processor: ProcessorMixin | PreTrainedTokenizerBase, config: PreTrainedConfig, args: PumaKLConfig
) -> None:
    """Sets what the settings say of template, pictures and padding, and compares the processor with the model."""
    set_chat_template(processor, args)
    tokenizer = get_tokenizer(processor)
    if args.pad_token is not None and args.pad_token not in tokenizer.get_vocab():
        raise ConfigError(
            f"`pad_token: {args.pad_token}` is not in the vocabulary of the tokenizer. Name one that is."
        )
    tokenizer.pad_token = args.pad_token or tokenizer.pad_token or tokenizer.eos_token
    check_parts(args, get_family(config))
    check_vocabulary(config, processor)
    set_pixels(processor, config, args.min_pixels, args.max_pixels)


def prepare_rows(
    splits: dict[str, Dataset],
    args: PumaKLConfig,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    formatting_func: Callable | None = None,
    teacher: TeacherSide | None = None,
) -> dict[str, Any]:
    """
    Checks rows that `load_data` has not checked yet, and tokenises those of a text model.

    Rows for a text model that TRL reads by itself are left to it: tokenised ones, those with the column
    `dataset_text_field`, and all with `formatting_func` or `assistant_only_loss`, unless `columns` says what is what.

    Args:
        splits (`dict[str, Dataset]`):
            Datasets by name.
        args ([`PumaKLConfig`]):
            The settings.
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model, prepared.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model.
        formatting_func (`Callable`, *optional*):
            What makes TRL's text of a row.
        teacher ([`TeacherSide`], *optional*):
            What reads the text-rich side, where another model does.

    Returns:
        The datasets, by the same names.

    Raises:
        ConfigError: if a dataset is of another type, rows with pictures come from a stream, or a setting has no effect
            on who reads the rows.
        DataError: if rows cannot be used (see [`load_data`]).
    """
    takes_images = isinstance(processor, ProcessorMixin)
    own, left = {}, []
    for name, dataset in splits.items():
        if not isinstance(dataset, Dataset | IterableDataset):
            raise ConfigError(
                f"The {name} dataset is of the type {type(dataset).__name__}. Give a `datasets.Dataset`, such as a "
                "split of a `DatasetDict` or what `Dataset.from_list(...)` makes; "
                "`load_data(files, args, processor)[0]['train']` reads files."
            )
        if isinstance(dataset, IterableDataset):
            if takes_images:
                raise ConfigError(
                    f"The {name} dataset is a stream, which cannot be checked before training. Give a `Dataset`, such "
                    "as `Dataset.from_generator(...)` makes, or files to `load_data`."
                )
            left.append(name)
        elif CHECKED in dataset.column_names:
            require_answers(describe_rows(dataset), name, args)
        elif takes_images or not _is_for_trl(dataset, args, formatting_func):
            own[name] = dataset
        else:
            left.append(name)
    if not takes_images:
        refuse_for_rows(args, left, [name for name in splits if name not in left])
    if own:
        splits = splits | load_data(own, args, processor, get_family(config), teacher)[0]
    if not takes_images:
        rows = {name: dataset for name, dataset in splits.items() if _is_checked(dataset)}
        if rows:
            with fill_first(args, "tokenising the data"):
                splits = splits | tokenize_rows(
                    DatasetDict(rows), processor, args.special_tokens, args.completion_only_loss, args.dataset_num_proc
                )
    return splits


def _is_for_trl(dataset: Dataset, args: PumaKLConfig, formatting_func: Callable | None) -> bool:
    names = {"input_ids"} if args.columns else {"input_ids", args.dataset_text_field}
    return formatting_func is not None or args.assistant_only_loss or not names.isdisjoint(dataset.column_names)


def name_splits(dataset: Dataset | dict[str, Dataset] | None) -> dict[str, Dataset]:
    """Returns evaluation datasets by name, one alone as `"eval"`; `"train"` is refused, as training rows have it."""
    splits = dict(dataset) if isinstance(dataset, dict) else {} if dataset is None else {"eval": dataset}
    if "train" in splits:
        raise ConfigError("`eval_dataset` names a dataset 'train', as the rows to train on are. Give it another name.")
    return splits


def _is_checked(dataset: Any) -> bool:
    return isinstance(dataset, Dataset) and CHECKED in dataset.column_names


def make_collator(
    train_dataset: Dataset,
    eval_dataset: Dataset | dict[str, Dataset] | None,
    args: PumaKLConfig,
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    teacher: TeacherSide | None = None,
) -> DataCollatorForPumaPairs:
    """Returns the collator for checked rows; the arguments are those of [`prepare`]."""
    splits = DatasetDict({"train": train_dataset, **name_splits(eval_dataset)})
    return DataCollatorForPumaPairs(
        processor,
        get_family(config),
        args.use_kl,
        placeholder_sides=find_placeholder_sides(splits, args.trainable_parts),
        special_tokens=args.special_tokens,
        on_bad_image="replace" if args.bad_rows == "drop" else "error",
        padding_free=args.padding_free,
        config=config,
        teacher=teacher,
        on_policy=args.on_policy_share > 0,
        keep_images=args.use_vllm,
    )
