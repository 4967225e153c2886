"""Batches without padding: the rows of a side stand one behind the other, with all that tells them apart."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import MODEL_MAPPING, PreTrainedConfig
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index


# Tensors of shape (B, L); all others are of pictures
PER_TOKEN = ("input_ids", "labels", "attention_mask", "token_type_ids", "mm_token_type_ids")
# Tensors of pictures whose values models look at, and never compute with
SIZES = ("image_sizes", "batch_num_images")


@dataclass
class OnHost:
    """A tensor that stays on the CPU, whatever moves a batch to its device."""

    value: torch.Tensor


def find_answers(labels: torch.Tensor) -> torch.Tensor:
    """
    Returns the positions whose hidden states predict an answer token, counted through all rows of a batch, from its
    labels of shape (B, L), -100 elsewhere.

    Returns:
        `torch.Tensor` of shape (N,): indices into B · L; the label of each is the one behind it.
    """
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != -100
    return predicts.flatten().nonzero().squeeze(1)


def line_up(batch: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """
    Puts the rows of a padded batch one behind the other.

    Args:
        batch (`dict[str, Any]`):
            `input_ids`, `attention_mask`, `labels` and other tensors per token of shape (B, L), padded on the right,
            and what the processor makes of pictures.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model.

    Returns:
        `dict[str, Any]`: `input_ids` and `labels` of shape (1, T); `position_ids` of shape (1, T), from 0 in each row,
        or, for models with positions of three axes, (4, 1, T) with those first; `cu_seq_lens_q` and `cu_seq_lens_k`
        (B + 1,), `max_length_q` and `max_length_k`, where rows begin and how long the longest is; and what comes of
        pictures, as it was. For towers that read pictures one behind the other, where those begin is added, and the
        sizes of pictures stay on the CPU, where they are read.
    """
    mask = batch["attention_mask"].bool()
    labels = batch["labels"].clone()
    labels[:, 0] = -100  # nothing before it predicts it
    ends = mask.sum(1).cumsum(0)
    starts = pad(ends, (1, 0)).to(torch.int32)
    longest = int(mask.sum(1).max())
    positions = (mask.cumsum(1) - 1)[mask][None]
    model_class = MODEL_MAPPING[type(config)]
    if hasattr(model_class, "get_rope_index"):
        axes = _rope_index(model_class, config, batch)[:, mask][:, None]
        positions = torch.cat((positions[None], axes))
    result = {"input_ids": batch["input_ids"][mask][None], "labels": labels[mask][None], "position_ids": positions}
    result |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
    result |= {
        name: OnHost(value) if name in SIZES else value for name, value in batch.items() if name not in PER_TOKEN
    }
    if "image_grid_thw" in batch:
        result |= _describe_pictures(batch["image_grid_thw"], config.vision_config)
    return result


def _rope_index(model_class: type, config: PreTrainedConfig, batch: dict[str, Any]) -> torch.Tensor:
    """Returns the positions (3, B, L) that the model would compute itself, on the device; of it the sizes are used."""
    model = SimpleNamespace(config=config)
    model.get_vision_position_ids = partial(model_class.get_vision_position_ids, model)
    types = batch.get("mm_token_type_ids")
    return model_class.get_rope_index(
        model,
        batch["input_ids"],
        mm_token_type_ids=torch.zeros_like(batch["input_ids"]) if types is None else types,
        image_grid_thw=batch.get("image_grid_thw"),
        attention_mask=batch["attention_mask"],
    )[0]


def _describe_pictures(sizes: torch.Tensor, config: PreTrainedConfig) -> dict[str, Any]:
    """Returns what a tower would otherwise work out from the sizes (images, 3) of pictures while the device waits."""
    starts = get_vision_cu_seqlens(sizes)
    facts = {
        "position_ids": get_vision_position_ids(sizes, config.spatial_merge_size),
        "cu_seqlens": starts,
        "max_seqlen": int(starts.diff().max()),
    }
    if hasattr(config, "window_size"):
        windows, starts = get_vision_window_index(
            sizes, config.spatial_merge_size, config.window_size, config.patch_size
        )
        facts |= {"window_index": windows, "cu_window_seqlens": starts, "max_window_seqlen": int(starts.diff().max())}
    facts = {f"image_{name}": value for name, value in facts.items()}
    # towers with a table of positions need the sizes on the device, to read between its entries
    return facts if hasattr(config, "num_position_embeddings") else facts | {"image_grid_thw": OnHost(sizes)}
