"""
Tiny original Math-PUMA models: their configurations and tensors as the released checkpoints have them, and their
forward in plain torch, written from the architecture and not from the native classes.
"""

import json
import math

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F


HIGH = "vision_model.vision_tower_high.vision_tower."
LOW = "vision_model.vision_tower_low.vision_tower."
HIDDEN, VOCAB, TEXT_LAYERS, HEADS, KV_HEADS = 64, 320, 2, 4, 2
QWEN_IMAGE, DEEPSEEK_IMAGE = 300, 301

# `TOWER_SIZES` for the tiny towers. Both must end in 24 x 24 positions: the original resizes to 96 x 96 and halves
# twice.
TINY_TOWERS = {
    "sam_b_downsample": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 4,
        "window_size": 5,  # does not divide 16, so windows are padded
        "global_attn_indexes": [1, 3],
        "output_channels": 8,
    },
    "siglip_large_patch16_384": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 2,
    },
}


class Tensors(dict):
    """Random tensors by name; the same seed gives the same ones."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, name, *shape, scale=0.2, offset=0.0):
        self[name] = offset + scale * torch.randn(shape, generator=self.generator)

    def linear(self, name, in_size, out_size, bias=True):
        self.add(f"{name}.weight", out_size, in_size, scale=in_size**-0.5)
        if bias:
            self.add(f"{name}.bias", out_size)

    def norm(self, name, size):
        self.add(f"{name}.weight", size, offset=1.0)
        self.add(f"{name}.bias", size)


def _language_tensors(tensors, qkv_bias, num_kv_heads, tied, stored_head, intermediate_size=96):
    root = "language_model.model"
    tensors.add(f"{root}.embed_tokens.weight", VOCAB, HIDDEN)
    for index in range(TEXT_LAYERS):
        layer = f"{root}.layers.{index}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors.add(f"{layer}.{name}.weight", HIDDEN, offset=1.0)
        for name, size in (("q", HIDDEN), ("k", 16 * num_kv_heads), ("v", 16 * num_kv_heads)):
            tensors.linear(f"{layer}.self_attn.{name}_proj", HIDDEN, size, bias=qkv_bias)
        tensors.linear(f"{layer}.self_attn.o_proj", HIDDEN, HIDDEN, bias=False)
        for name in ("gate_proj", "up_proj"):
            tensors.linear(f"{layer}.mlp.{name}", HIDDEN, intermediate_size, bias=False)
        tensors.linear(f"{layer}.mlp.down_proj", intermediate_size, HIDDEN, bias=False)
    tensors.add(f"{root}.norm.weight", HIDDEN, offset=1.0)
    if not tied:
        tensors.linear("language_model.lm_head", HIDDEN, VOCAB, bias=False)
    elif stored_head:
        tensors["language_model.lm_head.weight"] = tensors[f"{root}.embed_tokens.weight"].clone()


def make_qwen(seed=0, tied=False, stored_head=False, rope_theta=None, intermediate_size=96):
    """Returns configuration and tensors of a tiny `qwen2vlm`; without `rope_theta` it is the default, as in the 7B."""
    vision_size, num_layers, image_size, patch_size = 32, 3, 56, 14
    config = {
        "architectures": ["Qwen2vlmForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": QWEN_IMAGE,
        "model_type": "qwen2vlm",
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "Qwen/Qwen2-7B-Instruct",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": HIDDEN,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": 4096,
            "model_type": "qwen2",
            "num_attention_heads": HEADS,
            "num_hidden_layers": TEXT_LAYERS,
            "num_key_value_heads": KV_HEADS,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": VOCAB,
        },
        "torch_dtype": "float32",
        "transformers_version": "4.42.0",
        "vision_config": {
            "hidden_size": vision_size,
            "image_size": image_size,
            "intermediate_size": 48,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 4,
            "num_hidden_layers": num_layers,
            "patch_size": patch_size,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    if tied:
        config["text_config"]["tie_word_embeddings"] = True
    if rope_theta is not None:
        config["text_config"]["rope_theta"] = rope_theta
    tensors = Tensors(seed)
    root = "vision_model.vision_model"
    tensors.add(f"{root}.embeddings.patch_embedding.weight", vision_size, 3, patch_size, patch_size, scale=0.05)
    tensors.add(f"{root}.embeddings.patch_embedding.bias", vision_size)
    tensors.add(f"{root}.embeddings.position_embedding.weight", (image_size // patch_size) ** 2, vision_size)
    for index in range(num_layers):
        layer = f"{root}.encoder.layers.{index}"
        for name in ("layer_norm1", "layer_norm2"):
            tensors.norm(f"{layer}.{name}", vision_size)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors.linear(f"{layer}.self_attn.{name}", vision_size, vision_size)
        tensors.linear(f"{layer}.mlp.fc1", vision_size, 48)
        tensors.linear(f"{layer}.mlp.fc2", 48, vision_size)
    tensors.norm(f"{root}.post_layernorm", vision_size)
    tensors.add(f"{root}.head.probe", 1, 1, vision_size)
    tensors.add(f"{root}.head.attention.in_proj_weight", 3 * vision_size, vision_size)
    tensors.add(f"{root}.head.attention.in_proj_bias", 3 * vision_size)
    tensors.linear(f"{root}.head.attention.out_proj", vision_size, vision_size)
    tensors.norm(f"{root}.head.layernorm", vision_size)
    tensors.linear(f"{root}.head.mlp.fc1", vision_size, 48)
    tensors.linear(f"{root}.head.mlp.fc2", 48, vision_size)
    for name, in_size in (("gate", vision_size), ("up", vision_size), ("down", HIDDEN)):
        tensors.linear(f"aligner.{name}_proj", in_size, HIDDEN, bias=False)
    _language_tensors(tensors, True, KV_HEADS, tied, stored_head, intermediate_size)
    return config, dict(tensors)


def make_deepseek(seed=0, tied=False, stored_head=False):
    """Returns configuration and tensors of a tiny `multi_modality`, for `TINY_TOWERS`."""
    sam, siglip = TINY_TOWERS["sam_b_downsample"], TINY_TOWERS["siglip_large_patch16_384"]
    clip = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    towers = {}
    for key, name, sizes, (mean, std) in (
        ("high_res_cfg", "sam_b_downsample", sam, clip),
        ("low_res_cfg", "siglip_large_patch16_384", siglip, ([0.5] * 3, [0.5] * 3)),
    ):
        towers[key] = {
            "ckpt_path": "",
            "image_size": sizes["image_size"],
            "model_name": name,
            "output_dim": 32,
            "pixel_mean": mean,
            "pixel_std": std,
            "select_feature": "same",
            "select_layer": -1,
        }
    config = {
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": {
                "depth": 2,
                "input_dim": 32,
                "n_embed": HIDDEN,
                "projector_type": "low_high_hybrid_split_mlp_gelu",
            },
        },
        "architectures": ["MultiModalityCausalLM"],
        "language_config": {
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "max_position_embeddings": 16384,
            "model_type": "llama",
            "num_attention_heads": HEADS,
            "num_hidden_layers": TEXT_LAYERS,
            "num_key_value_heads": HEADS,
            "vocab_size": VOCAB,
        },
        "model_type": "multi_modality",
        "torch_dtype": "float32",
        "transformers_version": "4.38.2",
        "vision_config": {
            "cls": "HybridVisionTower",
            "model_type": "vision",
            "params": {"concat_type": "tuple", "freeze_high": True, "freeze_low": True, **towers},
        },
    }
    if tied:
        config["language_config"]["tie_word_embeddings"] = True
    tensors = Tensors(seed)
    _sam_tensors(tensors, sam)
    _timm_tensors(tensors, siglip)
    for name in ("high", "low"):
        tensors.norm(f"vision_model.{name}_layer_norm", 32)
        tensors.linear(f"aligner.{name}_up_proj", 32, HIDDEN // 2)
    tensors.linear("aligner.layers.1", HIDDEN, HIDDEN)
    _language_tensors(tensors, False, HEADS, tied, stored_head)
    return config, dict(tensors)


def _sam_tensors(tensors, sizes):
    width, channels, grid = sizes["hidden_size"], sizes["output_channels"], sizes["image_size"] // sizes["patch_size"]
    tensors.add(f"{HIGH}pos_embed", 1, grid, grid, width)
    tensors.add(f"{HIGH}patch_embed.proj.weight", width, 3, sizes["patch_size"], sizes["patch_size"])
    tensors.add(f"{HIGH}patch_embed.proj.bias", width)
    for index in range(sizes["num_hidden_layers"]):
        block = f"{HIGH}blocks.{index}"
        span = grid if index in sizes["global_attn_indexes"] else sizes["window_size"]
        tensors.norm(f"{block}.norm1", width)
        tensors.norm(f"{block}.norm2", width)
        tensors.linear(f"{block}.attn.qkv", width, 3 * width)
        tensors.linear(f"{block}.attn.proj", width, width)
        for axis in "hw":
            tensors.add(f"{block}.attn.rel_pos_{axis}", 2 * span - 1, width // sizes["num_attention_heads"])
        tensors.linear(f"{block}.mlp.lin1", width, 4 * width)
        tensors.linear(f"{block}.mlp.lin2", 4 * width, width)
    for neck in ("neck", "neck_hd"):
        tensors.add(f"{HIGH}{neck}.0.weight", channels, width, 1, 1)
        tensors.norm(f"{HIGH}{neck}.1", channels)
        tensors.add(f"{HIGH}{neck}.2.weight", channels, channels, 3, 3)
        tensors.norm(f"{HIGH}{neck}.3", channels)
    tensors.add(f"{HIGH}downsamples.0.weight", 2 * channels, channels, 3, 3)
    tensors.add(f"{HIGH}downsamples.1.weight", 4 * channels, 2 * channels, 3, 3)
    tensors.add(f"{HIGH}hd_alpha_downsamples", 1, offset=0.7)


def _timm_tensors(tensors, sizes):
    width = sizes["hidden_size"]
    tensors.add(f"{LOW}pos_embed", 1, (sizes["image_size"] // sizes["patch_size"]) ** 2, width)
    tensors.add(f"{LOW}patch_embed.proj.weight", width, 3, sizes["patch_size"], sizes["patch_size"])
    tensors.add(f"{LOW}patch_embed.proj.bias", width)
    for index in range(sizes["num_hidden_layers"]):
        block = f"{LOW}blocks.{index}"
        tensors.norm(f"{block}.norm1", width)
        tensors.norm(f"{block}.norm2", width)
        tensors.linear(f"{block}.attn.qkv", width, 3 * width)
        tensors.linear(f"{block}.attn.proj", width, width)
        tensors.linear(f"{block}.mlp.fc1", width, 4 * width)
        tensors.linear(f"{block}.mlp.fc2", 4 * width, width)
    tensors.norm(f"{LOW}norm", width)
    tensors.add(f"{LOW}attn_pool.latent", 1, 1, width)
    for name, out_size in (("q", width), ("kv", 2 * width), ("proj", width)):
        tensors.linear(f"{LOW}attn_pool.{name}", width, out_size)
    tensors.norm(f"{LOW}attn_pool.norm", width)
    tensors.linear(f"{LOW}attn_pool.mlp.fc1", width, 4 * width)
    tensors.linear(f"{LOW}attn_pool.mlp.fc2", 4 * width, width)


def write_checkpoint(folder, config, tensors, num_shards=1):
    """Writes a checkpoint folder as the Hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for index in range(num_shards):
        file = f"model-{index + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[index::num_shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_tokenizer(folder, family, image_token=True):
    """Writes tokenizer.json and tokenizer_config.json as transformers 4 did, for `"qwen"` or `"deepseek"`."""
    if family == "qwen":
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image|>"]
        named = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        rest = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "tokenizer_class": "Qwen2Tokenizer"}
        first = QWEN_IMAGE - 3
    else:
        special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image_placeholder>"]
        named = {"bos_token": _added_token(special[0]), "eos_token": _added_token(special[1]), "unk_token": None}
        rest = {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizerFast"}
        first = DEEPSEEK_IMAGE - 2
    special = special if image_token else special[:-1]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=first, initial_alphabet=alphabet, show_progress=False)
    text = "You are a helpful assistant. Calculate the angle of this triangle, then the area of that rectangle."
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens(special)
    assert tokenizer.get_vocab_size() == first + len(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {str(first + index): _added_token(token) for index, token in enumerate(special)}
    config = {"added_tokens_decoder": added, "model_max_length": 2048, **named, **rest}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _added_token(token):
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": token, "special": True, **flags}


# The forward of the originals


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
