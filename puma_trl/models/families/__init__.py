"""
What differs between model families: one small file each, found by `config.model_type`.

Importing this package registers Math-PUMA's own model with the Auto classes.
"""

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from .deepseek_vl_hybrid import DEEPSEEK_VL_HYBRID
from .family import Family
from .gemma3 import GEMMA3
from .idefics3 import IDEFICS3
from .llava import LLAVA
from .math_puma_qwen2 import MATH_PUMA_QWEN2
from .qwen import QWEN_VL


__all__ = ["FAMILIES", "Family", "family_of_processor", "get_auto_class", "get_family", "is_multimodal"]


FAMILIES = (QWEN_VL, LLAVA, MATH_PUMA_QWEN2, DEEPSEEK_VL_HYBRID, IDEFICS3, GEMMA3)


def get_family(config: PretrainedConfig) -> Family:
    """
    Returns the family of a model.

    A model of a type that is not registered has no named parts, and `trainable_parts` takes prefixes of its parameter
    names; a text model is one part, `language_model`.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    is_text_model = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not is_multimodal(config)
    return Family(model_types=(config.model_type,), parts={"language_model": ("",)} if is_text_model else {})


def family_of_processor(processor: ProcessorMixin) -> Family:
    """Returns the family of the models that a processor is for, by its class; one without parts if none is known."""
    types = {model_type for model_type, name in PROCESSOR_MAPPING_NAMES.items() if name == type(processor).__name__}
    return next((family for family in FAMILIES if types & set(family.model_types)), Family((), {}))


def is_multimodal(config: PretrainedConfig) -> bool:
    """Returns whether a model is a vision-language model, by its configuration."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def get_auto_class(config: PretrainedConfig) -> type:
    """Returns the Auto class that loads a model: image-text-to-text where it can, else that of language models."""
    return AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM
