"""
The forward of original Math-PUMA models in plain torch, written from the architecture and not from the native classes.
"""

import math

import torch
from torch.nn import functional as F

from .original_models import DEEPSEEK_IMAGE, HEADS, HIGH, KV_HEADS, LOW, TEXT_LAYERS, TINY_TOWERS


class Weights:
    """The tensors below a prefix, with the layers that use them."""

    def __init__(self, tensors, prefix=""):
        self.tensors, self.prefix = tensors, prefix

    def at(self, name):
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def get(self, name):
        return self.tensors.get(self.prefix + name)

    def linear(self, name, x):
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def conv(self, name, x, **kwargs):
        return F.conv2d(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), **kwargs)

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.get(f"{name}.weight"), self.get(f"{name}.bias"), eps=1e-6)

    def rms_norm(self, name, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.get(f"{name}.weight")


def _attend(query, key, value, num_heads, mask=None):
    """Attention over (..., L, heads * D)."""

    def split(x):
        return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)

    query, key, value = split(query), split(key), split(value)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2)


def _language_logits(tensors, embeddings, mask, num_kv_heads, rope_theta=10000.0):
    """Logits (B, L, V); positions count the tokens that the mask (B, L) lets through."""
    weights = Weights(tensors, "language_model.model.")
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    frequencies = rope_theta ** -(torch.arange(0, 16, 2) / 16)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, :, None]

    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

    length = mask.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None].bool()
    allowed = allowed | torch.eye(length, dtype=torch.bool)  # padding sees itself, for want of anything else
    x = embeddings
    for index in range(TEXT_LAYERS):
        layer = weights.at(f"layers.{index}")
        h = layer.rms_norm("input_layernorm", x)
        query, key, value = (layer.linear(f"self_attn.{n}_proj", h).unflatten(-1, (-1, 16)) for n in "qkv")
        query, key = rotate(query), rotate(key)
        key, value = (t.repeat_interleave(HEADS // num_kv_heads, dim=2) for t in (key, value))
        h = _attend(query.flatten(2), key.flatten(2), value.flatten(2), HEADS, allowed)
        x = x + layer.linear("self_attn.o_proj", h)
        h = layer.rms_norm("post_attention_layernorm", x)
        x = x + layer.linear(
            "mlp.down_proj", F.silu(layer.linear("mlp.gate_proj", h)) * layer.linear("mlp.up_proj", h)
        )
    head = tensors.get("language_model.lm_head.weight", tensors["language_model.model.embed_tokens.weight"])
    return weights.rms_norm("norm", x) @ head.T


def qwen_image_features(config, tensors, pixels):
    """Features (images, patches - 1, H): SigLIP's last layer but one, the first patch dropped, the gated aligner."""
    weights = Weights(tensors, "vision_model.vision_model.")
    vision = config["vision_config"]
    x = weights.conv("embeddings.patch_embedding", pixels, stride=vision["patch_size"]).flatten(2).transpose(1, 2)
    x = x + weights.get("embeddings.position_embedding.weight")
    for index in range(vision["num_hidden_layers"] - 1):
        layer = weights.at(f"encoder.layers.{index}")
        h = layer.norm("layer_norm1", x)
        query, key, value = (layer.linear(f"self_attn.{n}_proj", h) for n in "qkv")
        x = x + layer.linear("self_attn.out_proj", _attend(query, key, value, vision["num_attention_heads"]))
        h = F.gelu(layer.linear("mlp.fc1", layer.norm("layer_norm2", x)), approximate="tanh")
        x = x + layer.linear("mlp.fc2", h)
    x = x[:, 1:]
    aligner = Weights(tensors, "aligner.")
    return aligner.linear("down_proj", F.gelu(aligner.linear("gate_proj", x)) * aligner.linear("up_proj", x))


def qwen_logits(config, tensors, rows, pixels):
    """
    Logits of rows of token ids with *one* `<|image|>` per image, as the original's processor gives them; the features
    take its place inside the forward. Rows are padded on the right.

    Returns:
        Logits (B, L, V) at the merged length, the merged mask (B, L).
    """
    features = iter(qwen_image_features(config, tensors, pixels)) if pixels is not None else iter(())
    table = tensors["language_model.model.embed_tokens.weight"]
    merged = [
        torch.cat([next(features) if token == config["image_token_index"] else table[token][None] for token in row])
        for row in rows
    ]
    embeddings = torch.nn.utils.rnn.pad_sequence(merged, batch_first=True)
    lengths = torch.tensor([len(row) for row in merged])
    mask = (torch.arange(embeddings.shape[1])[None] < lengths[:, None]).long()
    theta = config["text_config"].get("rope_theta", 10000.0)
    return _language_logits(tensors, embeddings, mask, KV_HEADS, theta), mask


def _sam_attention(block, x, num_heads):
    """Attention with decomposed relative positions over (B, height, width, C)."""
    batch, height, width, size = x.shape
    query, key, value = (
        part.reshape(batch, height * width, num_heads, -1).transpose(1, 2)
        for part in block.linear("attn.qkv", x).chunk(3, -1)
    )
    scores = (query @ key.transpose(-1, -2)) / math.sqrt(size // num_heads)
    rows, columns = torch.arange(height), torch.arange(width)
    relative_h = block.get("attn.rel_pos_h")[rows[:, None] - rows[None] + height - 1]
    relative_w = block.get("attn.rel_pos_w")[columns[:, None] - columns[None] + width - 1]
    grid = query.unflatten(2, (height, width))
    bias_h = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_h)[..., :, None]
    bias_w = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_w)[..., None, :]
    scores = scores + (bias_h + bias_w).flatten(4).flatten(2, 3)
    out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, height, width, size)
    return block.linear("attn.proj", out)


def _windowed(attention, x, window):
    """Applies an attention to windows, which are padded with zeros at the right and the bottom."""
    batch, height, width, size = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(batch, rows, window, columns, window, size).transpose(2, 3).reshape(-1, window, window, size)
    x = attention(x).reshape(batch, rows, columns, window, window, size).transpose(2, 3)
    return x.reshape(batch, rows * window, columns * window, size)[:, :height, :width]


def _sam_features(tensors, pixels):
    sizes = TINY_TOWERS["sam_b_downsample"]
    weights = Weights(tensors, HIGH)

    def through_neck(name, x):
        x = weights.conv(f"{name}.0", x.permute(0, 3, 1, 2))
        x = weights.norm(f"{name}.1", x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = weights.conv(f"{name}.2", x, padding=1)
        x = weights.norm(f"{name}.3", x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=(96, 96), mode="bilinear", align_corners=False)
        for index in range(2):
            x = weights.conv(f"downsamples.{index}", x, stride=2, padding=1)
        return x

    x = weights.conv("patch_embed.proj", pixels, stride=sizes["patch_size"]).permute(0, 2, 3, 1)
    x = x + weights.get("pos_embed")
    first_global = None
    for index in range(sizes["num_hidden_layers"]):
        block = weights.at(f"blocks.{index}")
        is_global = index in sizes["global_attn_indexes"]

        def attention(windows, block=block):
            return _sam_attention(block, windows, sizes["num_attention_heads"])

        h = block.norm("norm1", x)
        x = x + (attention(h) if is_global else _windowed(attention, h, sizes["window_size"]))
        x = x + block.linear("mlp.lin2", F.gelu(block.linear("mlp.lin1", block.norm("norm2", x))))
        if is_global and first_global is None:
            first_global = x
    out = through_neck("neck", x) + weights.get("hd_alpha_downsamples") * through_neck("neck_hd", first_global)
    return out.flatten(2).transpose(1, 2)


def _siglip_features(tensors, pixels):
    sizes = TINY_TOWERS["siglip_large_patch16_384"]
    weights = Weights(tensors, LOW)
    x = weights.conv("patch_embed.proj", pixels, stride=sizes["patch_size"]).flatten(2).transpose(1, 2)
    x = x + weights.get("pos_embed")
    for index in range(sizes["num_hidden_layers"]):
        block = weights.at(f"blocks.{index}")
        query, key, value = block.linear("attn.qkv", block.norm("norm1", x)).chunk(3, -1)
        x = x + block.linear("attn.proj", _attend(query, key, value, sizes["num_attention_heads"]))
        x = x + block.linear("mlp.fc2", F.gelu(block.linear("mlp.fc1", block.norm("norm2", x))))
    return weights.norm("norm", x)


def deepseek_logits(tensors, ids, mask, low_pixels, high_pixels):
    """Logits (B, L, V) of ids (B, L) with 576 image tokens per image; the features go where those stand."""
    embeddings = tensors["language_model.model.embed_tokens.weight"][ids]
    if low_pixels is not None:
        aligner = Weights(tensors, "aligner.")
        high = aligner.linear("high_up_proj", _sam_features(tensors, high_pixels))
        low = aligner.linear("low_up_proj", _siglip_features(tensors, low_pixels))
        features = aligner.linear("layers.1", F.gelu(torch.cat((high, low), -1)))
        embeddings = embeddings.clone()
        embeddings[ids == DEEPSEEK_IMAGE] = features.flatten(0, 1)
    return _language_logits(tensors, embeddings, mask, HEADS)
