"""
The memory of a GPU that a run needs, from the model's configuration: nothing is loaded.

A row is taken to be full: `max_length` tokens, half of them of one picture in stages 2 and 3, a quarter of them
answer. So a batch without padding takes as much as a padded one, but for the mask: rows of about one length stand
together, and those of the longest batch are all full. `benchmarks/memory_check.py` compares the formula with runs.
"""

from dataclasses import asdict, dataclass

import torch
from peft import get_peft_model
from transformers import PreTrainedConfig, PreTrainedModel
from trl import ModelConfig

from ..config import PumaKLConfig
from ..models.adapters import build_peft_config
from ..models.families import get_auto_class, get_family, is_multimodal
from ..models.parts import part_of, set_trainable_parts
from ..step.losses import CHUNK_MEMORY, VOCAB_SLICE


IMAGE_SHARE, ANSWER_SHARE = 1 / 2, 1 / 4
FULL = 0.95  # of a card may be taken
# bytes per weight: 4 bits, and an 8-bit scale per 64 with a 4-byte one per 256 of those
NF4 = 0.5 + (1 + 4 / 256) / 64
CONTEXT = 1.5e9  # CUDA, its libraries and the gaps of the allocator
LIVE_PARAMETERS = 1e9  # DeepSpeed's `stage3_max_live_parameters`: gathered at the same time
REDUCE_BUCKET = 2e8  # `reduce_bucket_size` of accelerate_configs/deepspeed: gradients that wait for their reduction
STEP_GROUP = 1e9  # DeepSpeed's `sub_group_size`: parameters updated at the same time
SFT_TILE = 4096 * 32768 * 4  # TRL's tile of logits


@dataclass
class Setting:
    """
    What the formula needs to know of a run.

    Args:
        width (`int`):
            Bytes of a number in the forward: 2 (bf16) or 4.
        processes (`int`):
            Number of processes W.
        zero (`int`):
            What DeepSpeed shards over them: 0 nothing (DDP, or one process), 2 gradients and optimizer states, 3
            parameters too.
        pairs (`bool`):
            Whether the step is the pair step.
        rows, length, patches, answers (`int`):
            Rows of a micro-batch; tokens, picture patches and answer tokens of a row.
        checkpointing (`bool`):
            Whether layers keep their input only.
        optimizer (`float`):
            Bytes of optimizer states for each trained number.
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether the rows of a side stand one behind the other, without a mask.
        bucket (`float`, *optional*):
            Numbers that DeepSpeed's bucket of gradients takes memory for.
        stored (`int`, *optional*):
            Bytes of a number of the frozen weights, if not as in the forward.
        teacher ([`Counts`], *optional*):
            Weights of a second model that teaches, of [`count_teacher`].
    """

    width: int
    processes: int
    zero: int
    pairs: bool
    rows: int
    length: int
    patches: int
    answers: int
    checkpointing: bool
    optimizer: float
    padding_free: bool = False
    bucket: float = REDUCE_BUCKET
    stored: int | None = None
    teacher: "Counts | None" = None


@dataclass
class Plan:
    """Bytes on one GPU, by what they are for."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    other: float

    @property
    def total(self) -> float:
        """Returns the sum."""
        return sum(asdict(self).values())


@dataclass
class Counts:
    """Numbers of parameters: trained, frozen, frozen in nf4, adapters, and the largest quantised matrix."""

    trained: int = 0
    frozen: int = 0
    nf4: int = 0
    largest_nf4: int = 0
    head_trains: bool = False
    tower_trains: bool = False
    adapter_inputs: int = 0  # width of the inputs of all adapters of one language-model layer
    stored: int | None = None  # bytes of a frozen number, if not as in the setting


def count(model: PreTrainedModel, model_args: ModelConfig, parts: list[str]) -> Counts:
    """Chooses what trains as the run script does, and counts it; the model may be on the meta device."""
    family = get_family(model.config)
    peft_config = build_peft_config(model, model_args, parts, family)
    head = model.get_output_embeddings().weight
    quantised = _quantised(model) if model_args.load_in_4bit else set()
    if peft_config is None:
        set_trainable_parts(model, parts, family)
    else:
        model = get_peft_model(model, peft_config)
    counts = Counts(head_trains=head.requires_grad)
    layers = model.config.get_text_config().num_hidden_layers
    for name, parameter in model.named_parameters():
        part = part_of(name.removeprefix("base_model.model."), family)
        if parameter.requires_grad:
            counts.trained += parameter.numel()
            counts.tower_trains |= part == "vision_tower_low"
            if "lora_A" in name and part == "language_model":
                counts.adapter_inputs += parameter.shape[1] // layers
        else:
            _add_frozen(counts, parameter, quantised)
    return counts


def _quantised(model: PreTrainedModel) -> set[int]:
    """Returns the ids of the weights that are stored in 4 bits: the matrices of the language model but its head."""
    family = get_family(model.config)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name in linear and part_of(name, family) == "language_model"
    } - {id(model.get_output_embeddings().weight)}


def _add_frozen(counts: Counts, parameter: torch.nn.Parameter, quantised: set[int]) -> None:
    if id(parameter) in quantised:
        counts.nf4 += parameter.numel()
        counts.largest_nf4 = max(counts.largest_nf4, parameter.numel())
    else:
        counts.frozen += parameter.numel()


def count_teacher(
    args: PumaKLConfig, counts: Counts, is_adapted: bool, config: PreTrainedConfig | None = None
) -> Counts | None:
    """
    Counts the weights of a second model that teaches: another one, or a copy where nothing can be switched off.

    Args:
        args ([`PumaKLConfig`]):
            The recipe, of which the settings of the teacher are used.
        counts ([`Counts`]):
            What trains.
        is_adapted (`bool`):
            Whether adapters train; then the model itself teaches without them or with their average.
        config ([`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the other model, with `teacher: model`.

    Returns:
        [`Counts`], *optional*: of a copy as of what trains, since its weights have the same types; `None` where the
        model teaches itself.
    """
    if not args.use_kl or args.teacher == "live":
        return None
    if args.teacher == "model":
        dtype = (args.teacher_model_init_kwargs or {}).get("dtype")
        model, teacher = empty_model(config), Counts(stored=2 if dtype in ("bfloat16", "float16") else None)
        quantised = _quantised(model) if args.teacher_load_in_4bit else set()
        for parameter in model.parameters():
            _add_frozen(teacher, parameter, quantised)
        return teacher
    return None if is_adapted else counts


def plan(config: PreTrainedConfig, counts: Counts, setting: Setting, is_adapted: bool) -> Plan:
    """
    Returns the bytes on one GPU.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model.
        counts ([`Counts`]):
            What trains.
        setting ([`Setting`]):
            How it trains.
        is_adapted (`bool`):
            Whether adapters train, which are fp32 outside DeepSpeed.
    """
    state_shards = setting.processes if setting.zero else 1
    # DeepSpeed trains in the width of the forward, beside fp32 copies if that is bf16
    master = 4 if setting.zero and setting.width < 4 else 0
    activations = _language_activations(config.get_text_config(), counts, setting)
    activations += _tower_activations(config, counts, setting)
    loss = _loss_buffers(config.get_text_config(), counts, setting)
    other = _engine_buffers(config.get_text_config(), counts, setting, activations + loss)
    if not setting.padding_free:
        other += setting.rows * setting.length**2  # the mask
    if setting.width < 4 and (is_adapted or setting.stored == 4):
        other += setting.width * counts.trained  # autocast keeps its casts through the step
    models = _models(counts, setting)
    other += setting.width * max(model.largest_nf4 for model in models)  # one matrix at a time is spread out
    return Plan(
        parameters=sum(_weights(model, setting) for model in models),
        gradients=4 * counts.trained / state_shards,  # added in fp32
        optimizer=(master + setting.optimizer) * counts.trained / state_shards,
        activations=activations,
        loss=loss,
        other=other,
    )


def _models(counts: Counts, setting: Setting) -> list[Counts]:
    """Returns what trains, and the second model that teaches it, if there is one."""
    return [counts] if setting.teacher is None else [counts, setting.teacher]


def _weights(counts: Counts, setting: Setting) -> float:
    """Returns the bytes of the weights of a model on one GPU; what is in 4 bits is never sharded."""
    trained_width = setting.width if setting.zero else 4  # outside DeepSpeed what trains is fp32
    whole = trained_width * counts.trained + (counts.stored or setting.stored or setting.width) * counts.frozen
    return whole / (setting.processes if setting.zero == 3 else 1) + NF4 * counts.nf4


def _engine_buffers(config, counts: Counts, setting: Setting, passes: float) -> float:
    """Returns what an engine needs to reduce gradients, gather parameters and step; `passes` is free again by then."""
    if not setting.zero:
        return 4.0 * counts.trained if setting.processes > 1 else 0.0  # DDP's buckets
    waiting = min(counts.trained, REDUCE_BUCKET)
    # the bucket, and what of it is sent: sorted by receiver and in fp32
    reduced = setting.width * setting.bucket
    sent = 4 * waiting if setting.zero == 3 or setting.width < 4 else 0
    gathered = 0.0
    if setting.zero == 3:
        live = LIVE_PARAMETERS + config.vocab_size * config.hidden_size  # the loss reads the head outside its module
        # one model at a time: the pass of a teacher leaves nothing gathered
        gathered = setting.width * max(min(each.trained + each.frozen, live) for each in _models(counts, setting))
    step = 4 * min(counts.trained / setting.processes, STEP_GROUP)  # gradients in one piece
    return reduced + max(gathered + sent, step - passes)


def _language_activations(config, counts: Counts, setting: Setting) -> float:
    tokens, hidden = setting.rows * setting.length, config.hidden_size
    key_values = 2 * hidden * config.num_key_value_heads // config.num_attention_heads
    # inputs and outputs of the matrices, residuals, and the two norms, which keep fp32
    layer = setting.width * (7 * hidden + 2 * key_values + 4 * config.intermediate_size) + 4 * 2 * hidden
    layer += setting.width * counts.adapter_inputs  # dropout of an adapter's input
    backward = setting.width * (2 * config.intermediate_size + 2 * hidden)  # gradients alive in one layer
    kept = setting.width * hidden if setting.checkpointing else layer
    embedded = 2 * setting.width * hidden  # embeddings and last hidden states
    return tokens * (config.num_hidden_layers * kept + (layer if setting.checkpointing else 0) + backward + embedded)


def _tower_activations(config, counts: Counts, setting: Setting) -> float:
    towers = [getattr(config, name) for name in ("vision_config", "high_res_vision_config") if hasattr(config, name)]
    return sum(_one_tower(tower, counts.tower_trains, setting) for tower in towers)


def _one_tower(vision, trains: bool, setting: Setting) -> float:
    is_first = vision.model_type.startswith("qwen2_vl")  # whose sizes have names of their own
    hidden = vision.embed_dim if is_first else vision.hidden_size
    if is_first:
        inner = vision.mlp_ratio * hidden
    else:
        inner = vision.mlp_dim if vision.model_type == "sam_vision_model" else vision.intermediate_size
    depth = vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers
    matrices = 4 if vision.model_type.startswith("qwen2_5_vl") else 2  # its MLP has a gate
    patches = setting.rows * setting.patches
    block = setting.width * (9 * hidden + matrices * inner) + 4 * 2 * hidden
    if not trains:
        return patches * block
    kept = depth * (setting.width * hidden if setting.checkpointing else block)
    return patches * (kept + (block if setting.checkpointing else 0) + setting.width * (inner + hidden))


def patches_per_token(config: PreTrainedConfig) -> int:
    """Returns how many patches of a picture become one token of the language model."""
    if hasattr(config.vision_config, "spatial_merge_size"):
        return config.vision_config.spatial_merge_size**2
    if hasattr(config, "scale_factor"):
        return config.scale_factor**2
    return {"gemma3": 16, "internvl": 4, "deepseek_vl_hybrid": 8}.get(config.model_type, 1)


def _loss_buffers(config, counts: Counts, setting: Setting) -> float:
    answers, hidden, vocab = setting.rows * setting.answers, config.hidden_size, config.vocab_size
    if setting.pairs:
        tile = min(CHUNK_MEMORY, 2 * 4 * answers * vocab)
        sides = 2  # hidden states of both
    else:
        tile, sides = min(SFT_TILE, 4 * answers * vocab), 1
    head = 4 * vocab * hidden if counts.head_trains else 0
    slices = 4 * min(vocab, VOCAB_SLICE) * hidden if setting.width < 4 else 0
    return tile + head + slices + answers * hidden * (sides * setting.width + 4)


def make_setting(
    config: PreTrainedConfig,
    args: PumaKLConfig,
    *,
    zero: int = 0,
    processes: int = 1,
    width: int = 2,
    stored: int | None = None,
    teacher: Counts | None = None,
) -> Setting:
    """
    Returns the setting of a recipe.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model.
        args ([`PumaKLConfig`]):
            The recipe; its `bf16` is not looked at.
        zero, processes, width, stored, teacher:
            See [`Setting`].
    """
    has_images = is_multimodal(config) and args.trainable_parts != ["language_model"]
    return Setting(
        width=width,
        processes=processes,
        zero=zero,
        pairs=args.use_kl,
        rows=args.per_device_train_batch_size,
        length=args.max_length,
        patches=int(args.max_length * IMAGE_SHARE) * patches_per_token(config) if has_images else 0,
        answers=int(args.max_length * ANSWER_SHARE),
        checkpointing=args.gradient_checkpointing,
        optimizer=2 if "8bit" in args.optim else 8,
        padding_free=bool(args.padding_free),
        stored=stored,
        teacher=teacher,
    )


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Returns a model without weights."""
    with torch.device("meta"):
        return get_auto_class(config).from_config(config)


def plan_setting(config: PreTrainedConfig, counts: Counts, setting: Setting, is_adapted: bool) -> Plan:
    """Returns the plan on a GPU; the arguments are those of [`plan`]."""
    result = plan(config, counts, setting, is_adapted)
    result.other += CONTEXT
    return result
