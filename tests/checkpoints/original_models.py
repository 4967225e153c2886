"""Tiny original Math-PUMA models: configurations, tensors and tokenizers as the released checkpoints have them."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


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
