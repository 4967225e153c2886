"""
The embedded default: tiny, randomly initialised but real models with their own tokenizer and processor, and the data
that they learn from in minutes on a CPU.

```bash
python -m puma_trl.mini --output_dir outputs/mini
```

writes the model to `outputs/mini/model` and the data of the three stages and the held-out pairs to `outputs/mini/data`.
Everything that a full-size model goes through (chat template, image processor, `AutoProcessor`,
`AutoModelForImageTextToText`, `generate`) works on these models, without the Hub.
"""

import argparse
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from .pairs.generate import generate_pairs, write_pairs


FAMILIES = ("qwen2_vl", "qwen2_5_vl")
PATCH_SIZE = 14
MERGE_SIZE = 2
MIN_PIXELS = (PATCH_SIZE * MERGE_SIZE) ** 2
MAX_PIXELS = 36 * MIN_PIXELS

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Words and operators take the spaces around them, which keeps prompts short; every digit is a token of its own, so that
# numbers of any length are read and written digit by digit.
PIECES = r" ?\p{L}+ ?|\p{N}| ?[^\s\p{L}\p{N}]+ ?|\s+"

# The kinds that the mini model can learn: small numbers, and drawings that stay legible at this size.
KINDS = (
    "triangle_angles",
    "rectangle_perimeter",
    "segment_total",
    "segment_part",
    "bar_difference",
    "bar_total",
)
IMAGE_SIZE = (84, 84)

# As in the original's data, the pictures come before the text of a turn whatever their order in the message.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """
    Builds the tokenizer of the mini models: the words of the generated problems are tokens, and so is every byte, so
    that any text survives a round trip.

    Returns:
        A tokenizer with the ChatML and vision tokens of Qwen2-VL, `<|im_end|>` as end and `<|endoftext|>` as padding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    problems = generate_pairs(20 * len(KINDS), seed=0, kinds=KINDS, with_images=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"system\nuser\n{row['instruction']}assistant\n{row['output']}" for row in problems)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def build_processor(family_name: str = "qwen2_vl") -> ProcessorMixin:
    """
    Builds a real processor of the family around a small tokenizer and small pictures.

    Args:
        family_name (`str`, *optional*, defaults to `"qwen2_vl"`):
            `"qwen2_vl"` or `"qwen2_5_vl"`.

    Returns:
        The processor; one picture of `H x W` pixels takes about `H * W / 784` tokens.

    Raises:
        ValueError: if the family has no mini model.
    """
    _check_family(family_name)
    processor_class = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family_name]
    sizes = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE}
    pixels = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return processor_class(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels), **sizes),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels), **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    family_name: str,
    processor: ProcessorMixin,
    *,
    seed: int = 0,
    hidden_size: int = 128,
    num_hidden_layers: int = 4,
    vision_embed_dim: int = 128,
    vision_depth: int = 3,
    num_heads: int = 4,
    tie_word_embeddings: bool = False,
) -> PreTrainedModel:
    """
    Builds a tiny model of the family with random weights, in fp32.

    Args:
        family_name (`str`):
            `"qwen2_vl"` or `"qwen2_5_vl"`.
        processor ([`~transformers.ProcessorMixin`]):
            The processor that [`build_processor`] made for this family; it gives the vocabulary and the token ids.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state is left as it was.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the language model.
        num_hidden_layers (`int`, *optional*, defaults to `4`):
            Layers of the language model.
        vision_embed_dim (`int`, *optional*, defaults to `128`):
            Width of the vision tower.
        vision_depth (`int`, *optional*, defaults to `3`):
            Layers of the vision tower.
        num_heads (`int`, *optional*, defaults to `4`):
            Attention heads of both; half as many key-value heads in the language model.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the output head is the input embedding.

    Raises:
        ValueError: if the family has no mini model, or a width does not divide into heads of a multiple of 8.
    """
    _check_family(family_name)
    for name, width in (("hidden_size", hidden_size), ("vision_embed_dim", vision_embed_dim)):
        if width % (8 * num_heads):
            raise ValueError(
                f"`{name}` is {width}, but the rotary position embedding needs a multiple of {8 * num_heads} for "
                f"{num_heads} heads."
            )
    tokenizer = processor.tokenizer
    quarter = hidden_size // num_heads // 8
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(1, num_heads // 2),
        "max_position_embeddings": tokenizer.model_max_length,
        # time, height and width share the rotary frequencies as 2 : 1 : 1
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2 * quarter, quarter, quarter],
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config = {"depth": vision_depth, "num_heads": num_heads, "patch_size": PATCH_SIZE}
    if family_name == "qwen2_vl":
        config_class, model_class = Qwen2VLConfig, Qwen2VLForConditionalGeneration
        vision_config |= {"embed_dim": vision_embed_dim, "hidden_size": hidden_size}
    else:
        config_class, model_class = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
        vision_config |= {
            "hidden_size": vision_embed_dim,
            "out_hidden_size": hidden_size,
            "intermediate_size": 4 * vision_embed_dim,
            "fullatt_block_indexes": [vision_depth - 1],
        }
    config = config_class(
        text_config=text_config,
        vision_config=vision_config | {"spatial_merge_size": MERGE_SIZE, "initializer_range": 0.02},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def _check_family(family_name: str) -> None:
    if family_name not in FAMILIES:
        raise ValueError(f"There is no mini model of the family '{family_name}'. Choose one of {', '.join(FAMILIES)}.")


def _single_sided(pairs: Iterator[dict]) -> Iterator[dict]:
    """Turns pairs into rows with one side: the drawing, and in every fifth row the text."""
    shared = ("kind", "level", "answer")
    for index, pair in enumerate(pairs):
        suffix = "" if index % 5 == 0 else "_2"
        side = {name: pair[name + suffix] for name in ("image_url", "instruction", "output")}
        yield side | {name: pair[name] for name in shared}


def write_data(folder: Path, num_rows: int, num_heldout: int, seed: int, num_proc: int) -> None:
    """
    Writes the data of the three stages and the held-out pairs.

    Args:
        folder (`Path`):
            Where `stage1.jsonl` (text alone), `stage2.jsonl` (pairs), `stage3.jsonl` (drawings, and one text in five
            rows so that reading text is not forgotten), `heldout.jsonl` (pairs of problems in none of the others) and the
            pictures go.
        num_rows (`int`):
            Number of rows of each stage.
        num_heldout (`int`):
            Number of held-out pairs.
        seed (`int`):
            Seed of the problems and drawings.
        num_proc (`int`):
            Processes that draw.

    Raises:
        FileExistsError: if one of the files exists.
    """
    options = {"kinds": KINDS, "image_size": IMAGE_SIZE, "num_proc": num_proc}
    texts = generate_pairs(num_rows, seed, KINDS, with_images=False)
    pairs = generate_pairs(2 * num_rows, seed + 1, **options)
    heldout = generate_pairs(num_heldout, seed, split="heldout", **options)
    write_pairs(texts, folder / "stage1.jsonl", "images/stage1")
    write_pairs(islice(pairs, num_rows), folder / "stage2.jsonl", "images/stage2")
    write_pairs(_single_sided(pairs), folder / "stage3.jsonl", "images/stage3")
    write_pairs(heldout, folder / "heldout.jsonl", "images/heldout")


def main() -> None:
    """Writes the model and the data."""
    parser = argparse.ArgumentParser(prog="python -m puma_trl.mini", description="Writes the mini model and its data.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/mini"), help="folder to write to")
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_vl", help="model family")
    parser.add_argument("--n", type=int, default=16_000, help="rows of each stage")
    parser.add_argument("--heldout", type=int, default=300, help="held-out pairs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights, problems and drawings")
    parser.add_argument("--num_proc", type=int, default=os.cpu_count(), help="processes that draw")
    args = parser.parse_args()
    write_data(args.output_dir / "data", args.n, args.heldout, args.seed, args.num_proc)
    processor = build_processor(args.family)
    processor.save_pretrained(args.output_dir / "model")
    build_model(args.family, processor, seed=args.seed).save_pretrained(args.output_dir / "model")
    print(f"The mini model is in {args.output_dir / 'model'}, its data in {args.output_dir / 'data'}.")


if __name__ == "__main__":
    main()
