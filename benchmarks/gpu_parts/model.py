"""Real model configurations with random weights, pairs of varied lengths, and the trainer over them."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from common import CONFIGS, PARTS, WORDS
from datasets import Dataset
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from puma_trl.config import PumaKLConfig
from puma_trl.mini import build_model, build_processor
from puma_trl.models.families import get_family
from puma_trl.models.parts import set_trainable_parts
from puma_trl.train.trainer import PumaKLTrainer


# Words of prompts and answers, pictures' sides in steps of 28 pixels: shortest and longest
SIZES = {"prompt": (30, 200), "question": (10, 60), "answer": (40, 300), "side": (8, 30)}
TINY_SIZES = {"prompt": (3, 12), "question": (2, 6), "answer": (3, 12), "side": (1, 3)}


def make_processor(model_type: str, side: int) -> ProcessorMixin:
    """Returns a processor of the family with a small tokenizer, which leaves pictures up to a size as they are."""
    processor = build_processor(model_type)
    processor.image_processor.size["longest_edge"] = max(
        (28 * side) ** 2, processor.image_processor.size["longest_edge"]
    )
    return processor


def read_config(name: str, processor: ProcessorMixin | None = None) -> Any:
    """Returns a configuration of benchmarks/configs, with the ids of a processor's picture tokens."""
    config = AutoConfig.for_model(**json.loads((CONFIGS / f"{name}.json").read_text())["config"])
    if processor is not None:
        tokenizer = processor.tokenizer
        config.image_token_id, config.video_token_id = processor.image_token_id, processor.video_token_id
        config.vision_start_token_id = tokenizer.vision_start_token_id
        config.vision_end_token_id = tokenizer.vision_end_token_id
        text = config.get_text_config()
        text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        text.pad_token_id = tokenizer.pad_token_id
    return config


def make_model(
    name: str | None, processor: ProcessorMixin, device: torch.device, dtype: torch.dtype, attention: str
) -> PreTrainedModel:
    """
    Returns a model with random weights on a device; what trains in stage 2 is fp32, as under an engine.

    Args:
        name (`str`, *optional*):
            A file of benchmarks/configs, or `None` for the mini model.
        processor ([`~transformers.ProcessorMixin`]):
            What [`make_processor`] made.
        device (`torch.device`), dtype (`torch.dtype`):
            Where the weights are, and in what.
        attention (`str`):
            `attn_implementation`.
    """
    if name is None:
        model = build_model("qwen2_vl", processor).to(device, dtype)
        model.set_attn_implementation(attention)
    else:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(
                read_config(name, processor), dtype=dtype, attn_implementation=attention
            )
    set_trainable_parts(model, PARTS, get_family(model.config))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def make_rows(count: int, folder: Path, tiny: bool) -> Dataset:
    """Returns pairs: a text-rich side in words, a vision-rich side with a picture, lengths all different."""
    rng, sizes = random.Random(0), TINY_SIZES if tiny else SIZES
    words = {name: [rng.choices(WORDS, k=rng.randint(*sizes[name])) for _ in range(count)] for name in sizes}
    rows = []
    for index in range(count):
        width, height = (28 * rng.randint(*sizes["side"]) for _ in range(2))
        path = folder / f"{index}.png"
        Image.new("RGB", (width, height), tuple(rng.randrange(256) for _ in range(3))).save(path)
        answer = " ".join(words["answer"][index])
        row = {"image_url": [], "instruction": " ".join(words["prompt"][index]), "output": answer}
        row |= {"image_url_2": [str(path)], "instruction_2": " ".join(words["question"][index]), "output_2": answer}
        rows.append(row)
    return Dataset.from_list(rows)


def make_trainer(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Dataset, folder: Path, **settings: Any
) -> PumaKLTrainer:
    """Returns the trainer over rows; `settings` are those of [`PumaKLConfig`] beside what every run has here."""
    on_gpu = next(model.parameters()).is_cuda
    config = PumaKLConfig(
        str(folder / "out"),
        **(
            {
                "bf16": on_gpu,
                "use_cpu": not on_gpu,
                "gradient_checkpointing": True,
                "max_length": None,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "trainable_parts": PARTS,
                "train_sampling_strategy": "group_by_length",
                "dataset_num_proc": 1,
            }
            | settings
        ),
    )
    return PumaKLTrainer(model, config, train_dataset=rows, processing_class=processor)
