"""Load the model and its processor, whole or quantised."""

import dataclasses
import os
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import ModelConfig, get_quantization_config

from ..config import PumaKLConfig
from ..errors import ModelError, first_line
from .families import Family, get_auto_class, is_multimodal
from .parts import part_of
from .templates import check_chat_template, set_chat_template
from .tokenizers import get_tokenizer
from .weights import check_finite, check_folder


def load_config(
    model_args: ModelConfig, training_args: PumaKLConfig, key: str = "model_name_or_path"
) -> PreTrainedConfig:
    """
    Reads the configuration of the model, and looks at the files of its folder.

    Raises:
        ModelError: if it names neither a model folder nor a model of the Hub, a folder with adapters, with torn files
            or without usable weights (see [`check_folder`]), or a model of an unknown type.
    """
    folder = model_args.model_name_or_path
    try:
        check_folder(folder)
    except ModelError as error:
        raise ModelError(f"`{key}`: {error}") from error
    try:
        return AutoConfig.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
        )
    except OSError as error:
        reason = "" if os.path.isdir(folder) else f" ({first_line(error)})"
        raise ModelError(
            f"No model configuration was found for `{key}: {folder}`{reason}. It must be a model folder with a "
            "config.json, or the id of a model on the Hub. Recipes start from what the stage before has left: run "
            "that first."
        ) from error
    except ValueError as error:
        raise ModelError(
            f"`{key}: {folder}` is not a model that transformers knows: {first_line(error)} "
            "Original Math-PUMA checkpoints are converted with `python -m puma_trl.convert`; code that comes with a "
            "model runs only with `trust_remote_code: true`."
        ) from error


def load_processor(model_args: ModelConfig, training_args: PumaKLConfig) -> ProcessorMixin | PreTrainedTokenizerBase:
    """
    Loads the processor of a vision-language model, or the tokenizer of a text model, with the template of
    `chat_template_path` (see [`set_chat_template`]), and makes sure that it can pad.

    Raises:
        ModelError: if the folder has no processor, or the processor no chat template.
    """
    processor = read_processor(model_args, training_args)
    set_chat_template(processor, training_args)
    check_chat_template(processor, model_args.model_name_or_path)
    return processor


def read_processor(model_args: ModelConfig, training_args: PumaKLConfig) -> ProcessorMixin | PreTrainedTokenizerBase:
    """
    Loads a processor or tokenizer with the template that it has, if any, and makes sure that it can pad.

    Raises:
        ModelError: if there is none, or it has no end token.
    """
    try:
        processor = AutoProcessor.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No processor or tokenizer could be loaded from `{model_args.model_name_or_path}`: {first_line(error)} "
            "Copy the base model's processor and tokenizer files into the folder."
        ) from error
    tokenizer = get_tokenizer(processor)
    if tokenizer.eos_token is None:
        raise ModelError(
            f"The tokenizer of `{model_args.model_name_or_path}` has no end token (`eos_token`), so answers could not "
            "end. Set it in tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def check_vocabulary(config: PreTrainedConfig, processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
    """
    Makes sure, before the data is read, that the processor is of the model, and that both agree on the ids of tokens.

    Special tokens beyond the embedding that no prompt has are let be: texts cannot contain them, and some published
    tokenizers have them.

    Raises:
        ModelError: if a vision-language model has a tokenizer alone, a token has no row in the embedding, or the image
            token has another id in the model.
    """
    if is_multimodal(config) and not isinstance(processor, ProcessorMixin):
        raise ModelError(
            f"The model is a '{config.model_type}', which reads pictures, but beside it is a tokenizer alone. Copy "
            "the base model's processor_config.json or preprocessor_config.json into its folder."
        )
    tokenizer = get_tokenizer(processor)
    image_ids = processor.image_token_ids if isinstance(processor, ProcessorMixin) else []
    image_ids = [number for number in image_ids if number is not None]
    image_tokens = tokenizer.convert_ids_to_tokens(image_ids)
    wanted = getattr(config, "image_token_id", None)
    if image_ids and wanted is not None and wanted not in image_ids:
        raise ModelError(
            f"The processor writes pictures as {', '.join(image_tokens)} (id {', '.join(map(str, image_ids))}), but "
            f"the model's config.json says `image_token_id: {wanted}`. Take processor and tokenizer files that belong "
            "to it."
        )
    num_rows = config.get_text_config().vocab_size
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= num_rows}
    unused = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    unused -= {tokenizer.eos_token, tokenizer.pad_token, *image_tokens}
    turn = {"role": "user", "content": "1" if processor is tokenizer else [{"type": "text", "text": "1"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    unused -= set(tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"]))
    missing = sorted(beyond.keys() - unused, key=beyond.get)
    if missing:
        raise ModelError(
            f"The tokenizer goes up to id {max(beyond.values())}, but the embedding has {num_rows} rows only: "
            f"{len(missing)} tokens have none, the first being {missing[0]!r} with id {beyond[missing[0]]}. Take the "
            "tokenizer files that belong to this model, or give it the rows with `resize_token_embeddings`."
        )


def load_model(
    model_args: ModelConfig,
    training_args: PumaKLConfig,
    config: PreTrainedConfig,
    family: Family,
    init_kwargs: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """
    Loads the model with its native class: image-text-to-text where there is one, else a causal language model.

    With `load_in_4bit` or `load_in_8bit` only the language model is quantised; aligner, vision towers and head are
    not.

    Raises:
        ModelError: if the folder holds no weights, weights that do not fit the configuration, or some that are no
            finite numbers (see [`check_finite`]), or quantisation is asked for without adapters or of a model whose
            language model is not known.
    """
    auto_class = get_auto_class(config)
    dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
    quantization_config = _build_quantization_config(model_args, config, family, auto_class)
    try:
        model, loading = auto_class.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
            attn_implementation=model_args.attn_implementation,
            dtype=dtype,
            quantization_config=quantization_config,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named below
            **(init_kwargs or {}),
        )
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"No usable weights were found in `{model_args.model_name_or_path}`: {error}. A checkpoint folder needs "
            "model.safetensors, or its shards and their index, all of them whole."
        ) from error
    if loading["mismatched_keys"]:
        mismatched = loading["mismatched_keys"]
        name, stored, wanted = min(mismatched)
        raise ModelError(
            f"The checkpoint `{model_args.model_name_or_path}` has {len(mismatched)} tensors of another size than "
            f"its config.json says, the first being {name}: {list(stored)} instead of {list(wanted)}. Take the "
            "config.json that belongs to these weights."
        )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            f"The checkpoint `{model_args.model_name_or_path}` lacks {len(missing)} tensors of "
            f"{type(model).__name__}, the first being {missing[:3]}. They would train from random values. Check that "
            "the folder holds this model; original Math-PUMA checkpoints are converted with `puma_trl.convert`."
        )
    check_finite(model, model_args.model_name_or_path)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Workaround (bitsandbytes 0.50, no upstream issue found): in a pass without gradient, as the teacher's, it
            # would repack its weights for inference on CPUs with AVX512-BF16, and packed ones pass no gradient
            module.support_avx512bf16_for_cpu = False
    return model


def _build_quantization_config(
    model_args: ModelConfig, config: PreTrainedConfig, family: Family, auto_class: type
) -> BitsAndBytesConfig | None:
    """Returns what quantises the linear layers of the language model and no others, or `None`."""
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    if not model_args.use_peft:
        raise ModelError(
            "`load_in_4bit` and `load_in_8bit` need `use_peft: true`: quantised weights cannot be trained, only "
            "adapters on them."
        )
    if is_deepspeed_zero3_enabled():
        raise ModelError(
            "`load_in_4bit` and `load_in_8bit` do not go with ZeRO-3: transformers loads quantised weights whole on "
            "every process, so nothing would be sharded. Use DDP or ZeRO-2, or LoRA without quantisation."
        )
    if "language_model" not in family.parts:
        raise ModelError(
            f"`load_in_4bit` and `load_in_8bit` quantise the language model only, but which modules that is is not "
            f"known for models of type '{config.model_type}'. Use LoRA without quantisation, or register the family "
            "in puma_trl/models/families."
        )
    # Workaround (TRL 1.16, no upstream issue found): it takes `auto` for the dtype of the quantised layers' arithmetic
    if model_args.dtype in ("auto", None):
        model_args = dataclasses.replace(model_args, dtype=str(config.dtype or torch.float32).removeprefix("torch."))
    quantization_config = get_quantization_config(model_args)
    with torch.device("meta"):
        model = auto_class.from_config(config)
    head = model.get_output_embeddings()
    # by name and not by prefix: transformers matches whole modules, and `model.high_res_vision_` is none
    quantization_config.llm_int8_skip_modules = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (module is head or part_of(f"{name}.weight", family) != "language_model")
    ]
    return quantization_config
