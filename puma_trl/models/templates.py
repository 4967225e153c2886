"""The chat template that `chat_template_path` names, read, tried and set before the data is read."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from ..config import PumaKLConfig
from ..errors import ModelError, first_line
from .tokenizers import get_tokenizer
from .weights import read_object


TEMPLATE = "chat_template.jinja"
# Names of files, which are not looked up on the Hub
SUFFIXES = (".jinja", ".j2", ".json", ".txt")
QUESTION = "What is 17 + 4?"


def set_chat_template(processor: ProcessorMixin | PreTrainedTokenizerBase, args: PumaKLConfig) -> None:
    """
    Sets the template of `chat_template_path`, if there is one, and takes the field back.

    TRL would set it after the rows have been rendered and counted with the old one, and from a folder it would also
    add tokens, change the end token and resize the embedding. Here a template is text alone, for the tokens that there
    are.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model; a processor's tokenizer gets the template too.
        args ([`PumaKLConfig`]):
            `chat_template_path` is `None` afterwards.

    Raises:
        ModelError: if there is no template there, or one that cannot render a problem for this model.
    """
    if args.chat_template_path is None:
        return
    source = f"`chat_template_path: {args.chat_template_path}`"
    template, tokens = _read_template(args.chat_template_path, source)
    tokenizer = get_tokenizer(processor)
    processor.chat_template = tokenizer.chat_template = template
    _try_template(processor, source)
    prompt = processor.apply_chat_template(_turns(processor), add_generation_prompt=True, tokenize=False)
    missing = sorted(token for token in tokens - tokenizer.get_vocab().keys() if token in prompt)
    if missing:
        raise ModelError(
            f"{source} writes {', '.join(missing)}, which this model's tokenizer does not have and would read as "
            "plain characters. Name a template in its own tokens."
        )
    args.chat_template_path = None


def check_chat_template(processor: ProcessorMixin | PreTrainedTokenizerBase, name: str) -> None:
    """
    Makes sure that there is a chat template, and one that can render a problem for this model.

    Raises:
        ModelError: if it cannot.
    """
    if processor.chat_template is None:
        raise ModelError(
            f"The {'processor' if isinstance(processor, ProcessorMixin) else 'tokenizer'} of `{name}` has no chat "
            "template, so how a problem is put to the model is not known. Give one with `chat_template_path`: a "
            ".jinja file, or a folder or model of the Hub that has one, such as the instruction-tuned version of this "
            "model."
        )
    _try_template(processor, f"The chat template of `{name}`")


def _read_template(path: str, source: str) -> tuple[str, set[str]]:
    """Returns a template and the added tokens of the tokenizer that it comes with."""
    place = Path(path)
    if place.is_dir() and not any(
        (place / name).exists() for name in ("tokenizer_config.json", "processor_config.json")
    ):
        place = place / TEMPLATE
    if place.is_file():
        return _read_file(place, source), set()
    if not place.is_dir() and (place.exists() or place.name == TEMPLATE or not _may_be_on_the_hub(path)):
        raise ModelError(
            f"{source}: there is no regular file {place}. Name a file with a Jinja template, a folder "
            f"with {TEMPLATE} or a tokenizer, or a model of the Hub."
        )
    try:
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source} is neither a template file nor a folder or model of the Hub with a tokenizer: "
            f"{first_line(error)} Name a file with a Jinja template, or a folder with {TEMPLATE}."
        ) from error
    tokenizer = get_tokenizer(processor)
    template = processor.chat_template or tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        raise ModelError(
            f"{source} has a tokenizer, but no chat template (or several, none of them 'default'). Name its file."
        )
    return template, {token.content for token in tokenizer.added_tokens_decoder.values()}


def _read_file(path: Path, source: str) -> str:
    if path.suffix == ".json":
        template = read_object(path).get("chat_template")
        if not isinstance(template, str):
            raise ModelError(
                f"{source} is a JSON file without a text `chat_template`. Name a file with a Jinja template."
            )
        return template
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{source} is not UTF-8 text: {error}. Name a file with a Jinja template.") from error


def _may_be_on_the_hub(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith(SUFFIXES)


def _turns(processor: ProcessorMixin | PreTrainedTokenizerBase, num_images: int = 0) -> list[dict]:
    if isinstance(processor, ProcessorMixin):
        return [{"role": "user", "content": [{"type": "image"}] * num_images + [{"type": "text", "text": QUESTION}]}]
    return [{"role": "user", "content": QUESTION}]


def _try_template(processor: ProcessorMixin | PreTrainedTokenizerBase, source: str) -> None:
    """Raises unless a problem, and with a processor its picture, gets into the prompt."""
    is_multimodal = isinstance(processor, ProcessorMixin)
    try:
        plain, pictured = (
            processor.apply_chat_template(_turns(processor, count), add_generation_prompt=True, tokenize=False)
            for count in (0, 1)
        )
    except Exception as error:  # of Jinja, or of whatever a template does with the turns
        raise ModelError(
            f"{source} cannot render a problem: {type(error).__name__}: {error}. It must take turns with a `role` and "
            f"a `content`{', a list of pictures and texts' if is_multimodal else ''}: take one of this model's family."
        ) from error
    if QUESTION not in plain:
        raise ModelError(f"{source} leaves out what the user writes. Take one of this model's family.")
    if is_multimodal and (plain == pictured or "'type'" in plain):  # the second: the list as Python writes it
        raise ModelError(
            f"{source} does not write a picture's place: it is one for a text model. Take one of this model's family."
        )
