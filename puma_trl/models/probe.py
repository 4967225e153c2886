"""Whether the attention that a recipe asks for runs on this machine: it is tried before the data is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from transformers import PreTrainedConfig
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl import ModelConfig

from ..config import PumaKLConfig
from ..errors import ModelError, first_line
from .attention import VARLEN, VARLEN_TOWER


# Tokens of the trial
LENGTH = 64
PACKAGES = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Starts no threads of OpenMP: processes that are forked later, to check the data, would wait for them."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def check_attention(model_args: ModelConfig, training_args: PumaKLConfig, config: PreTrainedConfig) -> str:
    """
    Runs the attention of the recipe once, forward and backward, with the head sizes of the model, on the device and in
    the dtype of the run.

    Returns:
        `str`: what runs, in words.

    Raises:
        ModelError: if its name is unknown, or it does not run: a package is missing, a kernel of the Hub cannot be
            had, or the card, the dtype or the size of the heads is none that it takes.
    """
    wanted = model_args.attn_implementation or "sdpa"
    names = sorted(set(wanted.values())) if isinstance(wanted, dict) else [wanted]
    device, dtype = training_args.device, _dtype(model_args, training_args)
    known = [name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name and name != VARLEN_TOWER]
    for name in names:
        if name not in ("eager", *known) and "/" not in name:
            raise ModelError(
                f"Unknown `attn_implementation: {name}`. Expected one of {', '.join(sorted({'eager', *known}))}, or a "
                "kernel of the Hub, such as kernels-community/flash-attn2."
            )
        if name == "eager":  # is the model's own
            continue
        try:
            with _one_thread():
                for heads, groups, size, is_causal in _heads(config):
                    _try(name, (heads, groups, size), is_causal, device, dtype)
        except Exception as error:  # of packages, of the Hub and of kernels, of all kinds
            where = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
            instead = f"`attn_implementation: {VARLEN}`, which comes with PyTorch, or `sdpa`"
            if name == VARLEN:
                instead = "`attn_implementation: sdpa` and `padding_free: false`"
            raise ModelError(
                f"`attn_implementation: {name}` does not run on {where} in {str(dtype).removeprefix('torch.')}: "
                f"{first_line(error).rstrip('.')}. Set {instead}."
            ) from error
    has_rows = training_args.padding_free or training_args.packing
    return ", ".join(_describe(name, device, dtype, has_rows) for name in names)


def _dtype(model_args: ModelConfig, training_args: PumaKLConfig) -> torch.dtype:
    if training_args.bf16 or training_args.fp16:
        return torch.bfloat16 if training_args.bf16 else torch.float16
    return getattr(torch, model_args.dtype or "", None) or torch.float32


def _heads(config: PreTrainedConfig) -> list[tuple[int, int, int, bool]]:
    """Returns heads, groups of them, size of a head and whether attention is causal, of text and of vision tower."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    found = [(heads, groups, size, True)]
    tower = getattr(config, "vision_config", None)
    heads = getattr(tower, "num_attention_heads", None) or getattr(tower, "num_heads", None)
    width = getattr(tower, "embed_dim", None) or getattr(tower, "hidden_size", None)
    if heads and width:
        found.append((heads, heads, width // heads, False))
    return found


def _try(name: str, sizes: tuple[int, int, int], is_causal: bool, device: torch.device, dtype: torch.dtype) -> None:
    heads, groups, size = sizes
    if "flash" in name or "/" in name:
        if device.type == "cpu":
            raise ModelError("it needs a GPU")
        lazy_import_flash_attention(name)
    function = ALL_ATTENTION_FUNCTIONS[name]
    layer = torch.nn.Module()
    layer.is_causal, layer.num_key_value_groups, layer.layer_idx = is_causal, heads // groups, 0
    layer.config = SimpleNamespace(_attn_implementation=name, dtype=dtype)
    query, key, value = (
        torch.zeros(1, number, LENGTH, size, device=device, dtype=dtype, requires_grad=True)
        for number in (heads, groups, groups)
    )
    ends = torch.tensor([0, LENGTH // 2, LENGTH], device=device, dtype=torch.int32)
    rows = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": LENGTH // 2, "max_length_k": LENGTH // 2}
    function(layer, query, key, value, None, scaling=size**-0.5, **({} if name == "sdpa" else rows))[
        0
    ].sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what a kernel cannot do shows when it has run


def _describe(name: str, device: torch.device, dtype: torch.dtype, has_rows: bool) -> str:
    """Returns the name, and what it runs; `has_rows` is whether rows stand one behind the other."""
    if name == VARLEN and not has_rows:
        return f"{name} (sdpa on padded batches)"
    if name == VARLEN:
        has_kernels = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
        return f"{name} ({'kernels of PyTorch' if has_kernels else 'sdpa, row by row'})"
    if name in PACKAGES:
        return f"{name} ({'installed package' if PACKAGES[name]() else 'kernel of the Hub'})"
    return name
