"""
Joins a text language model and a vision tower by a fresh aligner: what the paper does between stage 1 and stage 2.

```bash
python -m puma_trl.assemble --language_model outputs/math_puma_qwen2/full/stage1 \
    --vision_tower google/siglip-so400m-patch14-384 --aligner gated_mlp models/math-puma-qwen2
```

`gated_mlp` gives the network of Math-PUMA_Qwen2VL, `mlp` a LLaVA. Both load with `AutoModelForImageTextToText`, and stage 2
can train them. The weights of the language model and the vision tower are kept as they are; the aligner is random, by seed.
"""

import argparse
import sys
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
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
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
from .files import new_folder, require_new


MODELS = {
    "gated_mlp": (MathPumaQwen2Config, MathPumaQwen2ForConditionalGeneration),
    "mlp": (LlavaConfig, LlavaForConditionalGeneration),
}
# Vision tower → number of its tokens that are not patches
TOWERS = {"siglip_vision_model": 0, "clip_vision_model": 1}
END_OF_TURN = "<|im_end|>"


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

    The tokenizer gets the image token `<|image|>` if it lacks it; the embedding grows only if it has no row left for it.

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
            Template that writes `<|image|>` for an image. Defaults to the original's, for tokenizers with ChatML tokens.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the two models.

    Returns:
        The model.

    Raises:
        CheckpointError: if the parts cannot be loaded or do not fit each other.
        FileExistsError: if the destination is not empty.
    """
    require_new(destination)
    options = {"trust_remote_code": trust_remote_code}
    text_config = _load(AutoConfig, language_model, **options)
    if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"`--language_model {language_model}` is a '{text_config.model_type}', which is no text language model."
        )
    vision_config = _vision_config(vision_tower, options)
    image_processor = _load(AutoImageProcessor, vision_tower, **options)
    plain = _load(AutoTokenizer, language_model, **options)
    names = {"image_token": math_puma_qwen2.IMAGE_TOKEN}
    tokenizer = _load(AutoTokenizer, language_model, extra_special_tokens=names, **options)
    chat_template = chat_template or _default_template(tokenizer, language_model)
    safe = {"dtype": "auto", "use_safetensors": True, **options}
    text_model = _load_model(AutoModelForCausalLM, language_model, **safe)
    tower = _load_model(AutoModel, vision_tower, config=vision_config, **safe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _fit_embedding(text_model, plain, tokenizer, language_model)
        model = _join(text_model, tower, aligner, tokenizer)
    processor = _build_processor(aligner, model.config, tokenizer, image_processor, chat_template)
    with new_folder(destination) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model


def _load(auto_class: type, source: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        hint = (
            ". Weights must be whole safetensors files; pickled ones are not read."
            if "use_safetensors" in options
            else ""
        )
        raise CheckpointError(f"{auto_class.__name__} could not load `{source}`: {error}{hint}") from error


def _load_model(auto_class: type, source: str, **options: Any) -> PreTrainedModel:
    model, loading = _load(auto_class, source, output_loading_info=True, **options)
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise CheckpointError(
            f"`{source}` lacks {len(missing)} tensors of {type(model).__name__}, the first being {missing[:3]}. They would "
            "be random. Check that it is this model."
        )
    return model


def _vision_config(vision_tower: str, options: dict[str, Any]) -> PreTrainedConfig:
    config = _load(AutoConfig, vision_tower, **options)
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    if config.model_type not in TOWERS:
        raise CheckpointError(
            f"`--vision_tower {vision_tower}` is a '{config.model_type}'. Known towers: {', '.join(TOWERS)}, alone or as a "
            "part of SigLIP or CLIP."
        )
    return config


def _default_template(tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    if END_OF_TURN not in tokenizer.get_vocab():
        raise CheckpointError(
            f"The tokenizer of `{source}` has no token '{END_OF_TURN}', so the original's prompt does not suit it. Give a "
            "template for its prompt that writes `<|image|>` for an image, with `--chat_template FILE`."
        )
    tokenizer.eos_token = END_OF_TURN
    return math_puma_qwen2.CHAT_TEMPLATE


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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


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
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


def _build_processor(
    aligner: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    chat_template: str,
) -> ProcessorMixin:
    is_original = aligner == "gated_mlp" and config.vision_config.model_type == "siglip_vision_model"
    if is_original and chat_template == math_puma_qwen2.CHAT_TEMPLATE:
        return math_puma_qwen2.build_processor(tokenizer, config)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=TOWERS[config.vision_config.model_type],
        chat_template=chat_template,
        image_token=math_puma_qwen2.IMAGE_TOKEN,
    )


def main(argv: list[str] | None = None) -> None:
    """Assembles the model that the command line describes."""
    parser = argparse.ArgumentParser(
        prog="python -m puma_trl.assemble", description="Joins a text model and a vision tower by a fresh aligner."
    )
    parser.add_argument("--language_model", required=True, help="folder or Hub id of a text language model")
    parser.add_argument("--vision_tower", required=True, help="folder or Hub id of a SigLIP or CLIP model")
    parser.add_argument(
        "--aligner", required=True, choices=list(MODELS), help="gated_mlp: Math-PUMA_Qwen2VL; mlp: LLaVA"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the aligner")
    parser.add_argument("--chat_template", type=Path, help="file of a template that writes <|image|> for an image")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the models")
    parser.add_argument("destination", help="folder to write")
    args = parser.parse_args(argv)
    try:
        model = assemble(
            args.language_model,
            args.vision_tower,
            args.aligner,
            args.destination,
            seed=args.seed,
            chat_template=args.chat_template.read_text(encoding="utf-8") if args.chat_template else None,
            trust_remote_code=args.trust_remote_code,
        )
    except (CheckpointError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    print(f"{type(model).__name__} ({model.num_parameters():,} parameters, {model.dtype}) is in {args.destination}.")
