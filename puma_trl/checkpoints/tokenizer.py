"""The tokenizer of a checkpoint, and what depends on it: how prompts begin, and how generation ends."""

import copy
from pathlib import Path

from jinja2 import TemplateError
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from ..data.render import end_token_id
from ..errors import CheckpointError
from .files import read_json


def load_tokenizer(
    folder: Path, config: PreTrainedConfig, image_token: str, image_token_id: int | None, pad_token: str | None
) -> PreTrainedTokenizerFast:
    """
    Loads the original's tokenizer, exactly as its tokenizer.json has it, with its image and pad tokens named.

    Args:
        folder (`Path`):
            The original checkpoint.
        config ([`~transformers.PreTrainedConfig`]):
            The native configuration. The ids of the image, first and end tokens are put into it.
        image_token (`str`):
            The token that stands for an image.
        image_token_id (`int`, *optional*):
            Its id according to the original configuration.
        pad_token (`str`, *optional*):
            Padding where the tokenizer has none. `None` is its end token.

    Raises:
        CheckpointError: if there is none, it lacks the image token or an end token, or does not fit the model.
    """
    if not (folder / "tokenizer.json").exists():
        raise CheckpointError(
            f"{folder} has no tokenizer.json. Add it, or convert the weights alone with `--weights_only`."
        )
    plain = PreTrainedTokenizerFast.from_pretrained(folder)
    vocabulary = plain.get_vocab()
    problem = None
    if image_token not in vocabulary:
        problem = f"has no image token '{image_token}'"
    elif image_token_id not in (None, vocabulary[image_token]):
        problem = (
            f"has the image token '{image_token}' as id {vocabulary[image_token]}, but config.json says "
            f"{image_token_id}"
        )
    elif plain.eos_token is None:
        problem = "has no end token (`eos_token`)"
    elif max(vocabulary.values()) >= config.text_config.vocab_size:
        last, num_rows = max(vocabulary.values()), config.text_config.vocab_size
        problem = f"goes up to id {last}, but the embedding has {num_rows} rows only"
    if problem is not None:
        raise CheckpointError(
            f"The tokenizer in {folder} {problem}. Put the tokenizer files of this checkpoint there, or convert the "
            "weights alone with `--weights_only`."
        )
    # the chat template writes the first token, so the tokenizer must not add another
    options = {} if plain.bos_token is None else {"add_bos_token": False}
    names = {"image_token": image_token}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=names, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = pad_token if pad_token in vocabulary else tokenizer.eos_token
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    config.image_token_id = vocabulary[image_token]
    config.text_config.eos_token_id = tokenizer.eos_token_id
    if tokenizer.bos_token_id is not None:
        config.text_config.bos_token_id = tokenizer.bos_token_id
    return tokenizer


def check_prompt(processor: ProcessorMixin) -> None:
    """Raises unless a rendered prompt has as many first tokens as it says, and an answer none."""
    tokenizer = processor.tokenizer
    turn = {"role": "user", "content": [{"type": "text", "text": "1 + 1"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    for text in (prompt, "2"):
        for add_special_tokens in (True, False):
            ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            expected = 0 if tokenizer.bos_token is None else text.count(tokenizer.bos_token)
            if ids.count(tokenizer.bos_token_id) != expected:
                raise CheckpointError(
                    f"The tokenizer makes {ids.count(tokenizer.bos_token_id)} first tokens '{tokenizer.bos_token}' of "
                    f"{text!r}, which holds {expected}. Take the tokenizer.json of the checkpoint."
                )


def make_generation_config(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast | None
) -> GenerationConfig:
    """Returns first, end and pad tokens; the original's repositories say no more, or nothing, about generation."""
    path = folder / "generation_config.json"
    stated = read_json(path) if tokenizer is None and path.exists() else {}
    return GenerationConfig(
        bos_token_id=stated.get("bos_token_id", config.text_config.bos_token_id),
        eos_token_id=stated.get("eos_token_id", config.text_config.eos_token_id),
        pad_token_id=stated.get("pad_token_id") if tokenizer is None else tokenizer.pad_token_id,
    )


# Before the template of a text model: turns in parts, as processors take them, become the strings that it knows
TURNS_TO_STRINGS = """\
{%- set puma = namespace(turns=[], text='') -%}
{%- for turn in messages -%}
{%- if turn['content'] is defined and turn['content'] is not none and turn['content'] is not string -%}
{%- set puma.text = '' -%}
{%- for part in turn['content'] -%}
{%- set puma.text = puma.text ~ ('<image>\\n' if part['type'] in ('image', 'image_url') else part['text']) -%}
{%- endfor -%}
{%- set puma.turns = puma.turns + [{'role': turn['role'], 'content': puma.text}] -%}
{%- else -%}
{%- set puma.turns = puma.turns + [turn] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = puma.turns %}"""


def add_pictures(template: str, image_token: str) -> str:
    """
    Returns a text model's chat template that takes pictures as well, each the image token and a line break at its
    place.

    Everything else of the template stays, such as the system prompt that it writes where there is none.

    Args:
        template (`str`):
            The template, for turns whose content is a string.
        image_token (`str`):
            The token that stands for an image.
    """
    return TURNS_TO_STRINGS.replace("<image>", image_token) + template


def writes_first_token(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """
    Returns whether a chat template begins a prompt with the first token (`bos_token`).

    Raises:
        CheckpointError: if the template cannot render a prompt.
    """
    turn = {"role": "user", "content": [{"type": "text", "text": "1 + 1"}]}
    try:
        prompt = tokenizer.apply_chat_template([turn], chat_template=template, tokenize=False)
    except (TemplateError, TypeError) as error:
        raise CheckpointError(
            f"The chat template cannot render a problem: {type(error).__name__}: {error}. Give one that takes turns "
            "in parts, as those of vision-language models do."
        ) from error
    return tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)


def join_generation_configs(
    generation_config: GenerationConfig, plain: PreTrainedTokenizerBase, processor: ProcessorMixin
) -> GenerationConfig:
    """
    Returns a text model's generation config for the model that it has become a part of.

    It ends at whatever ended it before, the text model's generation config and tokenizer, and at what the chat
    template closes an answer with, which is what training teaches.

    Args:
        generation_config ([`~transformers.GenerationConfig`]):
            That of the text model.
        plain ([`~transformers.PreTrainedTokenizerBase`]):
            The text model's tokenizer.
        processor ([`~transformers.ProcessorMixin`]):
            The processor of the new model.
    """
    stated = generation_config.eos_token_id
    ends = [end_token_id(processor), plain.eos_token_id, *(stated if isinstance(stated, list) else [stated])]
    joined = copy.deepcopy(generation_config)
    joined.eos_token_id = [end for end in dict.fromkeys(ends) if end is not None]
    joined.bos_token_id = processor.tokenizer.bos_token_id
    joined.pad_token_id = processor.tokenizer.pad_token_id
    return joined
