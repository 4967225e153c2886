"""
Joins a text language model and a vision tower by a fresh aligner: what the paper does between stage 1 and stage 2.

```bash
python -m puma_trl.assemble --language_model outputs/math_puma_qwen2/full/stage1 \
    --vision_tower google/siglip-so400m-patch14-384 --aligner gated_mlp models/math-puma-qwen2
```

`gated_mlp` gives the network of Math-PUMA_Qwen2VL, `mlp` a LLaVA. Both load with `AutoModelForImageTextToText`, and
stage 2 can train them. The weights of the language model and the vision tower are kept as they are; the aligner is
random, by seed. Prompts are those of the language model, its system prompt included, with pictures at their places,
and it ends its answers at the same tokens.

Pictures are seen whole. SigLIP resizes them to its square, as the original did. CLIP's own processor would cut off the
ends of wide pictures; here they are padded to a square first, as LLaVA did, which also keeps their proportions.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..errors import CheckpointError
from ..models.families import math_puma_qwen2
from ..models.families.math_puma_qwen2 import MathPumaQwen2Config, MathPumaQwen2ForConditionalGeneration
from ..models.templates import check_chat_template
from ..models.weights import check_folder
from ..record.hub import write_parts_card
from .files import new_folder, require_new
from .tokenizer import add_pictures, check_prompt, join_generation_configs, writes_first_token


MODELS = {
    "gated_mlp": (MathPumaQwen2Config, MathPumaQwen2ForConditionalGeneration),
    "mlp": (LlavaConfig, LlavaForConditionalGeneration),
}
# Vision tower → number of its tokens that are not patches
TOWERS = {"siglip_vision_model": 0, "clip_vision_model": 1}
END_OF_TURN = "<|im_end|>"
# What the processor of a tower that crops keeps
KEPT = ("resample", "image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize", "do_convert_rgb")


def assemble(
    language_model: str,
    vision_tower: str,
    aligner: str,
    destination: str | Path,
    *,
    seed: int = 0,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """
    Writes a vision-language model made of a language model, a vision tower and a fresh aligner.

    The tokenizer gets the image token `<|image|>` if it lacks it; the embedding grows only if it has no row left for
    it.

    Args:
        language_model (`str`):
            Folder or Hub id of a text model that `AutoModelForCausalLM` loads.
        vision_tower (`str`):
            Folder or Hub id of a SigLIP or CLIP model, or of its vision tower alone, with its image processor.
        aligner (`str`):
            `"gated_mlp"` or `"mlp"`.
        destination (`str` or `Path`):
            Folder to write; it must not exist, or be empty.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the aligner and of embedding rows that are added.
        chat_template (`str`, *optional*):
            Template that writes `<|image|>` for an image. Defaults to the language model's with pictures added, or the
            original's, if the language model has none and its tokenizer has the tokens of ChatML.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the two models.

    Returns:
        The model.

    Raises:
        CheckpointError: if the parts cannot be loaded or do not fit each other.
        ModelError: if a folder has torn files or no safetensors, or the template does not write a picture's place.
        FileExistsError: if the destination is not empty.
    """
    require_new(destination)
    options = {"trust_remote_code": trust_remote_code}
    text_config = _load(AutoConfig, language_model, **options)
    if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"`--language_model {language_model}` is a '{text_config.model_type}', which is not a text language model."
        )
    vision_config = _vision_config(vision_tower, options)
    image_processor = _load(AutoImageProcessor, vision_tower, **options)
    plain = _load(AutoTokenizer, language_model, **options)
    chat_template = chat_template or _default_template(plain, language_model)
    tokenizer = _load_tokenizer(plain, language_model, chat_template, options)
    safe = {"dtype": "auto", "use_safetensors": True, **options}
    text_model = _load_model(AutoModelForCausalLM, language_model, **safe)
    tower = _load_model(AutoModel, vision_tower, config=vision_config, **safe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _fit_embedding(text_model, plain, tokenizer, language_model)
        model = _join(text_model, tower, aligner, tokenizer)
    processor = _build_processor(aligner, model.config, tokenizer, image_processor, chat_template)
    _end_answers(model, text_model, processor, plain)
    check_chat_template(processor, str(destination))
    with new_folder(destination) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        parts = {"language model": language_model, "vision tower": vision_tower}
        write_parts_card(folder, Path(destination).name, parts)
    return model


def _load(auto_class: type, source: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{auto_class.__name__} could not load `{source}`: {error}") from error


def _load_model(auto_class: type, source: str, **options: Any) -> PreTrainedModel:
    check_folder(source)
    model, loading = _load(auto_class, source, output_loading_info=True, **options)
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise CheckpointError(
            f"`{source}` lacks {len(missing)} tensors of {type(model).__name__}, the first being {missing[:3]}. They "
            "would be random. Check that it is this model."
        )
    return model


def _vision_config(vision_tower: str, options: dict[str, Any]) -> PreTrainedConfig:
    config = _load(AutoConfig, vision_tower, **options)
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    if config.model_type not in TOWERS:
        raise CheckpointError(
            f"`--vision_tower {vision_tower}` is a '{config.model_type}'. Known towers: {', '.join(TOWERS)}, alone or "
            "as a part of SigLIP or CLIP."
        )
    return config


def _default_template(plain: PreTrainedTokenizerBase, source: str) -> str:
    if plain.chat_template is not None:
        return add_pictures(plain.get_chat_template(), math_puma_qwen2.IMAGE_TOKEN)
    if END_OF_TURN not in plain.get_vocab():
        raise CheckpointError(
            f"The tokenizer of `{source}` has no chat template, and no token '{END_OF_TURN}', so the original's "
            "prompt does not suit it. Give a template for its prompt that writes `<|image|>` for an image, with "
            "`--chat_template FILE`."
        )
    return math_puma_qwen2.CHAT_TEMPLATE


def _load_tokenizer(
    plain: PreTrainedTokenizerBase, source: str, chat_template: str, options: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer with the image token; the template's first token is the only one."""
    if writes_first_token(plain, chat_template):
        options = {"add_bos_token": False, **options}
    names = {"image_token": math_puma_qwen2.IMAGE_TOKEN}
    tokenizer = _load(AutoTokenizer, source, extra_special_tokens=names, **options)
    tokenizer.chat_template = chat_template
    return tokenizer


def _fit_embedding(
    model: PreTrainedModel, plain: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, source: str
) -> None:
    """Grows the embedding if the tokenizer with the image token needs a row more than the plain one."""
    num_rows, last = model.get_input_embeddings().num_embeddings, max(plain.get_vocab().values())
    if last >= num_rows:
        raise CheckpointError(
            f"The tokenizer of `{source}` goes up to id {last}, but the embedding has {num_rows} rows only. Take the "
            "tokenizer files that belong to this model."
        )
    if len(tokenizer) > num_rows:
        model.resize_token_embeddings(len(tokenizer))


def _join(
    text_model: PreTrainedModel, tower: PreTrainedModel, aligner: str, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    config_class, model_class = MODELS[aligner]
    num_patches = (tower.config.image_size // tower.config.patch_size) ** 2
    # the original leaves out the first patch of SigLIP, which has no class token; with CLIP it is the class token
    strategy = "default" if aligner == "gated_mlp" or TOWERS[tower.config.model_type] else "full"
    tied = text_model.config.tie_word_embeddings
    config = config_class(
        text_config=text_model.config,
        vision_config=tower.config,
        image_token_id=tokenizer.convert_tokens_to_ids(math_puma_qwen2.IMAGE_TOKEN),
        image_seq_length=num_patches - (strategy == "default" and not TOWERS[tower.config.model_type]),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-2,
        tie_word_embeddings=tied,
    )
    config.dtype = text_model.dtype
    with torch.device("meta"):
        model = model_class(config)
    model.model.language_model = text_model.base_model
    model.model.vision_tower = tower.to(text_model.dtype)
    model.lm_head = text_model.get_output_embeddings()
    projector = model.model.multi_modal_projector.to_empty(device="cpu").to(text_model.dtype)
    for module in projector.modules():
        model._init_weights(module)
    return model.eval()


def _build_processor(
    aligner: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    chat_template: str,
) -> ProcessorMixin:
    vision_config = config.vision_config
    if aligner == "gated_mlp" and vision_config.model_type == "siglip_vision_model":
        processor = math_puma_qwen2.build_processor(tokenizer, config)
        processor.chat_template = chat_template
        return processor
    if getattr(image_processor, "do_center_crop", False):
        square = {"height": vision_config.image_size, "width": vision_config.image_size}
        image_processor = LlavaImageProcessor(
            do_pad=True,
            do_center_crop=False,
            size=square,
            crop_size=square,  # read by LLaVA's rule for counting image tokens, though nothing is cropped
            **{name: getattr(image_processor, name) for name in KEPT},
        )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=TOWERS[vision_config.model_type],
        chat_template=chat_template,
        image_token=math_puma_qwen2.IMAGE_TOKEN,
    )


def _end_answers(
    model: PreTrainedModel, text_model: PreTrainedModel, processor: ProcessorMixin, plain: PreTrainedTokenizerBase
) -> None:
    """Gives model and tokenizer the tokens that end an answer, and checks how a prompt begins."""
    tokenizer = processor.tokenizer
    generation_config = join_generation_configs(text_model.generation_config, plain, processor)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(generation_config.eos_token_id[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = plain.eos_token or tokenizer.eos_token
    generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = generation_config
    if writes_first_token(tokenizer, tokenizer.chat_template):
        check_prompt(processor)


def describe_assembled(model: PreTrainedModel, folder: str, template: str | Path) -> str:
    """Says what was assembled."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = ", ".join(tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id))
    return (
        f"{type(model).__name__} ({model.num_parameters():,} parameters, {model.dtype}) is in {folder}.\n"
        f"Prompts are those of {template}; answers end at {ends}."
    )
