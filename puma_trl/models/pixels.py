"""How many pixels of a picture a model sees: `min_pixels` and `max_pixels`, and what its processor cuts away."""

import math
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import SizeDict

from ..errors import ModelError


def set_pixels(
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    min_pixels: int | None,
    max_pixels: int | None,
) -> None:
    """
    Sets between how many pixels the processor resizes pictures. It changes in memory, so that whatever counts tokens
    or makes batches with it afterwards does as it does, and is saved with it.

    Qwen-VL enlarges and reduces pictures to these numbers. LLaVA-NeXT and LLaVA-OneVision lay a picture on the best of
    some grids, of which those in between stay; InternVL cuts it into as many tiles as fit in between. Idefics3 and
    SmolVLM resize every picture to one longest edge, which becomes the longest whose square has at most `max_pixels`.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor of the model, or the tokenizer of a text model.
        config ([`~transformers.PreTrainedConfig`]):
            The model's configuration, of the model itself where there is one: it has the grids of LLaVA-NeXT and
            LLaVA-OneVision too.
        min_pixels (`int`, *optional*), max_pixels (`int`, *optional*):
            The numbers; nothing changes without either.

    Raises:
        ModelError: if the processor cannot, or not within these numbers.
    """
    wanted = {name: n for name, n in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if n is not None}
    if not wanted:
        return
    names = " and ".join(f"`{name}: {number}`" for name, number in wanted.items())
    if not isinstance(processor, ProcessorMixin):
        raise ModelError(f"{names}: a text model takes no pictures. Leave it out.")
    image_processor = processor.image_processor
    known = getattr(image_processor.valid_kwargs, "__annotations__", {})
    size = getattr(image_processor, "size", None) or {}
    if {"min_pixels", "max_pixels"} <= set(known) and size.get("shortest_edge") and size.get("longest_edge"):
        _set_bounds(image_processor, names, min_pixels, max_pixels)
    elif "image_grid_pinpoints" in known:
        _set_grids(image_processor, config, names, min_pixels, max_pixels)
    elif "max_patches" in known and _option(processor, "crop_to_patches"):
        _set_tiles(image_processor, names, min_pixels, max_pixels)
    elif "max_image_size" in known and image_processor.do_image_splitting:
        _set_longest_edge(processor, names, min_pixels, max_pixels)
    else:
        raise ModelError(f"{names}: {_describe_fixed(image_processor)} Leave it out.")


def _option(processor: ProcessorMixin, name: str) -> Any:
    """Returns an option of the images as the processor calls its image processor, which may have another value."""
    return getattr(processor, "images_kwargs", {}).get(name, getattr(processor.image_processor, name, None))


def _set_bounds(image_processor: Any, names: str, min_pixels: int | None, max_pixels: int | None) -> None:
    low = min_pixels or image_processor.size["shortest_edge"]
    high = max_pixels or image_processor.size["longest_edge"]
    token = image_processor.patch_size * image_processor.merge_size
    if high < token**2:
        raise ModelError(f"{names}: one token takes {token} x {token} pixels. Set `max_pixels` to {token**2} or more.")
    if low > high:
        raise ModelError(
            f"{names}: the processor would enlarge pictures to {low} pixels and reduce them to {high}. Set both, "
            "`min_pixels` to the smaller number."
        )
    image_processor.size = SizeDict(shortest_edge=low, longest_edge=high)


def _set_grids(
    image_processor: Any, config: PreTrainedConfig, names: str, min_pixels: int | None, max_pixels: int | None
) -> None:
    grids = [list(grid) for grid in image_processor.image_grid_pinpoints]
    kept = [grid for grid in grids if (min_pixels or 0) <= math.prod(grid) <= (max_pixels or math.inf)]
    if not kept:
        pixels = sorted({math.prod(grid) for grid in grids})
        raise ModelError(
            f"{names}: none of the processor's `image_grid_pinpoints`, of {pixels[0]} to {pixels[-1]} pixels, would "
            f"stay. Set `min_pixels` to at most {pixels[-1]}, `max_pixels` to at least {pixels[0]}."
        )
    image_processor.image_grid_pinpoints = kept
    config.image_grid_pinpoints = kept  # the model finds the grid of a picture on its own


def _set_tiles(image_processor: Any, names: str, min_pixels: int | None, max_pixels: int | None) -> None:
    height, width = image_processor.size["height"], image_processor.size["width"]
    low = image_processor.min_patches if min_pixels is None else math.ceil(min_pixels / (height * width))
    high = image_processor.max_patches if max_pixels is None else max_pixels // (height * width)
    if high < max(low, 1):
        raise ModelError(
            f"{names}: the processor cuts pictures into at least {max(low, 1)} tiles of {height} x {width} pixels. "
            f"Set `max_pixels` to {max(low, 1) * height * width} or more."
        )
    image_processor.min_patches, image_processor.max_patches = low, high


def _set_longest_edge(processor: ProcessorMixin, names: str, min_pixels: int | None, max_pixels: int | None) -> None:
    image_processor = processor.image_processor
    tile = image_processor.max_image_size["longest_edge"]
    if min_pixels is not None:
        raise ModelError(
            f"{names}: the processor resizes every picture, small ones too, to a longest edge of "
            f"{image_processor.size['longest_edge']} pixels. Leave `min_pixels` out; `max_pixels` sets that edge."
        )
    number = math.isqrt(max_pixels) // tile
    if number < 1:
        raise ModelError(
            f"{names}: the processor cuts pictures into tiles of {tile} x {tile} pixels. Set it to {tile**2} or more."
        )
    vocabulary = processor.tokenizer.get_vocab()
    if number > 1 and f"<row_{number}_col_{number}>" not in vocabulary:
        most = next((n for n in range(number, 1, -1) if f"<row_{n}_col_{n}>" in vocabulary), 1)
        raise ModelError(
            f"{names}: {number} x {number} tiles of {tile} x {tile} pixels need tokens that the tokenizer lacks. Set "
            f"it to less than {((most + 1) * tile) ** 2}."
        )
    image_processor.size = SizeDict(longest_edge=number * tile)


def _describe_fixed(image_processor: Any) -> str:
    name = type(image_processor).__name__
    shapes = (getattr(image_processor, key, None) for key in ("crop_size", "size"))
    shape = next((shape for shape in shapes if shape and shape.get("height")), None)
    if shape is None:
        return f"{name} has no such setting as it is configured; what it has instead stands in the processor's file."
    text = f"{name} resizes every picture to {shape['height']} x {shape['width']} pixels, each takes as many tokens"
    if hasattr(image_processor, "pan_and_scan_min_crop_size"):
        text += "; `do_pan_and_scan` in the processor's file adds parts of wide pictures"
    return f"{text}."


def cropped_share(processor: ProcessorMixin | PreTrainedTokenizerBase, sizes: Iterable[tuple[int, int]]) -> float:
    """
    Returns what share of the pixels of pictures a processor cuts away: those beyond its central crop.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor of the model. A tokenizer cuts nothing.
        sizes (`Iterable[tuple[int, int]]`):
            Height and width of each picture.

    Returns:
        `float`: from 0 to 1; 0 for processors that do not crop, and without pictures.
    """
    if not isinstance(processor, ProcessorMixin) or not _option(processor, "do_center_crop"):
        return 0.0
    pixels = cut = 0
    for height, width in sizes:
        pixels += height * width
        cut += height * width * (1 - _kept_share(processor.image_processor, height, width))
    return cut / pixels if pixels else 0.0


def _kept_share(image_processor: Any, height: int, width: int) -> float:
    shape, crop = (height, width), (image_processor.crop_size["height"], image_processor.crop_size["width"])
    if hasattr(image_processor, "image_grid_pinpoints"):
        shape = height, width = (crop[0], crop[0])  # each of the squares that it cuts the picture into
    elif getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        shape = (max(height, width),) * 2
    resized = _resized(image_processor, *shape)
    share = 1.0
    for edge, padded, after, limit in zip((height, width), shape, resized, crop, strict=True):
        share *= min(1.0, limit / after * padded / edge)
    return share


def _resized(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    size = image_processor.size
    if not image_processor.do_resize:
        return height, width
    if size.height:
        return size.height, size.width
    short, long = size.shortest_edge, int(size.shortest_edge * max(height, width) / min(height, width))
    return (short, long) if height < width else (long, short)
