"""The language model of a Qwen2-VL model as a text model of its own."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def write_text_model(model: Path, output: Path) -> None:
    """Writes the language model, which predicts the same for words as it does behind the vision tower."""
    source = AutoModelForImageTextToText.from_pretrained(model)
    config = source.config.text_config
    rope = {name: config.rope_parameters[name] for name in ("rope_type", "rope_theta")}
    known = {name: getattr(config, name) for name in LlamaConfig().to_diff_dict() if hasattr(config, name)}
    # not Qwen2's class, for which transformers makes a tokenizer of Qwen's own words of any other beside it
    text = LlamaForCausalLM(LlamaConfig(**known | {"rope_parameters": rope, "attention_bias": True}))
    weights = source.model.language_model.state_dict()
    for name in [name for name in weights if name.endswith("self_attn.q_proj.bias")]:
        # which Qwen2 does not have
        weights[name.replace("q_proj", "o_proj")] = torch.zeros(config.hidden_size)
    text.model.load_state_dict(weights)
    text.lm_head.load_state_dict(source.lm_head.state_dict())
    text.generation_config = source.generation_config
    text.save_pretrained(output)
    # without the name of the processor, which would be looked for
    AutoTokenizer.from_pretrained(model, processor_class=None).save_pretrained(output)
