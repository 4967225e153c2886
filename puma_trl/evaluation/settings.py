"""What the commands are told, apart from the files that they write, and the options that say it."""

import argparse
import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import EvaluationError
from .benchmarks import PROMPTS, Benchmark


BACKENDS = ("transformers", "openai")
JUDGES = ("exact", "math_verify", "openai")
# Fields that are options of several commands: how a model samples, and how a server is asked
SAMPLING = ("batch_size", "max_new_tokens", "temperature", "top_p", "seed", "dtype")
REQUESTS = ("concurrency", "timeout", "max_retries")


def setting(default: Any, words: str, **options: Any) -> Any:
    """Makes a field that [`add_settings`] makes an option of, with these words in its help."""
    return field(default=default, metadata={"help": words, **options})


def add_settings(parser: argparse.ArgumentParser, kind: type, *names: str) -> None:
    """Adds options that are fields of settings, with their types, defaults and words."""
    for name in names:
        default, options = getattr(kind, name), dict(kind.__dataclass_fields__[name].metadata)
        if default is not None:
            options |= {"type": type(default), "help": f"{options['help']} (default: %(default)s)"}
        parser.add_argument(f"--{name}", default=default, **options)


def check_sampling(batch_size: int, max_new_tokens: int, temperature: float, top_p: float) -> None:
    """
    Checks how a model is to reply.

    Raises:
        EvaluationError: if a value is out of its range.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise EvaluationError(
            f"`batch_size` is {batch_size} and `max_new_tokens` {max_new_tokens}, but both must be at least 1."
        )
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise EvaluationError(
            f"`temperature` is {temperature} and `top_p` {top_p}, but the first must be a finite number from 0 on, "
            "and the second above 0 and at most 1."
        )


@dataclass(frozen=True)
class ItemSource:
    """Which items are meant: all of a file or Hub data set, by default of the benchmark's official one."""

    benchmark: Benchmark
    data: str | None = setting(None, "json, jsonl or parquet file, or Hub data set (default: the official one)")
    split: str = setting("testmini", "split of the Hub data set")


@dataclass(frozen=True)
class ServerSettings:
    """A model behind an OpenAI-compatible API, by default the openai client's; see [`Server`]."""

    model: str
    base_url: str | None = setting(None, "server of --backend openai, such as http://127.0.0.1:8000/v1")
    concurrency: int = setting(8, "requests to a server under way at once")
    timeout: float = setting(120.0, "seconds for one try of a request, to the last byte of the reply")
    max_retries: int = setting(5, "tries of a request after the first")


@dataclass(frozen=True)
class LLMSettings(ServerSettings):
    """The language model that extracts and judges, and the room for its reply, thoughts included."""

    max_tokens: int = 2048


@dataclass(frozen=True)
class ReplySettings(ServerSettings):
    """The model under test (a folder or Hub name, or the name at the server) and how it replies."""

    backend: str = setting("transformers", "what runs the model: here, or a server", choices=BACKENDS)
    image_root: str | None = setting(None, "folder or zip with the pictures, or `hub` to download the archive")
    prompt: str = setting("official", "what the model is asked", choices=PROMPTS)
    batch_size: int = setting(16, "prompts in a batch")
    max_new_tokens: int = setting(1024, "longest reply in tokens")
    temperature: float = setting(0.0, "sampling temperature; 0 takes the likeliest token")
    top_p: float = setting(1.0, "share of probability that is sampled from")
    seed: int = setting(0, "seed of sampling")
    dtype: str = setting("auto", "type of the weights; auto is that of the checkpoint")


@dataclass(frozen=True)
class GapSettings:
    """The pairs on which the modality gap is measured, and how."""

    data: str
    image_root: str | None = setting(None, "folder that relative image paths start from")
    num_rows: int | None = setting(None, "use the first rows only", type=int)
    batch_size: int = setting(16, "pairs in a batch")
    max_new_tokens: int | None = setting(
        None, "longest reply in tokens (default: a quarter over the longest gold)", type=int
    )
    dtype: str = setting("auto", "type of the weights; auto is that of the checkpoint")
