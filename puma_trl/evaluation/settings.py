"""What the commands are told, apart from the files that they write."""

from dataclasses import dataclass

from .benchmarks import Benchmark


BACKENDS = ("transformers", "openai")
JUDGES = ("exact", "math_verify", "openai")


@dataclass(frozen=True)
class ItemSource:
    """
    Which items are meant.

    Args:
        benchmark ([`Benchmark`]):
            One of `BENCHMARKS`.
        data (`str`, *optional*):
            A json, jsonl or parquet file, or a Hub data set. `None` is the benchmark's official data set.
        split (`str`, *optional*, defaults to `"testmini"`):
            Split of the Hub data set.
    """

    benchmark: Benchmark
    data: str | None = None
    split: str = "testmini"


@dataclass(frozen=True)
class ServerSettings:
    """
    A model behind an OpenAI-compatible API; see [`Server`].

    Args:
        model (`str`):
            Name of the model at the server.
        base_url (`str`, *optional*):
            Address of the API, such as `http://127.0.0.1:8000/v1`. Defaults to the openai client's.
        concurrency (`int`, *optional*, defaults to `8`):
            Largest number of requests under way.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that one try may take, to the last byte of the reply.
        max_retries (`int`, *optional*, defaults to `5`):
            Tries after the first.
    """

    model: str
    base_url: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 5


@dataclass(frozen=True)
class LLMSettings(ServerSettings):
    """
    The language model that extracts and judges; see [`ServerSettings`].

    Args:
        max_tokens (`int`, *optional*, defaults to `2048`):
            Room for a reply, thoughts included.
    """

    max_tokens: int = 2048


@dataclass(frozen=True)
class ReplySettings(ServerSettings):
    """
    The model under test and how it replies.

    Args:
        model (`str`):
            Folder or Hub name, or the name at the server.
        backend (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"`, which loads the model here, or `"openai"`, which asks the server at `base_url`.
        image_root (`str`, *optional*):
            Folder or zip archive with the pictures, or `"hub"` to download the archive.
        prompt (`str`, *optional*, defaults to `"official"`):
            One of `PROMPTS`.
        batch_size (`int`, *optional*, defaults to `16`):
            Prompts in a batch.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest reply in tokens.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 takes the likeliest token.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of probability that is sampled from.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights; `"auto"` is that of the checkpoint.
    """

    backend: str = "transformers"
    image_root: str | None = None
    prompt: str = "official"
    batch_size: int = 16
    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class GapSettings:
    """
    The pairs on which the modality gap is measured, and how.

    Args:
        data (`str`):
            File, folder or Hub data set with the published columns.
        image_root (`str`, *optional*):
            Folder that relative image paths start from.
        num_rows (`int`, *optional*):
            How many rows to use, from the first.
        batch_size (`int`, *optional*, defaults to `16`):
            Pairs in a batch.
        max_new_tokens (`int`, *optional*):
            Longest reply in tokens. Defaults to a quarter over the longest gold answer.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights; `"auto"` is that of the checkpoint.
    """

    data: str
    image_root: str | None = None
    num_rows: int | None = None
    batch_size: int = 16
    max_new_tokens: int | None = None
    dtype: str = "auto"
