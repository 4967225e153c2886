"""
What fits where: the memory of a GPU that each recipe needs, from the real model configurations on the meta device.

```bash
python benchmarks/memory_plan.py                          # every full, LoRA and QLoRA recipe, four models
python benchmarks/memory_plan.py --models Qwen2-VL-7B     # one of benchmarks/configs
python benchmarks/memory_plan.py --rows                   # how many rows of each recipe a card takes
```

`benchmarks/memory_check.py` compares the formula with runs. Nothing is loaded. A row is taken to be full: `max_length`
tokens, half of them of one picture in stages 2 and 3, a quarter of them answer. So a batch without padding takes as
much as a padded one, but for the mask: rows of about one length stand together, and those of the longest batch are all
full. Sizes are in GB of 10^9 bytes, as the makers of GPUs count within a few per cent.
"""

import argparse
import functools
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from common import ROOT, table_head, table_row
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText

from puma_trl.models.adapters import build_peft_config
from puma_trl.models.families import get_family
from puma_trl.models.parts import part_of, set_trainable_parts
from puma_trl.recipe import parse_recipe
from puma_trl.step.losses import CHUNK_MEMORY, VOCAB_SLICE


CONFIGS = sorted(path.stem for path in (ROOT / "benchmarks" / "configs").glob("*.json"))
CARDS = {"A100 80 GB": 80, "A100 40 GB": 40, "24 GB": 24}
FULL = 0.95  # of a card may be taken
ROWS = [2**power for power in range(7)]  # of a micro-batch
RECIPES = [
    ROOT / "recipes" / folder / f"stage{stage}.yaml"
    for folder in (".", "qwen2_vl/lora", "qwen2_vl/qlora")
    for stage in (1, 2, 3)
]
IMAGE_SHARE, ANSWER_SHARE = 1 / 2, 1 / 4
# bytes per weight: 4 bits, and an 8-bit scale per 64 with a 4-byte one per 256 of those
NF4 = 0.5 + (1 + 4 / 256) / 64
CONTEXT = 1.5e9  # CUDA, its libraries and the gaps of the allocator
LIVE_PARAMETERS = 1e9  # DeepSpeed's `stage3_max_live_parameters`: gathered at the same time
REDUCE_BUCKET = 2e8  # `reduce_bucket_size` of accelerate_configs/deepspeed: gradients that wait for their reduction
STEP_GROUP = 1e9  # DeepSpeed's `sub_group_size`: parameters updated at the same time
SFT_TILE = 4096 * 32768 * 4  # TRL's tile of logits


@dataclass
class Setting:
    """
    What the formula needs to know of a run.

    Args:
        width (`int`):
            Bytes of a number in the forward: 2 (bf16) or 4.
        processes (`int`):
            Number of processes W.
        zero (`int`):
            What DeepSpeed shards over them: 0 nothing (DDP, or one process), 2 gradients and optimizer states, 3
            parameters too.
        pairs (`bool`):
            Whether the step is the pair step.
        rows, length, patches, answers (`int`):
            Rows of a micro-batch; tokens, picture patches and answer tokens of a row.
        checkpointing (`bool`):
            Whether layers keep their input only.
        optimizer (`float`):
            Bytes of optimizer states for each trained number.
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether the rows of a side stand one behind the other, without a mask.
        bucket (`float`, *optional*):
            Numbers that DeepSpeed's bucket of gradients takes memory for.
    """

    width: int
    processes: int
    zero: int
    pairs: bool
    rows: int
    length: int
    patches: int
    answers: int
    checkpointing: bool
    optimizer: float
    padding_free: bool = False
    bucket: float = REDUCE_BUCKET


@dataclass
class Plan:
    """Bytes on one GPU, by what they are for."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    other: float

    @property
    def total(self) -> float:
        """Returns the sum."""
        return sum(asdict(self).values())


@dataclass
class Counts:
    """Numbers of parameters: trained, frozen, frozen in nf4, adapters, and the largest quantised matrix."""

    trained: int = 0
    frozen: int = 0
    nf4: int = 0
    largest_nf4: int = 0
    head_trains: bool = False
    tower_trains: bool = False
    adapter_inputs: int = 0  # width of the inputs of all adapters of one language-model layer


def count(model, model_args, parts: list[str]) -> Counts:
    """Chooses what trains as the run script does, and counts it; the model may be on the meta device."""
    family = get_family(model.config)
    peft_config = build_peft_config(model, model_args, parts, family)
    head = model.get_output_embeddings().weight
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantised = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if model_args.load_in_4bit and name in linear and part_of(name, family) == "language_model"
    } - {id(head)}
    if peft_config is None:
        set_trainable_parts(model, parts, family)
    else:
        model = get_peft_model(model, peft_config)
    counts = Counts(head_trains=head.requires_grad)
    layers = model.config.get_text_config().num_hidden_layers
    for name, parameter in model.named_parameters():
        part = part_of(name.removeprefix("base_model.model."), family)
        if parameter.requires_grad:
            counts.trained += parameter.numel()
            counts.tower_trains |= part == "vision_tower_low"
            if "lora_A" in name and part == "language_model":
                counts.adapter_inputs += parameter.shape[1] // layers
        elif id(parameter) in quantised:
            counts.nf4 += parameter.numel()
            counts.largest_nf4 = max(counts.largest_nf4, parameter.numel())
        else:
            counts.frozen += parameter.numel()
    return counts


def plan(config, counts: Counts, setting: Setting, is_adapted: bool) -> Plan:
    """
    Returns the bytes on one GPU.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model.
        counts ([`Counts`]):
            What trains.
        setting ([`Setting`]):
            How it trains.
        is_adapted (`bool`):
            Whether adapters train, which are fp32 outside DeepSpeed.
    """
    weight_shards = setting.processes if setting.zero == 3 else 1
    state_shards = setting.processes if setting.zero else 1
    # DeepSpeed trains in the width of the forward, beside fp32 copies if that is bf16; the other engines in fp32
    trained_width = setting.width if setting.zero else 4
    master = 4 if setting.zero and setting.width < 4 else 0
    activations = _language_activations(config.get_text_config(), counts, setting)
    activations += _tower_activations(config, counts, setting)
    loss = _loss_buffers(config.get_text_config(), counts, setting)
    other = _engine_buffers(config.get_text_config(), counts, setting, activations + loss)
    if not setting.padding_free:
        other += setting.rows * setting.length**2  # the mask
    if is_adapted and setting.width < 4:
        other += setting.width * counts.trained  # autocast keeps its casts through the step
    other += setting.width * counts.largest_nf4  # one matrix at a time is spread out
    weights = (trained_width * counts.trained + setting.width * counts.frozen) / weight_shards
    return Plan(
        parameters=weights + NF4 * counts.nf4,
        gradients=4 * counts.trained / state_shards,  # added in fp32
        optimizer=(master + setting.optimizer) * counts.trained / state_shards,
        activations=activations,
        loss=loss,
        other=other,
    )


def _engine_buffers(config, counts: Counts, setting: Setting, passes: float) -> float:
    """Returns what an engine needs to reduce gradients, gather parameters and step; `passes` is free again by then."""
    if not setting.zero:
        return 4.0 * counts.trained if setting.processes > 1 else 0.0  # DDP's buckets
    waiting = min(counts.trained, REDUCE_BUCKET)
    # the bucket, and what of it is sent: sorted by receiver and in fp32
    reduced = setting.width * setting.bucket
    sent = 4 * waiting
    gathered = 0.0
    if setting.zero == 3:
        live = LIVE_PARAMETERS + config.vocab_size * config.hidden_size  # the loss reads the head outside its module
        gathered = setting.width * min(counts.trained + counts.frozen, live)
    step = 4 * min(counts.trained / setting.processes, STEP_GROUP)  # gradients in one piece
    return reduced + max(gathered + sent, step - passes)


def _language_activations(config, counts: Counts, setting: Setting) -> float:
    tokens, hidden = setting.rows * setting.length, config.hidden_size
    key_values = 2 * hidden * config.num_key_value_heads // config.num_attention_heads
    # inputs and outputs of the matrices, residuals, and the two norms, which keep fp32
    layer = setting.width * (7 * hidden + 2 * key_values + 4 * config.intermediate_size) + 4 * 2 * hidden
    layer += setting.width * counts.adapter_inputs  # dropout of an adapter's input
    backward = setting.width * (2 * config.intermediate_size + 2 * hidden)  # gradients alive in one layer
    kept = setting.width * hidden if setting.checkpointing else layer
    embedded = 2 * setting.width * hidden  # embeddings and last hidden states
    return tokens * (config.num_hidden_layers * kept + (layer if setting.checkpointing else 0) + backward + embedded)


def _tower_activations(config, counts: Counts, setting: Setting) -> float:
    vision = config.vision_config
    is_first = config.model_type == "qwen2_vl"
    hidden = vision.embed_dim if is_first else vision.hidden_size
    inner = vision.mlp_ratio * hidden if is_first else vision.intermediate_size
    patches = setting.rows * setting.patches
    block = setting.width * (9 * hidden + (2 if is_first else 4) * inner) + 4 * 2 * hidden
    if not counts.tower_trains:
        return patches * block
    kept = vision.depth * (setting.width * hidden if setting.checkpointing else block)
    return patches * (kept + (block if setting.checkpointing else 0) + setting.width * (inner + hidden))


def _loss_buffers(config, counts: Counts, setting: Setting) -> float:
    answers, hidden, vocab = setting.rows * setting.answers, config.hidden_size, config.vocab_size
    if setting.pairs:
        tile = min(CHUNK_MEMORY, 2 * 4 * answers * vocab)
        sides = 2  # hidden states of both
    else:
        tile, sides = min(SFT_TILE, 4 * answers * vocab), 1
    head = 4 * vocab * hidden if counts.head_trains else 0
    slices = 4 * min(vocab, VOCAB_SLICE) * hidden if setting.width < 4 else 0
    return tile + head + slices + answers * hidden * (sides * setting.width + 4)


def engine_of(recipe: Path) -> tuple[int, int]:
    """Returns the stage of ZeRO, 0 without DeepSpeed, and the number of processes that a recipe's header names."""
    engine = re.search(r"accelerate_configs/(\w+)\.yaml", recipe.read_text(encoding="utf-8"))[1]
    stage = re.match(r"zero(\d)", engine)
    return int(stage[1]) if stage else 0, 1 if engine == "single_gpu" else 8


def plan_recipe(name: str, recipe: Path, rows: int | None = None) -> Plan:
    """Returns the plan of a recipe, or of it with so many rows, with the model of `benchmarks/configs/<name>.json`."""
    config, counts, setting, is_adapted = describe_recipe(name, recipe)
    return plan_setting(config, counts, setting if rows is None else replace(setting, rows=rows), is_adapted)


def plan_setting(config, counts: Counts, setting: Setting, is_adapted: bool) -> Plan:
    """Returns the plan on a GPU."""
    result = plan(config, counts, setting, is_adapted)
    result.other += CONTEXT
    return result


@functools.cache
def describe_recipe(name: str, recipe: Path) -> tuple:
    """Returns configuration, counts and setting of a recipe with a model, and whether adapters train."""
    values = json.loads((ROOT / "benchmarks" / "configs" / f"{name}.json").read_text())["config"]
    config = AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    _, args, model_args, _ = parse_recipe([str(recipe), "--use_cpu", "true", "--bf16", "false", "--tf32", "false"])
    counts = count(model, model_args, args.trainable_parts)
    has_images = args.trainable_parts != ["language_model"]
    zero, processes = engine_of(recipe)
    setting = Setting(
        width=2,
        processes=processes,
        zero=zero,
        pairs=args.use_kl,
        rows=args.per_device_train_batch_size,
        length=args.max_length,
        patches=int(args.max_length * IMAGE_SHARE) * config.vision_config.spatial_merge_size**2 if has_images else 0,
        answers=int(args.max_length * ANSWER_SHARE),
        checkpointing=args.gradient_checkpointing,
        optimizer=2 if "8bit" in args.optim else 8,
        padding_free=bool(args.padding_free),
    )
    return config, counts, setting, model_args.use_peft


def fitting_rows(name: str, recipe: Path, size: float) -> int:
    """Returns the largest number of rows of a micro-batch, 1, 2, 4 … 64, for which a card has room."""
    fits = [rows for rows in ROWS if plan_recipe(name, recipe, rows).total / 1e9 <= FULL * size]
    return max(fits, default=0)


def print_rows(models: list[str]) -> None:
    """Prints how many rows each recipe can have on each card, of one micro-batch."""
    sizes = sorted(CARDS.values())
    print(table_head("recipe", "engine", *(f"{name}, {size} GB" for name in models for size in sizes)))
    for recipe in RECIPES:
        zero, _ = engine_of(recipe)
        cells = [fitting_rows(name, recipe, size) for name in models for size in sizes]
        engine = f"ZeRO-{zero}" if zero else "one GPU"
        print(table_row([f"`{recipe.relative_to(ROOT)}`", engine, *(str(rows or "–") for rows in cells)]), flush=True)


def print_plans(models: list[str]) -> None:
    """Prints what each recipe needs, part by part, and then in short which card has room for it."""
    print(table_head("recipe", "GPUs", "rows", "model", *Plan.__annotations__, "**GB per GPU**"))
    short = [table_head("recipe", "engine", "rows", *models)]
    for recipe in RECIPES:
        zero, gpus = engine_of(recipe)
        totals = []
        for name in models:
            rows = describe_recipe(name, recipe)[2].rows
            result = plan_recipe(name, recipe)
            totals.append(result.total / 1e9)
            parts = [f"{value / 1e9:.1f}" for value in asdict(result).values()]
            start = [f"`{recipe.relative_to(ROOT)}`", str(gpus), str(rows), name]
            print(table_row([*start, *parts, f"**{totals[-1]:.1f}**"]), flush=True)
        start = [f"`{recipe.relative_to(ROOT)}`", f"ZeRO-{zero}, {gpus} GPUs" if zero else "one GPU", str(rows)]
        short.append(table_row([*start, *(f"{total:.1f} ({smallest_card(total)})" for total in totals)]))
    print("\nGB per GPU, and the smallest card with room for it:\n\n" + "\n".join(short))


def smallest_card(size: float) -> str:
    """Returns the name of the smallest card with room for so many GB, 5 % of it left free."""
    return min((card for card in CARDS if size <= FULL * CARDS[card]), key=CARDS.get, default="none of them")


def main() -> None:
    """Prints the plans."""
    parser = argparse.ArgumentParser(description="Memory per GPU of every recipe.")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=CONFIGS, help="files of benchmarks/configs")
    parser.add_argument("--rows", action="store_true", help="print how many rows each card takes")
    args = parser.parse_args()
    (print_rows if args.rows else print_plans)(args.models)


if __name__ == "__main__":
    main()
