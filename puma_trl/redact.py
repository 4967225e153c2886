"""Secrets: found by their names and by their looks, and hidden in all that is written or printed."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import ConfigError


HIDDEN = "<hidden>"
REMEDY = "log in with `hf auth login`, or set HF_TOKEN in the environment"

# How a name ends that stands for a secret, in small letters with underscores
_NAME = re.compile(
    r"(?:^|_)(?:token|auth|authorization|cookie|(?:pass(?:word|wd|phrase)|secret|credential|api_?key|access_key"
    r"|(?:access_|secret_|private_|auth_)key|amz_signature)s?)$"
)
# Tokens that are pieces of text
_TEXT_TOKEN = re.compile(
    r"(?:^|_)(?:bos|eos|pad|unk|sep|cls|mask|image|video|audio|vision|start|end|special|boi|eoi|next|first|last|per)_token$"
)
_LOOKS = (
    # of the Hub, OpenAI and others, GitHub, GitLab, npm, Slack, AWS, Google
    re.compile(r"(?<![A-Za-z0-9])(?:hf|npm|gh[oprsu]|api_org)_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:sk-|github_pat_|glpat-|xox[a-z]-)[\w-]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    re.compile(r"(?<![A-Za-z0-9])AIza[\w-]{30,}"),
    # JSON web tokens, private keys, headers
    re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL),
    re.compile(r"(?i)(?<=\bbearer )[^\s\"',;<]{6,}"),
    re.compile(r"(?<=\b[Bb]asic )(?=[A-Za-z+/]*[0-9=])[A-Za-z0-9+/]{12,}={0,2}"),
    # user:password@host, with a scheme, also where a path has taken slashes away or added some, or without
    re.compile(r"(?:(?<=:/)|(?<=://)|(?<=:///))[^\s/@:]*:[^\s/]*(?=@)"),
    re.compile(r"(?<![\w/.:@-])[\w.%+-]+:(?!/)[^\s/@:,]+(?=@[\w-]+(?:\.[\w-]+|:\d))"),
)
# The beginnings of `"name": "value"`, `name=value` and `name: value`, and the values
_PAIR = re.compile(r"(?<![\w-])([\w-]{1,80})(\\?[\"']\s*[:=]\s*\\?[\"']|=|:\s+)")
_QUOTED, _PLAIN = re.compile(r"[^\"'\\\n]+"), re.compile(r"[^\s\"'`,;&}<>]+")
_LONG = 16  # characters of a token behind a colon: "the token: x" speaks of texts

# Environment variables that a recipe records; others are set for the run, but their values are not written
_RECORDED = re.compile(
    r"(?:ACCELERATE|CUBLAS|CUDA|DS|FSDP|GLOO|HF_DATASETS|HF_HUB|MKL|NCCL|OMP|OPENBLAS|PYTORCH|TOKENIZERS|TORCH"
    r"|TRANSFORMERS|TRITON)_\w+|HF_ENDPOINT|HF_HOME|PYTHONHASHSEED"
    r"|WANDB_(?:DIR|DISABLED|ENTITY|GROUP|JOB_TYPE|LOG_MODEL|MODE|NAME|NOTES|PROJECT|RESUME|RUN_GROUP|RUN_ID|TAGS|WATCH)"
    r"|MLFLOW_(?:EXPERIMENT_NAME|RUN_ID|TAGS)|COMET_(?:MODE|PROJECT_NAME|WORKSPACE)|TRACKIO_(?:PROJECT|SPACE_ID)"
)
SHORTEST = 8  # values of fewer characters are also words of other texts

_seen: set[str] = set()


def is_secret_name(name: Any) -> bool:
    """Returns whether what stands under a name is a secret: `hub_token` or `MY_PASSWORD`, but not `eos_token`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+", "_", str(name)).lower().strip("_")
    return _NAME.search(words) is not None and _TEXT_TOKEN.search(words) is None


def hide_secrets(value: Any) -> Any:
    """
    Returns a value with `<hidden>` for all secrets in it: what has the name of one, what looks like one, and what an
    environment variable or a recipe has given as one in this process.

    Args:
        value (`Any`):
            Text, or dicts, lists, tuples and sets of values at any depth. Anything else is returned as it is.
    """
    if isinstance(value, str):
        text = _hide_in_text(value)
        return value if text == value else text  # which may be more than text, such as a value of an enumeration
    if isinstance(value, dict):
        return {
            hide_secrets(name): HIDDEN if _is_given(item) and is_secret_name(name) else hide_secrets(item)
            for name, item in value.items()
        }
    if type(value) in (list, tuple, set):
        return type(value)(hide_secrets(item) for item in value)
    return value


def remember_secrets(values: Any) -> None:
    """Makes [`hide_secrets`] know what stands under the name of a secret in `values`, wherever it is met later."""
    if isinstance(values, dict):
        for name, item in values.items():
            if is_secret_name(name):
                _seen.update(leaf for leaf in _leaves(item) if len(leaf) >= SHORTEST)
            else:
                remember_secrets(item)
    elif isinstance(values, list | tuple | set):
        for item in values:
            remember_secrets(item)


def record_environment(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the `env` of a recipe as it may be written: values of well-known variables, `<hidden>` for others."""
    return {
        name: value
        if not _is_given(value) or (_RECORDED.fullmatch(str(name)) and hide_secrets({name: value}) == {name: value})
        else HIDDEN
        for name, value in values.items()
    }


def refuse_secrets(argv: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: if a command line holds a secret, which the shell and the launcher keep and print.
    """
    flag = ""
    for argument in argv:
        is_flag = argument.startswith("--")
        flag = argument.split("=", 1)[0] if is_flag else flag
        if (is_flag and is_secret_name(flag)) or hide_secrets(argument) != argument:
            raise ConfigError(
                f"A secret stands on the command line{f' (`{flag}`)' if flag else ''}, where the shell's history, the "
                f"list of processes and the launcher's messages show it. Revoke it, and {REMEDY}."
            )


def refuse_hidden(values: dict[str, Any]) -> None:
    """
    Raises:
        ConfigError: if a recipe, as a run has saved it, lacks secrets that the run was given.
    """
    names = [f"`{name}`" for name, value in values.items() if any(HIDDEN in leaf for leaf in _leaves(value))]
    if names:
        raise ConfigError(
            f"{', '.join(names)}: {HIDDEN} stands where a run was given what it does not write down, such as a "
            "secret. Give the value, or take the line out."
        )


def _is_given(value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and value not in ("", HIDDEN)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for item in value:
            yield from _leaves(item)
    elif _is_given(value) or value == HIDDEN:
        yield str(value)


def _hide_in_text(text: str) -> str:
    for secret in _known_secrets():
        text = text.replace(secret, HIDDEN)
    for pattern in _LOOKS:
        text = pattern.sub(HIDDEN, text)
    return "".join(_hide_values(text))


def _hide_values(text: str) -> Iterator[str]:
    """Yields the text in pieces, with `<hidden>` for the values of secret names."""
    start = 0
    while pair := _PAIR.search(text, start):
        name, sign = pair.groups()
        yield text[start : pair.end()]
        start = pair.end()
        value = (_PLAIN if sign == "=" or sign[0] == ":" else _QUOTED).match(text, start)
        if value is None or not is_secret_name(name):
            continue
        if sign[0] != ":" or not name.lower().endswith("token") or len(value.group()) >= _LONG:
            yield HIDDEN
            start = value.end()
    yield text[start:]


def _known_secrets() -> list[str]:
    """Returns the secrets of this process, the longest first."""
    found = {value for name, value in os.environ.items() if len(value) >= SHORTEST and is_secret_name(name)}
    return sorted(found | _seen, key=len, reverse=True)
