"""
The embedded default: tiny, randomly initialised but real models with their own tokenizer and processor, and the data
that they learn from in minutes on a CPU.

```bash
python -m puma_trl.mini --output_dir outputs/mini
```

writes the model to `outputs/mini/model` and the data of the three stages and the held-out pairs to
`outputs/mini/data`. Everything that a full-size model goes through (chat template, image processor, `AutoProcessor`,
`AutoModelForImageTextToText`, `generate`) works on these models, without the Hub.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from .entry import Parser, run_command  # before the libraries that it quietens


# isort: split
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    GenerationConfig,
    PreTrainedConfig,
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

from .errors import ConfigError
from .files import check_folder
from .models.families import deepseek_vl_hybrid, math_puma_qwen2
from .models.families.chat import CHATML, IMAGE
from .pairs.generate.files import write_pairs
from .pairs.generate.pairs import generate_pairs


MODEL_CLASSES = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "math_puma_qwen2": math_puma_qwen2.MathPumaQwen2ForConditionalGeneration,
    "deepseek_vl_hybrid": DeepseekVLHybridForConditionalGeneration,
}
INITIALIZER_RANGE = 0.06
PATCH_SIZE = 14
MERGE_SIZE = 2
MIN_PIXELS = (PATCH_SIZE * MERGE_SIZE) ** 2
MAX_PIXELS = 36 * MIN_PIXELS

CHATML_TOKENS = {"pad_token": "<|endoftext|>", "im_start_token": "<|im_start|>", "eos_token": "<|im_end|>"}
QWEN_TOKENS = CHATML_TOKENS | {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
SPECIAL_TOKENS = {
    "qwen2_vl": QWEN_TOKENS,
    "qwen2_5_vl": QWEN_TOKENS,
    "math_puma_qwen2": CHATML_TOKENS | {"image_token": math_puma_qwen2.IMAGE_TOKEN},
    "deepseek_vl_hybrid": {
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "pad_token": "<｜end▁of▁sentence｜>",
        "image_token": deepseek_vl_hybrid.IMAGE_TOKEN,
    },
}

# Words and operators take the spaces around them, which keeps prompts short; every digit is a token of its own, so
# that numbers of any length are read and written digit by digit.
PIECES = r" ?\p{L}+ ?|\p{N}| ?[^\s\p{L}\p{N}]+ ?|\s+"

# The kinds that the mini model can learn: small numbers, and drawings that stay legible at this size.
KINDS = (
    "triangle_angles",
    "rectangle_perimeter",
    "segment_total",
    "segment_part",
    "bar_total",
)
IMAGE_SIZE = (84, 84)
DRAWINGS = 2  # numbers are small, so there are about 8,000 training problems; each may come in two drawings
LABEL_GRID = PATCH_SIZE  # so that a digit looks the same in every patch, and is learned in minutes

CHAT_TEMPLATE = CHATML.replace(IMAGE, "<|vision_start|><|image_pad|><|vision_end|>")


def build_tokenizer(family_name: str = "qwen2_vl") -> PreTrainedTokenizerFast:
    """
    Builds the tokenizer of a mini model: the words of the generated problems are tokens, and so is every byte, so that
    any text survives a round trip.

    Args:
        family_name (`str`, *optional*, defaults to `"qwen2_vl"`):
            One of `MODEL_CLASSES`; its special tokens are those of the full-size model.
    """
    special_tokens = SPECIAL_TOKENS[family_name]
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
        special_tokens=list(dict.fromkeys(special_tokens.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"system\nuser\n{row['instruction']}assistant\n{row['output']}" for row in problems)
    tokenizer.train_from_iterator(texts, trainer)
    standard = {name: token for name, token in special_tokens.items() if name[:4] in ("bos_", "eos_", "pad_")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **standard,
        extra_special_tokens={name: token for name, token in special_tokens.items() if name not in standard},
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def build_processor(family_name: str = "qwen2_vl") -> ProcessorMixin:
    """
    Builds a real processor of the family around a small tokenizer and small pictures.

    Args:
        family_name (`str`, *optional*, defaults to `"qwen2_vl"`):
            One of `MODEL_CLASSES`. With Qwen2-VL and Qwen2.5-VL one picture of `height x width` pixels takes about
            `height * width / 784` tokens; the others resize every picture to 84x84 pixels.

    Raises:
        ConfigError: if the family has no mini model.
    """
    _check_family(family_name)
    tokenizer = build_tokenizer(family_name)
    if family_name == "math_puma_qwen2":
        return math_puma_qwen2.build_processor(tokenizer, _math_puma_config({}, width=32, depth=2, heads=4))
    if family_name == "deepseek_vl_hybrid":
        return deepseek_vl_hybrid.build_processor(tokenizer, _deepseek_config({}, width=32, depth=2, heads=4))
    processor_class = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family_name]
    sizes = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE}
    pixels = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return processor_class(
        # white paper is zero and ink far from it, so that the vision tower starts by seeing the ink alone
        image_processor=Qwen2VLImageProcessor(
            size=dict(pixels), image_mean=[1.0, 1.0, 1.0], image_std=[0.3, 0.3, 0.3], **sizes
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels), **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    family_name: str,
    processor: ProcessorMixin,
    *,
    seed: int = 0,
    hidden_size: int = 96,
    num_hidden_layers: int = 3,
    vision_embed_dim: int = 96,
    vision_depth: int = 2,
    num_heads: int = 4,
    tie_word_embeddings: bool = False,
) -> PreTrainedModel:
    """
    Builds a tiny model of the family with random weights, in fp32.

    Args:
        family_name (`str`):
            One of `MODEL_CLASSES`.
        processor ([`~transformers.ProcessorMixin`]):
            The processor that [`build_processor`] made for this family; it gives the vocabulary and the token ids.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state is left as it was.
        hidden_size (`int`, *optional*, defaults to `96`):
            Width of the language model.
        num_hidden_layers (`int`, *optional*, defaults to `3`):
            Layers of the language model.
        vision_embed_dim (`int`, *optional*, defaults to `96`):
            Width of the vision tower, or of both.
        vision_depth (`int`, *optional*, defaults to `2`):
            Layers of the vision tower, or of both.
        num_heads (`int`, *optional*, defaults to `4`):
            Attention heads of both; half as many key-value heads in the language model.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the output head is the input embedding.

    Raises:
        ConfigError: if the family has no mini model, or a width does not divide into heads of a multiple of 8.
    """
    _check_family(family_name)
    for name, width in (("hidden_size", hidden_size), ("vision_embed_dim", vision_embed_dim)):
        if width % (8 * num_heads):
            raise ConfigError(
                f"`{name}` is {width}, but the rotary position embedding needs a multiple of {8 * num_heads} for "
                f"{num_heads} heads."
            )
    tokenizer = processor.tokenizer
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(1, num_heads // 2),
        "max_position_embeddings": tokenizer.model_max_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        # larger than usual: narrow models start to learn arithmetic several times sooner than with 0.02
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tower = {"width": vision_embed_dim, "depth": vision_depth, "heads": num_heads}
    if family_name == "math_puma_qwen2":
        config = _math_puma_config(text_config, **tower)
        config.image_token_index = processor.image_token_id
    elif family_name == "deepseek_vl_hybrid":
        config = _deepseek_config(text_config, **tower)
        config.image_token_id = processor.image_token_id
    else:
        config = _qwen_vl_config(family_name, text_config, **tower)
        config.image_token_id = processor.image_token_id
        config.video_token_id = processor.video_token_id
        config.vision_start_token_id = tokenizer.vision_start_token_id
        config.vision_end_token_id = tokenizer.vision_end_token_id
    config.tie_word_embeddings = tie_word_embeddings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODEL_CLASSES[family_name](config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def _check_family(family_name: str) -> None:
    if family_name not in MODEL_CLASSES:
        known = ", ".join(MODEL_CLASSES)
        raise ConfigError(f"There is no mini model of the family '{family_name}'. Choose one of {known}.")


def _qwen_vl_config(family_name: str, text_config: dict, width: int, depth: int, heads: int) -> PreTrainedConfig:
    hidden_size = text_config["hidden_size"]
    # time, height and width share the rotary frequencies as 2 : 1 : 1
    quarter = hidden_size // text_config["num_attention_heads"] // 8
    rope_parameters = text_config["rope_parameters"] | {"mrope_section": [2 * quarter, quarter, quarter]}
    vision_config = {
        "depth": depth,
        "num_heads": heads,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "initializer_range": INITIALIZER_RANGE,
    }
    if family_name == "qwen2_vl":
        config_class = Qwen2VLConfig
        vision_config |= {"embed_dim": width, "hidden_size": hidden_size}
    else:
        config_class = Qwen2_5_VLConfig
        vision_config |= {
            "hidden_size": width,
            "out_hidden_size": hidden_size,
            "intermediate_size": 4 * width,
            "fullatt_block_indexes": [depth - 1],
        }
    return config_class(text_config=text_config | {"rope_parameters": rope_parameters}, vision_config=vision_config)


def _siglip_config(patch_size: int, width: int, depth: int, heads: int) -> dict:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": IMAGE_SIZE[0],
        "patch_size": patch_size,
    }


def _math_puma_config(text_config: dict, width: int, depth: int, heads: int) -> PreTrainedConfig:
    return math_puma_qwen2.MathPumaQwen2Config(
        text_config=text_config | {"model_type": "qwen2"},
        # one layer more than is used: the aligner reads the last but one, as in the original
        vision_config=_siglip_config(PATCH_SIZE, width, depth + 1, heads) | {"vision_use_head": False},
        image_seq_length=(IMAGE_SIZE[0] // PATCH_SIZE) ** 2 - 1,
    )


def _deepseek_config(text_config: dict, width: int, depth: int, heads: int) -> PreTrainedConfig:
    # the high-resolution tower sees four times as many patches a side as the low one, as in the original
    low, high = 2 * PATCH_SIZE, PATCH_SIZE // 2
    return DeepseekVLHybridConfig(
        text_config=text_config | {"model_type": "llama"},
        vision_config=_siglip_config(low, width, depth, heads) | {"vision_use_head": False},
        high_res_vision_config={
            "model_type": "sam_vision_model",
            "hidden_size": width,
            "mlp_dim": 4 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "image_size": IMAGE_SIZE[0],
            "patch_size": high,
            "window_size": 6,
            "global_attn_indexes": [depth - 1],
            "output_channels": width // 2,
        },
    )


def _single_sided(pairs: Iterator[dict]) -> Iterator[dict]:
    """Turns pairs into rows with one side: the drawing, and in every fifth row the text."""
    shared = ("kind", "level", "answer")
    for index, pair in enumerate(pairs):
        # a row further in every round of the kinds, so that each kind comes in both forms
        suffix = "" if (index + index // len(KINDS)) % 5 == 0 else "_2"
        side = {name: pair[name + suffix] for name in ("image_url", "instruction", "output")}
        yield side | {name: pair[name] for name in shared}


def write_data(folder: Path, num_rows: int, num_heldout: int, seed: int, num_proc: int) -> None:
    """
    Writes the data of the three stages and the held-out pairs.

    Args:
        folder (`Path`):
            Where `stage1.jsonl` (text alone), `stage2.jsonl` (pairs), `stage3.jsonl` (drawings, and one text in five
            rows so that reading text is not forgotten), `heldout.jsonl` (pairs of problems in none of the others) and
            the pictures go.
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
    options = {"kinds": KINDS, "image_size": IMAGE_SIZE, "label_grid": LABEL_GRID, "num_proc": num_proc}
    texts = generate_pairs(num_rows, seed, KINDS, drawings=DRAWINGS, with_images=False)
    pairs = generate_pairs(num_rows, seed + 1, drawings=DRAWINGS, **options)
    instructions = _single_sided(generate_pairs(num_rows, seed + 2, drawings=DRAWINGS, **options))
    heldout = generate_pairs(num_heldout, seed, split="heldout", **options)
    write_pairs(texts, folder / "stage1.jsonl", "images/stage1")
    write_pairs(pairs, folder / "stage2.jsonl", "images/stage2")
    write_pairs(instructions, folder / "stage3.jsonl", "images/stage3")
    write_pairs(heldout, folder / "heldout.jsonl", "images/heldout")


def main(argv: list[str] | None = None) -> None:
    """Writes the model and the data."""
    parser = Parser(prog="puma-trl mini", description="Writes the mini model and its data.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/mini"), help="folder to write to")
    parser.add_argument("--family", choices=MODEL_CLASSES, default="qwen2_vl", help="model family")
    parser.add_argument("--n", type=int, default=12_000, help="rows of each stage")
    parser.add_argument("--heldout", type=int, default=300, help="held-out pairs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights, problems and drawings")
    parser.add_argument("--num_proc", type=int, default=os.cpu_count(), help="processes that draw")
    args = parser.parse_args(argv)
    for name in ("n", "heldout", "num_proc"):
        if getattr(args, name) < 1:
            raise ConfigError(f"`--{name}` is {getattr(args, name)}; it must be 1 or more.")
    check_folder(args.output_dir)
    write_data(args.output_dir / "data", args.n, args.heldout, args.seed, args.num_proc)
    processor = build_processor(args.family)
    processor.save_pretrained(args.output_dir / "model")
    build_model(args.family, processor, seed=args.seed).save_pretrained(args.output_dir / "model")
    print(f"The mini model is in {args.output_dir / 'model'}, its data in {args.output_dir / 'data'}.")


if __name__ == "__main__":
    run_command(main)
