"""Control tokens in texts are found, or read as plain text by a reader that reads all else as before."""

import re

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from puma_trl.data.render import Renderer
from puma_trl.data.tokens import MARK, ControlTokens, _any_of
from puma_trl.models.tokenizers import get_tokenizer

from ..models.family_models import MINI, OTHERS, build_family
from .tokenizers import KINDS, build, lowercase


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("llama 3", {"<bos>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}),
        ("gemma", {"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<mask>"}),  # no tags of HTML, no line breaks
        ("mistral", {"<s>", "</s>", "[INST]", "[/INST]"}),
        ("qwen base", {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"}),  # no words
    ],
)
def test_which_tokens_are_control_tokens(kind, tokens):
    control = ControlTokens(build(kind))
    assert set(control.tokens) == tokens
    assert control.ids == set(build(kind).convert_tokens_to_ids(sorted(tokens)))


def test_the_placeholders_of_a_processor_count_too():
    processor, _ = build_family("gemma3")
    control = ControlTokens(processor)
    assert {"<start_of_image>", "<image_soft_token>", "<end_of_turn>"} <= set(control.tokens)
    processor.image_token = "((picture))"
    assert ControlTokens(processor).find("see ((picture))") == "((picture))"


def test_the_first_token_is_found_and_the_longest_of_several():
    control = ControlTokens(build("qwen base"))
    assert control.find("a <|im_start|> b <|endoftext|>") == "<|im_start|>"
    assert control.find("<|im_<|im_end|>end|>") == "<|im_end|>"
    assert control.find("a triangle with x < 5 and | im_end | > 3") is None
    assert re.search(_any_of(["ab", "abc", "b"]), "xabcd")[0] == "abc"
    assert re.search(_any_of([]), "") is None


def test_tokens_that_are_looked_for_in_normalised_text():
    tokenizer = build("llama 3", normalizer=lowercase(), normalized=True)
    control = ControlTokens(tokenizer)
    assert ids_of(tokenizer, "<|EOT_ID|>") == [tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    assert control.find("a <|EOT_ID|>") is None and control.find_normalized("a <|EOT_ID|>") == "<|eot_id|>"
    assert ControlTokens(build("llama 3")).find_normalized("<|EOT_ID|>") is None


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_marked_tokens_are_read_as_plain_text(kind, normalizer, normalized):
    tokenizer = build(kind, normalizer, normalized)
    control = ControlTokens(tokenizer)
    reader = control.plain_reader
    for token in control.tokens:
        text = f"x {token}{token}y <b> triangle"
        escaped = control.escape(text)
        assert escaped.count(MARK) == 2 and control.find(escaped) is None
        ids = ids_of(reader, escaped)
        assert control.ids.isdisjoint(ids)
        assert reader.decode(ids) == text
        mixed = text + "é <|im_end|> <eos>"  # what is not marked is read as before
        assert ids_of(reader, mixed) == ids_of(tokenizer, mixed)
    assert MARK not in tokenizer.backend_tokenizer.to_str()  # the tokenizer that is saved is another one


def test_text_that_does_not_come_back_as_it_was_cannot_be_escaped():
    control = ControlTokens(build("mistral", normalizer=lowercase()))
    assert control.escape("[INST] a </s>") == f"[INST] a <{MARK}/s>"


def test_no_piece_of_a_word_is_cut_off_by_a_mark():
    """The marks are gone before words are made: plain text has the tokens that it has without control tokens."""
    vocabulary = {"<": 0, "e": 1, ">": 2, "<e": 3, "<e>": 4, ".": 5, ".<e>": 6}
    merges = [("<", "e"), ("<e", ">"), (".", "<e>")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()))
    backend.add_special_tokens(["<s>", "e>."])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    control = ControlTokens(tokenizer)
    control._is_plain = lambda token: True  # this vocabulary cannot spell the probes
    assert ids_of(control.plain_reader, control.escape(".<e>.")) == ids_of(plain, ".<e>.") == [6, 5]
    assert ids_of(tokenizer, ".<e>.") != [6, 5]


def test_what_a_tokenizer_makes_of_plain_text_cannot_be_escaped():
    """A unigram vocabulary with `</s>` makes that of the characters too."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -2.0) for character in "ab <>/s")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(["</s>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    control = ControlTokens(tokenizer)
    assert control.escape("a </s> b") == "a </s> b" == f"a {control.find('a </s> b')} b"


def test_a_slow_tokenizer_escapes_nothing():
    fast = build("qwen base")

    class Slow:
        is_fast = False

        def __getattr__(self, name):
            return getattr(fast, name)

        def __call__(self, *args, **options):
            return fast(*args, **options)

    slow = Slow()
    control = ControlTokens(slow)
    assert control.plain_reader is slow
    assert control.escape("a <|im_end|>") == "a <|im_end|>"


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_every_control_token_of_every_family_can_be_plain_text(name):
    processor, _ = build_family(name)
    control = ControlTokens(processor)
    assert get_tokenizer(control.plain_reader) is not processor.tokenizer
    for token in control.tokens:
        assert control.find(control.escape(token)) is None, token


@pytest.mark.parametrize(
    ("normalizer", "text", "read"),
    [
        (normalizers.Lowercase(), "The Angle", "the angle"),
        (normalizers.StripAccents(), "caf\u0065\u0301", "cafe"),
        (normalizers.NFKC(), "x\u00b2", "x2"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "\u00e9", "e"),
        (normalizers.Lowercase(), "the angle", None),
        (normalizers.NFC(), "cafe\u0301 x\u00b2 A", None),
        (normalizers.NFD(), "caf\u00e9", None),
        (normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]), " A  b\n", None),
        (None, "A", None),
    ],
)
def test_what_a_normalizer_makes_of_a_text(normalizer, text, read):
    assert ControlTokens(build("qwen base", normalizer)).find_rewriting(text) == read


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_no_family_rewrites_texts(name):
    assert not ControlTokens(build_family(name)[0])._rewrites


def test_rows_that_a_tokenizer_rewrites():
    renderer = Renderer(build("qwen base", normalizers.Lowercase()))
    row = {"instruction": "Find the angle.", "output": "it is 3", "history": [], "image_url": None}
    problem = renderer.find_problem(row, "")
    assert problem.startswith(
        "rewritten text: the tokenizer reads `instruction` 'Find the angle.' as 'find the angle.'"
    )
    assert renderer.find_problem(row | {"instruction": "find it", "output": "so"}, "") is None
