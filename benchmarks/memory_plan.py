"""
What fits where: the memory of a GPU that each recipe needs, from the real model configurations on the meta device.

```bash
python benchmarks/memory_plan.py                          # every full, LoRA and QLoRA recipe, four models
python benchmarks/memory_plan.py --models Qwen2-VL-7B     # one of benchmarks/configs
```

`benchmarks/memory_check.py` compares the formula with runs. Nothing is loaded. A row is taken to be full: `max_length`
tokens, half of them of one picture in stages 2 and 3, a quarter of them answer. Sizes are in GB of 10^9 bytes, as the
makers of GPUs count within a few per cent.
"""

import argparse
import json
from dataclasses import asdict, dataclass
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
IMAGE_SHARE, ANSWER_SHARE = 1 / 2, 1 / 4
# bytes per weight: 4 bits, and an 8-bit scale per 64 with a 4-byte one per 256 of those
NF4 = 0.5 + (1 + 4 / 256) / 64
CONTEXT = 1.5e9  # CUDA, its libraries and the gaps of the allocator
LIVE_PARAMETERS = 1e9  # DeepSpeed's `stage3_max_live_parameters`: gathered at the same time
REDUCE_BUCKET = 5e8  # DeepSpeed's `reduce_bucket_size`: gradients that wait for their reduction
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
        zero3 (`bool`):
            Whether parameters, gradients and optimizer states are sharded over them.
        pairs (`bool`):
            Whether the step is the pair step.
        rows, length, patches, answers (`int`):
            Rows of a micro-batch; tokens, picture patches and answer tokens of a row.
        checkpointing (`bool`):
            Whether layers keep their input only.
        optimizer (`float`):
            Bytes of optimizer states for each trained number.
        bucket (`float`, *optional*):
            Numbers that DeepSpeed's bucket of gradients takes memory for.
    """

    width: int
    processes: int
    zero3: bool
    pairs: bool
    rows: int
    length: int
    patches: int
    answers: int
    checkpointing: bool
    optimizer: float
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
    shards = setting.processes if setting.zero3 else 1
    # DeepSpeed trains in the width of the forward, beside fp32 copies if that is bf16; the other engines in fp32
    trained_width = setting.width if setting.zero3 else 4
    master = 4 if setting.zero3 and setting.width < 4 else 0
    activations = _language_activations(config.get_text_config(), counts, setting)
    activations += _tower_activations(config, counts, setting)
    loss = _loss_buffers(config.get_text_config(), counts, setting)
    other = 0.0
    if setting.zero3:
        text = config.get_text_config()
        live = LIVE_PARAMETERS + text.vocab_size * text.hidden_size  # the loss reads the head outside of its module
        gathered = setting.width * min(counts.trained + counts.frozen, live)
        scattered = setting.width * min(counts.trained, REDUCE_BUCKET)  # the bucket, sorted by receiver
        step = (4 + master) * min(counts.trained / shards, STEP_GROUP)  # gradients in one piece, and in fp32
        # when the optimizer steps, what the passes worked with is free again
        other += setting.width * setting.bucket + max(gathered + scattered, step - activations - loss)
    elif setting.processes > 1:
        other += trained_width * counts.trained  # DDP's buckets
    if is_adapted and setting.width < 4:
        other += setting.width * counts.trained  # autocast keeps its casts through the step
    other += setting.width * counts.largest_nf4  # one matrix at a time is spread out
    return Plan(
        parameters=(trained_width * counts.trained + setting.width * counts.frozen) / shards + NF4 * counts.nf4,
        gradients=trained_width * counts.trained / shards,
        optimizer=(master + setting.optimizer) * counts.trained / shards,
        activations=activations,
        loss=loss,
        other=other,
    )


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


def plan_recipe(name: str, recipe: Path) -> Plan:
    """Returns the plan of a recipe with the model of `benchmarks/configs/<name>.json`."""
    values = json.loads((ROOT / "benchmarks" / "configs" / f"{name}.json").read_text())["config"]
    config = AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    _, args, model_args, _ = parse_recipe([str(recipe), "--use_cpu", "true", "--bf16", "false", "--tf32", "false"])
    counts = count(model, model_args, args.trainable_parts)
    has_images = args.trainable_parts != ["language_model"]
    processes = 1 if model_args.use_peft else 8
    setting = Setting(
        width=2,
        processes=processes,
        zero3=processes > 1,
        pairs=args.use_kl,
        rows=args.per_device_train_batch_size,
        length=args.max_length,
        patches=int(args.max_length * IMAGE_SHARE) * config.vision_config.spatial_merge_size**2 if has_images else 0,
        answers=int(args.max_length * ANSWER_SHARE),
        checkpointing=args.gradient_checkpointing,
        optimizer=2 if "8bit" in args.optim else 8,
    )
    result = plan(config, counts, setting, model_args.use_peft)
    result.other += CONTEXT
    return result


def print_plans(models: list[str]) -> None:
    """Prints what each recipe needs, part by part, and then in short which card has room for it."""
    print(table_head("recipe", "GPUs", "model", *Plan.__annotations__, "**GB per GPU**"))
    short = [table_head("recipe", "GPUs", *models)]
    for folder, gpus in ((".", 8), ("qwen2_vl/lora", 1), ("qwen2_vl/qlora", 1)):
        for stage in (1, 2, 3):
            recipe = ROOT / "recipes" / folder / f"stage{stage}.yaml"
            start = [f"`{recipe.relative_to(ROOT)}`", str(gpus)]
            totals = []
            for name in models:
                result = plan_recipe(name, recipe)
                totals.append(result.total / 1e9)
                parts = [f"{value / 1e9:.1f}" for value in asdict(result).values()]
                print(table_row([*start, name, *parts, f"**{totals[-1]:.1f}**"]), flush=True)
            short.append(table_row([*start, *(f"{total:.1f} ({smallest_card(total)})" for total in totals)]))
    print("\nGB per GPU, and the smallest card with room for it:\n\n" + "\n".join(short))


def smallest_card(size: float) -> str:
    """Returns the name of the smallest card with room for so many GB, 5 % of it left free."""
    return min((card for card in CARDS if size <= 0.95 * CARDS[card]), key=CARDS.get, default="none of them")


def main() -> None:
    """Prints the plans."""
    parser = argparse.ArgumentParser(description="Memory per GPU of every recipe.")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=CONFIGS, help="files of benchmarks/configs")
    args = parser.parse_args()
    print_plans(args.models)


if __name__ == "__main__":
    main()
