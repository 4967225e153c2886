"""Another model as the teacher (`teacher: model`): what reads the text-rich side, its weights, and its vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from accelerate.utils import patch_environment
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from trl import ModelConfig

from ..config import PumaKLConfig
from ..errors import ModelError, first_line
from .attention import attention_of
from .families import Family, get_family, is_multimodal
from .load import check_vocabulary, load_config, load_model, read_processor
from .parts import count_parameters
from .pixels import set_pixels
from .templates import check_chat_template
from .tokenizers import get_tokenizer


# Differences that a message names
SHOWN = 3
NAME = "teacher_model_name_or_path"


@dataclass
class TeacherSide:
    """
    What reads the text-rich side, where another model teaches.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor of a vision-language model, or tokenizer of a text model.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the teacher.
    """

    processor: ProcessorMixin | PreTrainedTokenizerBase
    config: PreTrainedConfig

    @property
    def family(self) -> Family:
        """The family of the teacher."""
        return get_family(self.config)

    @property
    def takes_images(self) -> bool:
        """Whether the teacher reads pictures."""
        return isinstance(self.processor, ProcessorMixin)


def load_teacher_side(args: PumaKLConfig, processor: ProcessorMixin) -> TeacherSide:
    """
    Loads configuration and processor of the teacher, and makes sure that its tokens are the student's.

    Args:
        args ([`PumaKLConfig`]):
            The settings of the teacher, `trust_remote_code`, `min_pixels` and `max_pixels` are used.
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the model that trains.

    Raises:
        ModelError: if there is no such model, it writes no texts, has no chat template or other tokens, or would be
            loaded in 4 bits under ZeRO-3.
    """
    name = args.teacher_model_name_or_path
    model_args = _model_args(args)
    if args.teacher_load_in_4bit and is_deepspeed_zero3_enabled():
        raise ModelError(
            "`teacher_load_in_4bit` does not go with ZeRO-3: transformers loads quantised weights whole on every "
            "process, so nothing would be sharded. Use DDP or ZeRO-2, or leave it out."
        )
    config = load_config(model_args, args, NAME)
    if (
        not is_multimodal(config)
        and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        and not config.to_dict().get("auto_map")
    ):
        raise ModelError(
            f"`{NAME}: {name}` is a model of type '{config.model_type}', which predicts no next token. Name a "
            "language model or a vision-language model."
        )
    teacher = read_processor(model_args, args)
    if teacher.chat_template is None:
        raise ModelError(
            f"`{NAME}: {name}` has no chat template, so how a problem is put to the teacher is not known. Name its "
            "instruction-tuned version, or put a chat_template.jinja into its folder."
        )
    check_chat_template(teacher, name)
    check_vocabulary(config, teacher)
    if isinstance(teacher, ProcessorMixin):
        try:
            set_pixels(teacher, config, args.min_pixels, args.max_pixels)
        except ModelError as error:
            raise ModelError(
                f"The teacher `{name}` cannot have the pictures of the text-rich side so: {error}"
            ) from error
    check_same_tokens(processor, teacher, name)
    return TeacherSide(teacher, config)


def _model_args(args: PumaKLConfig) -> ModelConfig:
    return ModelConfig(
        args.teacher_model_name_or_path,
        model_revision=args.teacher_model_revision or "main",
        load_in_4bit=args.teacher_load_in_4bit,
        bnb_4bit_quant_type="nf4",
        use_peft=args.teacher_load_in_4bit,  # else what is quantised could not train, which a teacher does not
    )


def check_same_tokens(
    student: ProcessorMixin | PreTrainedTokenizerBase, teacher: ProcessorMixin | PreTrainedTokenizerBase, name: str
) -> None:
    """
    Compares two vocabularies token by token. What one of them has and the other has not is let be: answers have none
    of it, which is checked row by row.

    Raises:
        ModelError: if an id is another token, or a token has another id; the first three are named.
    """
    tokenizers = [get_tokenizer(each) for each in (student, teacher)]
    ids, other_ids = (tokenizer.get_vocab() for tokenizer in tokenizers)
    tokens, other_tokens = ({number: token for token, number in each.items()} for each in (ids, other_ids))
    shared = tokens.keys() & other_tokens.keys()
    special = {token for tokenizer in tokenizers for token in tokenizer.all_special_tokens}

    def quote(token: str) -> str:
        return f"{token!r}" + (" (special)" if token in special else "")

    differing = {
        number: f"id {number} is {quote(tokens[number])} in the student and {quote(other_tokens[number])} in the "
        "teacher"
        for number in shared
        if tokens[number] != other_tokens[number]
    }
    for token in ids.keys() & other_ids.keys():
        if ids[token] != other_ids[token]:
            differing.setdefault(
                ids[token],
                f"{quote(token)} has the id {ids[token]} in the student and {other_ids[token]} in the teacher",
            )
    if differing:
        first = "; ".join(differing[number] for number in sorted(differing)[:SHOWN])
        raise ModelError(
            f"`{NAME}: {name}` has other tokens than the model that trains, so their distributions cannot be "
            f"compared: {len(differing):,} of {len(shared):,} differ, first {first}. Name a model of the same "
            "tokenizer family."
        )


def load_teacher(args: PumaKLConfig, side: TeacherSide, student: PreTrainedModel) -> PreTrainedModel:
    """
    Loads the weights of the teacher, sharded under ZeRO-3.

    Args:
        args ([`PumaKLConfig`]):
            The settings of the teacher.
        side ([`TeacherSide`]):
            What [`load_teacher_side`] gave.
        student ([`~transformers.PreTrainedModel`]):
            The model that trains; the teacher has its dtype and attention where none are given.

    Raises:
        ModelError: if there are no weights that fit the configuration.
    """
    init = dict(args.teacher_model_init_kwargs or {})
    model_args = _model_args(args)
    dtype = init.pop("dtype", None) or student.dtype
    model_args.dtype = str(dtype).removeprefix("torch.")
    model_args.attn_implementation = teacher_attention(args, attention_of(student.config))
    init.pop("attn_implementation", None)
    try:
        with loading_another():
            return load_model(model_args, args, side.config, side.family, init)
    except (TypeError, ValueError, ImportError) as error:
        raise ModelError(
            f"`{NAME}: {args.teacher_model_name_or_path}` cannot be loaded: {first_line(error)} What is given "
            "besides is in `teacher_model_init_kwargs`."
        ) from error


@contextmanager
def loading_another() -> Iterator[None]:
    """
    Lets another model be loaded beside the one that trains. Under FSDP every process reads its weights, which are not
    handed on by the first one; under ZeRO-3 it is divided over the processes as the first one is.
    """
    groups = _keeping_groups() if is_deepspeed_zero3_enabled() else nullcontext()
    with patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"), groups:
        yield


@contextmanager
def _keeping_groups() -> Iterator[None]:
    # Workaround (DeepSpeed 0.19.8, no upstream issue found): with `zero_hpz_partition_size` each model that is loaded
    # makes the groups of processes anew, which it refuses where there are some
    from deepspeed.utils import groups

    create = groups._create_zero_param_parallel_group

    def create_once(size: int) -> None:
        if groups._get_zero_param_intra_parallel_group() is None:
            create(size)

    groups._create_zero_param_parallel_group = create_once
    try:
        yield
    finally:
        groups._create_zero_param_parallel_group = create


def teacher_attention(args: PumaKLConfig, attention: str | dict[str, str] | None) -> str | dict[str, str] | None:
    """Returns the attention that the teacher is loaded with: its own, or that of the model that trains."""
    return (args.teacher_model_init_kwargs or {}).get("attn_implementation") or attention


def describe_teacher(args: PumaKLConfig, model: PreTrainedModel) -> str:
    """Returns class, source and size of the teacher, in words."""
    count = sum(total for _, total in count_parameters(model, get_family(model.config)).values())
    bits = ", 4 bits" if args.teacher_load_in_4bit else ""
    return f"{type(model).__name__} from {args.teacher_model_name_or_path}, {count:,} parameters{bits}"
