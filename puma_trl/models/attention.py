"""
`attn_implementation: varlen`: rows that stand one behind the other, each attending to itself alone, with the kernels
that come with PyTorch. Importing this module registers it with transformers.
"""

import inspect
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from wrapt import when_imported

from ..errors import ModelError
from .families import FAMILIES, get_family, is_multimodal


VARLEN = "varlen"
# The same for vision towers that read pictures of any size one behind the other. Such towers hand over where pictures
# end only to an attention that has "flash" in its name, which a model cannot be loaded with unless it is a package's.
VARLEN_TOWER = "varlen_flash"
# Arguments of other kinds of attention
UNKNOWN = ("softcap", "s_aux", "position_bias")


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention as transformers calls it. Without `cu_seq_lens_q`, so in padded batches and when generating, it is sdpa.

    Args:
        module (`nn.Module`):
            The layer.
        query (`torch.Tensor` of shape `(1, heads, T, D)`), key, value (`torch.Tensor` of shape `(1, groups, T, D)`):
            Rows of T tokens in all.
        attention_mask (`torch.Tensor`, *optional*):
            Not read where the rows are told by `cu_seq_lens_q`.
        dropout, scaling, is_causal, sliding_window (*optional*):
            As in [`~transformers.integrations.sdpa_attention.sdpa_attention_forward`].
        cu_seq_lens_q (`torch.Tensor` of shape `(rows + 1,)`, *optional*):
            Where rows begin, and T, as int32.
        max_length_q (`int`, *optional*):
            Length of the longest row.

    Returns:
        `torch.Tensor` of shape (1, T, heads, D), and `None`.

    Raises:
        ModelError: if the model keeps from its layers where rows end, or has attention of a kind that is not known.
    """
    if cu_seq_lens_q is None:
        if attention_mask is not None and attention_mask.numel() == 0:  # see `no_mask`
            raise ModelError(
                f"{type(module).__name__} is not told where rows end, so they would attend to each other. Set "
                "`padding_free: false` for this model."
            )
        arguments = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments, **kwargs)
    if unknown := [name for name in UNKNOWN if kwargs.get(name) is not None]:
        raise ModelError(
            f"{type(module).__name__} computes attention with `{unknown[0]}`, which `attn_implementation: varlen` "
            "does not know. Set `padding_free: false` and `attn_implementation: eager` for this model."
        )
    is_causal = module.is_causal if is_causal is None else is_causal
    window = (sliding_window - 1 if sliding_window else -1, 0) if is_causal else (-1, -1)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (each.to(dtype) for each in (query, key, value))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        output = varlen_attn(
            *(each[0].transpose(0, 1) for each in (query, key, value)),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=window,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return output[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    outputs = [_attend(*row, is_causal, sliding_window, dropout_p=dropout, scale=scaling) for row in rows]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_causal: bool,
    sliding_window: int | None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention of one row."""
    length, mask = query.shape[2], None
    if is_causal and sliding_window and length > sliding_window:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
        is_causal = False
    kwargs |= {"attn_mask": mask, "is_causal": is_causal, "enable_gqa": key.shape[1] != query.shape[1]}
    return scaled_dot_product_attention(query, key, value, **kwargs)


def no_mask(device: torch.device) -> torch.Tensor:
    """
    Returns what stands for the attention mask of rows that `cu_seq_lens_q` tells apart.

    transformers takes a mask of four dimensions for one that is made, and hands it to the layers as it is; for none it
    would look at the positions, which waits for the device, and build a mask of T by T.
    """
    return torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device)


def attention_of(config: PreTrainedConfig) -> str | None:
    """Returns the attention of the language model."""
    return config.get_text_config()._attn_implementation


def check_padding_free(config: PreTrainedConfig, implementation: str | dict[str, str] | None) -> None:
    """
    Makes sure, before the data is read, that the rows of a model may stand one behind the other.

    Raises:
        ModelError: if models of this family cannot read such rows, or the attention would build a mask of all tokens
            by all tokens.
    """
    text = config.get_text_config()
    kinds = {*(getattr(text, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}
    if not (get_family(config).padding_free or _is_plain_text_model(config)) or kinds:
        known = sorted(model_type for family in FAMILIES if family.padding_free for model_type in family.model_types)
        reason = f"'{text.model_type}' has layers of {', '.join(sorted(kinds))}" if kinds else "others may mix rows up"
        raise ModelError(
            f"`padding_free: true` cannot be used with a model of type '{config.model_type}': rows that stand one "
            f"behind the other must be read apart, as in {', '.join(known)}; {reason}. Leave it out."
        )
    if isinstance(implementation, dict):  # name of a sub-configuration → attention; what is not named gets sdpa
        parts = [name for name in config.sub_configs if getattr(config, name) is text]
        implementation = implementation.get(parts[0] if parts else "")
    if implementation != VARLEN and "flash" not in str(implementation):
        raise ModelError(
            f"`padding_free: true` with `attn_implementation: {implementation or 'sdpa'}` would build a mask of all "
            "tokens by all tokens, and be slower than padding. Set `attn_implementation: varlen`, which needs nothing "
            "installed, or `flash_attention_2`."
        )


def _is_plain_text_model(config: PreTrainedConfig) -> bool:
    """Whether a language model hands on to its attention where rows end, and has no state that goes on behind them."""
    if is_multimodal(config) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return model_class._supports_attention_backend and not model_class._is_stateful


def prepare_towers(model: PreTrainedModel) -> None:
    """Lets vision towers with `varlen` that read pictures one behind the other tell it where pictures end."""
    for tower in model.modules():
        if isinstance(tower, PreTrainedModel) and "grid_thw" in inspect.signature(type(tower).forward).parameters:
            for module in tower.modules():
                config = getattr(module, "config", None)
                if isinstance(config, PreTrainedConfig) and config._attn_implementation == VARLEN:
                    config._attn_implementation = VARLEN_TOWER


for name in (VARLEN, VARLEN_TOWER):
    AttentionInterface.register(name, varlen_attention)
    AttentionMaskInterface.register(name, sdpa_mask)


@when_imported("transformers.models.sam.modeling_sam")
def _let_sam_know(sam: ModuleType) -> None:
    # Workaround (transformers 5.23, no upstream issue found): this tower, one of DeepSeek-VL-hybrid's, looks its
    # attention up in a table of its own. Its pictures have one size, so that varlen is sdpa there.
    sam.SAM_VISION_ATTENTION_CLASSES[VARLEN] = sam.SamVisionSdpaAttention
