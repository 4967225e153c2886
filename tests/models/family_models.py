"""Tiny models of every family, from the real configuration, model and processor classes, with random weights."""

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from puma_trl.mini import CHAT_TEMPLATE, build_model, build_processor, build_tokenizer
from puma_trl.models.families.chat import CHATML, IMAGE


MINI = ("qwen2_vl", "qwen2_5_vl", "math_puma_qwen2", "deepseek_vl_hybrid")
OTHERS = ("qwen3_vl", "llava", "llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm", "gemma3")
MINI_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "vision_embed_dim": 32, "vision_depth": 3, "num_heads": 4}


def build_family(name, seed=0):
    """Returns processor and model; the same seed gives the same weights."""
    if name in MINI:
        processor = build_processor(name)
        return processor, build_model(name, processor, seed=seed, **MINI_SIZES)
    processor, config = globals()[f"_{name}"]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return processor, model


def write_text_model(folder):
    """A language model that is wider than the student, with its own template and 8 rows of padding in its head."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML.replace(IMAGE, "")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 24}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 8,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        **sizes,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)


def _tokenizer(*tokens, **named):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([*tokens, *named.values()], special_tokens=True)
    return type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )


def _template(image, end="<|im_end|>"):
    return CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image).replace("<|im_end|>", end)


def _text(tokenizer, model_type="qwen2", **values):
    return {
        "model_type": model_type,
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | values


def _vision(model_type="siglip_vision_model", **values):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {"model_type": model_type, "image_size": 28, "patch_size": 14, **sizes} | values


def _qwen3_vl():
    tokenizer = build_tokenizer()
    pixels = {"size": {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}, "patch_size": 16, "merge_size": 2}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen3VLVideoProcessor(**pixels), chat_template=CHAT_TEMPLATE
    )
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    text = _text(tokenizer, rope_parameters=rope)
    del text["model_type"]
    ids = {
        "image_token_id": processor.image_token_id,
        "video_token_id": processor.video_token_id,
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    return processor, Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def _llava():
    tokenizer = _tokenizer(image_token="<image>")
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    return processor, LlavaConfig(
        text_config=_text(tokenizer, "llama"),
        vision_config=_vision("clip_vision_model", projection_dim=32),
        image_token_index=processor.image_token_id,
    )


def _llava_next():
    tokenizer = _tokenizer(image_token="<image>")
    grids = [[28, 56], [56, 28], [56, 56]]
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grids
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    return processor, LlavaNextConfig(
        text_config=_text(tokenizer, "llama"),
        vision_config=_vision("clip_vision_model", projection_dim=32),
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=grids,
    )


def _llava_onevision():
    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
    size = {"height": 28, "width": 28}
    grids = [[28, 56], [56, 28], [56, 56]]
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grids),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>"),
    )
    return processor, LlavaOnevisionConfig(
        text_config=_text(tokenizer),
        vision_config=_vision(vision_use_head=False),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=grids,
    )


def _internvl():
    tokenizer = _tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    size = {"height": 28, "width": 28}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=1,
        chat_template=_template("<IMG_CONTEXT>\\n"),
    )
    return processor, InternVLConfig(
        text_config=_text(tokenizer),
        vision_config=_vision("internvl_vision", image_size=[28, 28], patch_size=[14, 14]),
        image_token_id=processor.image_token_id,
        image_seq_length=1,
        tie_word_embeddings=False,
    )


def _idefics_tokenizer():
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    return _tokenizer("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *cells, image_token="<image>")


def _idefics3():
    tokenizer = _idefics_tokenizer()
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer,
        image_seq_len=1,
        chat_template=_template("<image>", "<end_of_utterance>"),
    )
    return processor, Idefics3Config(
        text_config=_text(tokenizer, "llama"),
        vision_config=_vision("idefics3_vision"),
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )


def _smolvlm():
    tokenizer = _idefics_tokenizer()
    size = {"longest_edge": 56}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size=size, max_image_size={"longest_edge": 28}),
        tokenizer,
        SmolVLMVideoProcessor(size=size, max_image_size={"longest_edge": 28}),
        image_seq_len=1,
        chat_template=_template("<image>", "<end_of_utterance>"),
    )
    return processor, SmolVLMConfig(
        text_config=_text(tokenizer, "llama"),
        vision_config=_vision("smolvlm_vision"),
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )


def _gemma3():
    tokenizer = _tokenizer(
        "<end_of_turn>", boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer,
        image_seq_length=1,
        chat_template=_template("<start_of_image>", "<end_of_turn>"),
    )
    text = _text(tokenizer, "gemma3_text", query_pre_attn_scalar=16)
    return processor, Gemma3Config(
        text_config=text,
        vision_config=_vision(vision_use_head=False),
        mm_tokens_per_image=1,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
