"""How fast a run is: tokens and rows per second, waiting for data, memory, and the share of the GPU's peak."""

import re
import resource
import time
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ..data.collator import TEACHER
from ..models.adapters import below_adapters
from ..models.families import get_family
from ..models.parts import count_parameters


SIDES = ("", TEACHER)
# Tower → what it reads
TOWERS = {"vision_tower_low": "pixel_values", "vision_tower_high": "high_res_pixel_values"}
# What is counted on each side: on the device (tokens, squares of the rows' lengths, answer tokens), and from shapes
ON_DEVICE = [side + name for side in SIDES for name in ("tokens", "squares", "answers")]
FROM_SHAPES = [*(side + tower for side in SIDES for tower in TOWERS), "slots"]
COUNTS = (*ON_DEVICE, *FROM_SHAPES, "rows")
# Dense TFLOP/s in bf16 with fp32 accumulation, from the makers' data sheets; the first name that fits counts
PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


class Clock:
    """The seconds that training steps take, evaluations and saving left out, and those that they wait for data."""

    def __init__(self):
        self.waited = self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Goes on, if it stands."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Stands until the next step."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Hands batches on and counts the time until each is there."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch

    def take(self) -> float:
        """Returns the seconds since the last call, and starts anew."""
        self.stop()
        seconds, self._seconds, self.waited = self._seconds, 0.0, 0.0
        return seconds


class Work:
    """What the batches of one rank hold: counted from shapes where they tell, else on the device, not waited for."""

    def __init__(self):
        self.rows: torch.Tensor | int = 0
        self._on_device: torch.Tensor | int = 0
        self._from_shapes = dict.fromkeys(FROM_SHAPES, 0)

    def add(self, inputs: dict[str, Any]) -> None:
        """
        Counts a batch, on both sides.

        Args:
            inputs (`dict[str, Any]`):
                A batch of the collator or of TRL's. Without an `attention_mask` every position is read, and
                `position_ids`, whose first plane starts anew with every row, tell the rows' lengths. The tokens of a
                blank picture, `blank_tokens`, are none of a row.
        """
        counts = []
        for side in SIDES:
            ids = inputs.get(f"{side}input_ids")
            if ids is None:
                counts += [0, 0, 0]
                continue
            tokens, squares = _count_tokens(
                ids, inputs.get(f"{side}attention_mask"), inputs.get(f"{side}position_ids")
            )
            labels = inputs.get(f"{side}labels")
            counts += [
                tokens - inputs.get(f"{side}blank_tokens", 0),
                squares,
                0 if labels is None else (labels != -100).sum(),
            ]
            self._from_shapes["slots"] += ids.numel()
            for tower, name in TOWERS.items():
                pixels = inputs.get(f"{side}{name}")
                self._from_shapes[side + tower] += 0 if pixels is None else pixels.numel()
        zero = torch.zeros((), dtype=torch.long, device=inputs["input_ids"].device)
        self._on_device = self._on_device + torch.stack([zero + count for count in counts])

    def totals(self, device: torch.device) -> torch.Tensor:
        """Returns all numbers in the order of `COUNTS`."""
        on_device = torch.zeros(len(ON_DEVICE), dtype=torch.double, device=device) + self._on_device
        from_shapes = torch.tensor([*self._from_shapes.values()], dtype=torch.double, device=device)
        rows = torch.zeros(1, dtype=torch.double, device=device) + self.rows
        return torch.cat((on_device, from_shapes, rows))


def _count_tokens(
    ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None
) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    """Returns the number of tokens that are read, and the sum of the squares of the rows' lengths."""
    if mask is not None:
        lengths = mask.sum(-1)
        return lengths.sum(), (lengths * lengths).sum()
    if positions is None:
        return ids.numel(), ids.numel() * ids.shape[-1]
    plane = positions[0] if positions.dim() == 3 else positions
    return ids.numel(), (2 * plane + 1).sum()  # 1 + 3 + 5 + … over a row is the square of its length


def count_rows(batch: dict[str, Any]) -> torch.Tensor | int:
    """Returns the number of rows of a batch: by their names, else, packed, by where positions start anew."""
    if "row_id" in batch:
        return len(batch["row_id"])
    if batch.get("attention_mask") is None and "position_ids" in batch:
        return (batch["position_ids"] == 0).sum()
    return len(batch["input_ids"])


class Costs:
    """
    The floating-point operations that a model needs, counted as 2 for each weight and position in the forward pass, 2
    for the gradient of its input if something below it trains, and 2 for its own if it trains: 6·N per token where
    everything trains. Attention of the language model is added, by its causal half. The head counts at answer tokens,
    a tower at its patches. Left out are the towers' attention, norms and activations, and what gradient checkpointing
    repeats, so the share of the peak is rather too low than too high.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model that trains, unwrapped from the engine.
        teacher ([`~transformers.PreTrainedModel`], *optional*):
            Another model that reads the text-rich side.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, teacher: PreTrainedModel | None = None):
        self.of_sides = {"": self, TEACHER: self if teacher is None else Costs(teacher)}
        base = below_adapters(model)
        config, text = base.config, base.config.get_text_config()
        self.parts = count_parameters(model, get_family(config))
        self.is_known = "language_model" in self.parts and "other" not in self.parts
        table = text.vocab_size * text.hidden_size
        head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
        head_trains = any(weight.requires_grad for weight in head.parameters())
        embedding_trains = any(weight.requires_grad for weight in embedding.parameters())
        tables = [head_trains] if config.tie_word_embeddings else [head_trains, embedding_trains]
        trained, total = self.parts.get("language_model", (0, 0))
        self.parts["language_model"] = (trained - table * sum(tables), total - table * len(tables))
        self.parts["head"] = (table * head_trains, table)
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.attention = 2 * text.num_hidden_layers * text.num_attention_heads * head_size
        vision = getattr(config, "vision_config", None)
        self.patches = {
            "vision_tower_low": _pixels_of_patch(vision),
            "vision_tower_high": _pixels_of_patch(getattr(config, "high_res_vision_config", None)),
        }
        self.merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", 1)

    def count(self, totals: dict[str, float]) -> float:
        """Returns the operations behind the numbers of [`Work`], by name."""
        flops = 0.0
        for side in SIDES:
            is_student, costs = side == "", self.of_sides[side]
            patches = {tower: totals[side + tower] / size for tower, size in costs.patches.items()}
            positions = patches | {
                "aligner": patches["vision_tower_low"] / costs.merge**2,
                "language_model": totals[f"{side}tokens"],
                "head": totals[f"{side}answers"],
            }
            for part, number in positions.items():
                trained, total = costs.parts.get(part, (0, 0))
                flops += 2 * number * (total + is_student * (total * self._passes_gradients(part) + trained))
            flops += totals[f"{side}squares"] * costs.attention * (3 if is_student else 1)
        return flops

    def _passes_gradients(self, part: str) -> bool:
        """Whether something trains in a part or below it."""
        towers = [*self.patches]
        below = {"aligner": [*towers, "aligner"]} | {tower: [tower] for tower in towers}
        return any(self.parts.get(name, (0, 0))[0] for name in below.get(part, self.parts))


def _pixels_of_patch(vision: Any) -> int:
    """Returns the numbers that a patch of a picture has."""
    patch = getattr(vision, "patch_size", None) or 1
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    height, width = patch if isinstance(patch, list | tuple) else (patch, patch)  # InternVL names both
    return channels * height * width * (getattr(vision, "temporal_patch_size", None) or 1)


def peak_flops(name: str) -> float | None:
    """Returns the dense bf16 peak of a card in FLOP/s, or `None` for one that is not in `PEAK_TFLOPS`."""
    for card, tflops in PEAK_TFLOPS.items():
        if re.search(rf"\b{card}\b", name):
            return tflops * 1e12
    return None


def peak_memory(device: torch.device) -> float:
    """Returns the most bytes that tensors took on a GPU, or this process without one, since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def num_read(totals: dict[str, float]) -> float:
    """Returns the tokens that both sides read, padding left out, from the numbers of [`Work`]."""
    return sum(totals[f"{side}tokens"] for side in SIDES)


def describe_speed(
    totals: dict[str, float], seconds: float, waited: float, memory: float, flops: float | None, peak: float | None
) -> dict[str, float]:
    """
    Returns what is logged of the speed.

    Args:
        totals (`dict[str, float]`):
            The numbers of [`Work`] by name, of all ranks.
        seconds (`float`):
            The time that they took.
        waited (`float`):
            How much of it a rank waited for data, in the mean.
        memory (`float`):
            The most bytes on a rank.
        flops (`float`, *optional*):
            The operations that they needed.
        peak (`float`, *optional*):
            What all GPUs together can do per second.
    """
    if seconds <= 0:
        return {}
    speed = {
        "perf/tokens_per_second": num_read(totals) / seconds,
        "perf/samples_per_second": totals["rows"] / seconds,
        "perf/data_wait_share": min(waited / seconds, 1.0),
        "perf/peak_memory_gib": memory / 2**30,
    }
    return speed | ({"perf/mfu": flops / seconds / peak} if flops and peak else {})
