"""The tokenizer of a checkpoint, and what depends on it: how prompts begin, and how generation ends."""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

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
        problem = f"goes up to id {max(vocabulary.values())}, but the embedding has {config.text_config.vocab_size} rows only"
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
