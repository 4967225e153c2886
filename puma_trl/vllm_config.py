"""The settings of sampling through vLLM, by TRL's names: `VLLMConfig`."""

from dataclasses import dataclass, field, fields
from typing import Any

from trl.import_utils import is_vllm_available

from .errors import ConfigError
from .fields import given_fields


# What `generation_kwargs` may say to vLLM; its other fields are decided elsewhere, or are not of sampling
_NUMBERS = {"frequency_penalty": (-2, 2), "presence_penalty": (-2, 2), "min_tokens": (0, None)}
OF_SAMPLING_PARAMS = ("bad_words", *_NUMBERS)
# What only one mode reads
OF_SERVER = tuple(f"vllm_server_{name}" for name in ("base_url", "host", "port", "timeout")) + ("vllm_group_port",)
OF_COLOCATE = (
    "vllm_model_impl",
    "vllm_enable_sleep_mode",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_tensor_parallel_size",
)
# vLLM refuses more, request by request; of bad words it takes 128, and each may be two of them, with a space before it
MAX_TEMPERATURE, MAX_BAD_WORDS = 2.0, 64


@dataclass
class VLLMConfig:
    r"""
    The part of [`PumaKLConfig`] that is for sampling answers through vLLM. Names and defaults are those of TRL's
    `DistillationConfig`.

    Args:
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether vLLM samples the answers of on-policy pairs, in place of transformers' `generate`.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            Where vLLM runs: `"server"`, a server of its own on other GPUs, or `"colocate"`, on those of the training.
        vllm_model_impl (`str`, *optional*, defaults to `"vllm"`):
            Whose model code vLLM runs, `"vllm"` or `"transformers"`.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            Whether vLLM leaves the memory of the GPUs to the optimizer step.
        vllm_server_base_url (`str`, *optional*):
            Address of the server. With it, `vllm_server_host` and `vllm_server_port` are not read.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`):
            Host of the server.
        vllm_server_port (`int`, *optional*, defaults to `8000`):
            Port of the server.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`):
            Seconds to wait for the server to be up.
        vllm_group_port (`int`, *optional*, defaults to `51216`):
            Port over which the server gets the weights.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Share of the memory of a GPU that a colocated vLLM takes.
        vllm_max_model_length (`int`, *optional*):
            Most tokens of prompt and answer in a colocated vLLM. Defaults to the model's.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`):
            Number of GPUs that a colocated vLLM divides the model over.
    """

    use_vllm: bool = field(
        default=False, metadata={"help": "Let vLLM sample the answers that the student writes itself."}
    )
    vllm_mode: str = field(
        default="colocate",
        metadata={
            "help": "Where vLLM runs: a server of its own, or on the GPUs of the training.",
            "choices": ["server", "colocate"],
        },
    )
    vllm_model_impl: str = field(
        default="vllm", metadata={"help": "Whose model code vLLM runs.", "choices": ["vllm", "transformers"]}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Let a colocated vLLM leave the memory to the optimizer step."}
    )
    vllm_server_base_url: str | None = field(default=None, metadata={"help": "Address of the vLLM server."})
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "Host of the vLLM server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of the vLLM server."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "Seconds to wait for the vLLM server to be up."}
    )
    vllm_group_port: int = field(
        default=51216, metadata={"help": "Port over which the vLLM server gets the weights (NCCL)."}
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the memory of a GPU that a colocated vLLM takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Most tokens of prompt and answer in a colocated vLLM."}
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "Number of GPUs that a colocated vLLM divides the model over."}
    )


OF_VLLM = tuple(field.name for field in fields(VLLMConfig))


def check_vllm(args: Any) -> None:
    """
    Makes sure that vLLM is there, and that what is said of it has an effect.

    Raises:
        ConfigError: if vLLM is not installed, settings do not go together, or `generation_kwargs` has what is not
            vLLM's.
    """
    if not args.use_vllm:
        if given := given_fields(args, OF_VLLM):
            raise ConfigError(
                f"`{given[0]}: {getattr(args, given[0])}` is for sampling through vLLM, but `use_vllm` is false. Set "
                "`use_vllm: true`, or leave it out."
            )
        return
    if not args.on_policy_share:
        raise ConfigError(
            "`use_vllm: true` is for answers that the student writes itself, but `on_policy_share` is 0. Set "
            "`on_policy_share`, or leave it out."
        )
    if not is_vllm_available():
        raise ConfigError(
            "`use_vllm: true` needs vLLM, which is not installed. Run `pip install trl[vllm]`, and then `pip install "
            "--no-deps 'transformers==5.23.*'`, since vLLM brings an older one."
        )
    if args.vllm_mode == "colocate" and args.device.type == "cpu":
        raise ConfigError(
            "`vllm_mode: colocate` needs a GPU, which vLLM shares with the training. Leave `use_vllm` out on a CPU."
        )
    if args.temperature > MAX_TEMPERATURE:
        raise ConfigError(
            f"`temperature` is {args.temperature}, but vLLM takes at most {MAX_TEMPERATURE:g}. Lower it, or leave out "
            "`use_vllm`."
        )
    _check_kwargs(args.generation_kwargs or {}, args.max_completion_length)


def _check_kwargs(kwargs: dict[str, Any], max_length: int) -> None:
    if "max_tokens" in kwargs:
        raise ConfigError("`generation_kwargs` has `max_tokens`. Set `max_completion_length` instead.")
    if unknown := sorted(kwargs.keys() - set(OF_SAMPLING_PARAMS)):
        raise ConfigError(
            f"`generation_kwargs` has `{unknown[0]}`, which is decided elsewhere or is not of sampling by vLLM. With "
            f"`use_vllm: true` it may have {', '.join(OF_SAMPLING_PARAMS)}."
        )
    words = kwargs.get("bad_words", [])
    is_right = isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words)
    if not is_right or len(words) > MAX_BAD_WORDS:
        raise ConfigError(
            f"`generation_kwargs` has `bad_words: {words!r}`, but it must be a list of at most {MAX_BAD_WORDS} words."
        )
    for name, (low, high) in _NUMBERS.items():
        value, high = kwargs.get(name, 0), max_length if high is None else high
        kinds = (int,) if name == "min_tokens" else (int, float)
        if type(value) not in kinds or not low <= value <= high:
            what = "a whole number" if name == "min_tokens" else "a number"
            raise ConfigError(
                f"`generation_kwargs` has `{name}: {value!r}`, but it must be {what} between {low} and {high}."
            )
