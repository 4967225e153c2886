"""Control tokens: those of a tokenizer that mean something to the model, found in texts or read as plain text."""

import copy
import json
import re
import unicodedata
from collections import defaultdict
from functools import cached_property

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..models.tokenizers import get_tokenizer
from .thoughts import TAG


# Inside of a control token it keeps that from being one; [`ControlTokens.plain_reader`] drops it. Unicode sets this
# character aside for the inner use of programs.
MARK = "\ufdd0"

# The shape of a control token that is not declared special, such as Qwen's `<tool_call>`
SHAPE = re.compile(r"<.+>|\[.+\]", re.DOTALL)
# Some tokenizers (Gemma's) have tokens for the tags of HTML, which are text as any other
HTML = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|dd|del|div|dl|dt|em|h[1-6]|hr|i|ins|li|ol|p|pre|s|span|strong|sub|sup|table|"
    r"tbody|td|tfoot|th|thead|tr|u|ul)>"
)


class ControlTokens:
    """
    The control tokens of a tokenizer: those declared special, added ones that look like it, and the placeholders of a
    processor. Words and tags of HTML that were added to the vocabulary are text.

    Attributes:
        ids (`set[int]`):
            The tokens' ids.
        pattern (`re.Pattern`):
            Matches any of them in a text.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase):
        self.processor, self.tokenizer = processor, get_tokenizer(processor)
        added = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        tokens = {*self.tokenizer.all_special_tokens, *(name for name, token in added.items() if _is_control(token))}
        if processor is not self.tokenizer:
            placeholders = [value for name, value in vars(processor).items() if name.endswith("_token")]
            tokens.update(value for value in placeholders if isinstance(value, str))
        self.tokens = sorted(token for token in tokens if token.strip())
        # one by one, as copying a large vocabulary takes a tenth of a second
        is_fast = self.tokenizer.is_fast
        find_id = self.tokenizer.backend_tokenizer.token_to_id if is_fast else self.tokenizer.get_vocab().get
        self.ids = {find_id(token) for token in self.tokens} - {None}
        self.pattern = re.compile(_any_of(self.tokens))
        # the tokenizer looks for some in the text that it has normalised, in lower case for instance
        self._normalizer = self.tokenizer.backend_tokenizer.normalizer if is_fast else None
        normalized = [token for token in self.tokens if token in added and added[token].normalized]
        self._normalized_pattern = None
        if self._normalizer is not None and normalized:
            self._normalized_pattern = re.compile(_any_of([*map(self._normalizer.normalize_str, normalized)]))
        self._are_plain = {}

    def find(self, text: str) -> str | None:
        """Returns the first control token that is written out in a text; marked ones are not."""
        found = self.pattern.search(text)
        return None if found is None else found[0]

    def find_normalized(self, text: str) -> str | None:
        """Returns the first control token that the tokenizer finds when it has normalised a text."""
        if self._normalized_pattern is None:
            return None
        found = self._normalized_pattern.search(self._normalizer.normalize_str(text))
        return None if found is None else found[0]

    def find_rewriting(self, text: str) -> str | None:
        """Returns what the tokenizer makes of a text before it reads it, if other characters; NFC does not count."""
        if not self._rewrites:
            return None
        read = self._read(text)
        return None if read == _composed(text) else read

    @cached_property
    def _rewrites(self) -> bool:
        """Whether the tokenizer's normalizer changes any character, as lower case or NFKC does."""
        if self._normalizer is None:
            return False
        text = " ".join(character for character in map(chr, range(0x20, 0xFFFE)) if _is_assigned(character))
        return self._read(text) != _composed(text)

    def _read(self, text: str) -> str:
        # SentencePiece writes blanks so
        return _composed(self._normalizer.normalize_str(text).replace("\u2581", " "))

    def cut(self, text: str) -> str | None:
        """Returns the beginning of a text up to its first control token and with it, if there is one."""
        found = self.pattern.search(text)
        return None if found is None else text[: found.end()]

    def escape(self, text: str) -> str:
        """Marks the control tokens in a text, all that [`ControlTokens.plain_reader`] can read as plain text."""
        return self.pattern.sub(lambda found: _mark(found[0]) if self._is_plain(found[0]) else found[0], text)

    @cached_property
    def plain_reader(self) -> ProcessorMixin | PreTrainedTokenizerBase:
        """
        A copy of the processor that reads marked control tokens as the text they are made of, and all else as before.

        The copy's tokenizer looks for control tokens, finds no marked one, and only then drops the marks, as the first
        step of normalising. A slow tokenizer cannot be made to; then it is the processor itself.
        """
        if not self.tokenizer.is_fast:
            return self.processor
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["normalized"] = False  # or it would be looked for when the marks are gone
        drop = {"type": "Replace", "pattern": {"String": MARK}, "content": ""}
        steps = [drop] if state["normalizer"] is None else [drop, state["normalizer"]]
        state["normalizer"] = {"type": "Sequence", "normalizers": steps}
        tokenizer = copy.copy(self.tokenizer)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
        if self.processor is self.tokenizer:
            return tokenizer
        reader = copy.copy(self.processor)
        reader.tokenizer = tokenizer
        return reader

    @cached_property
    def _reader_agrees(self) -> bool:
        """Whether the reader reads what is not marked as the processor does."""
        words = [*self.tokens, *self.tokenizer.get_added_vocab()]
        text = "".join(f"a {word}{word} b" for word in words)
        return _encode(self.tokenizer, text) == _encode(get_tokenizer(self.plain_reader), text)

    def _is_plain(self, token: str) -> bool:
        """Whether the reader reads a marked token as plain text: no control token, and the same characters."""
        if token not in self._are_plain:
            ids = _encode(get_tokenizer(self.plain_reader), f"a {_mark(token)} b")
            text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            same = text.strip() == f"a {token} b" and self.ids.isdisjoint(ids)
            self._are_plain[token] = same and len(token) > 1 and self._reader_agrees
        return self._are_plain[token]


def _composed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _is_assigned(character: str) -> bool:
    return character != "\u2581" and unicodedata.category(character)[0] not in "CZ"


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _mark(token: str) -> str:
    return token[0] + MARK + token[1:]


def _is_control(token: AddedToken) -> bool:
    content = token.content.strip(" \n▁")
    has_shape = SHAPE.fullmatch(content) is not None and HTML.fullmatch(content) is None
    return token.special or has_shape or TAG.fullmatch(content) is not None


def _any_of(words: list[str]) -> str:
    """Returns a pattern of any of the words, the longest first, that is as fast for thousands as for a few."""
    branches = defaultdict(list)
    for word in words:
        if word:
            branches[word[0]].append(word[1:])
    options = [re.escape(first) + _any_of(rest) for first, rest in branches.items()]
    if not options:
        return "" if words else "(?!)"
    return f"(?:{'|'.join(options)})" + ("?" if "" in words else "")
