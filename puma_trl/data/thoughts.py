"""Thoughts: the tags that models for reasoning put around what they think before they answer."""

import re
from typing import TYPE_CHECKING


if TYPE_CHECKING:  # the tags are known where no library is waited for
    from transformers import PreTrainedTokenizerBase


NAMES = "think|thinking|thought|thoughts|reasoning"
# Any of these tags in a text
TAG = re.compile(
    rf"(?P<begins><(?:{NAMES})>|◁think▷|(?-i:\[THINK\]))|</(?:{NAMES})>|◁/think▷|(?-i:\[/THINK\])", re.IGNORECASE
)
LONGEST = 20  # characters of a tag


def end_of(tag: str) -> str:
    """Returns the tag that closes what a tag opens: `</think>` for `<think>`."""
    return f"{tag[:1]}/{tag[1:]}"


def find_tags(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Returns the tags of thoughts that are tokens of their own: what opens a thought → what closes it."""
    tokens = tokenizer.get_added_vocab()
    return {
        token: end_of(token)
        for token in sorted(tokens)
        if (found := TAG.fullmatch(token)) and found["begins"] and end_of(token) in tokens
    }


def find_end(prompt: str) -> re.Match[str] | None:
    """Finds the tag of a thought that a prompt ends with, `begins` of which says whether it opens one."""
    end = prompt.rstrip()[-LONGEST:]
    return next((found for found in TAG.finditer(end) if found.end() == len(end)), None)
