"""One sample, seen: a row as the model gets it, read back from the tensors of its batch."""

from itertools import groupby
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from .collator import TEACHER
from .tokens import ControlTokens


# Texts between two control tokens that are longer than this lose their middle
LONGEST = 600
# Runs of a control token that are longer than this are written as one, with their number
LONGEST_RUN = 2

LABELLED, CONTROL = "bold green", "cyan"


def describe_sample(
    batch: dict[str, Any],
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    teacher_processor: ProcessorMixin | PreTrainedTokenizerBase | None = None,
) -> Text:
    """
    Describes the first row of a batch, or a row of token ids: prompt and answer of each side, decoded from its
    tensors, with the control tokens, runs of which are folded, and the tokens that bear labels between ⟦ and ⟧. Plain
    text that reads like a control token has a backslash before it.

    Args:
        batch (`dict[str, Any]`):
            A batch of the collator: `input_ids`, `attention_mask`, `labels` (B, L), the teacher's with `teacher_`
            before the name, `row_id`; or a row of [`tokenize_rows`], also a packed one, of which the first is taken.
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            What the row was tokenised with.
        teacher_processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`], *optional*):
            The same of the text-rich side, where another model reads it.

    Returns:
        [`~rich.text.Text`]: several lines for a terminal; `plain` is the same without colours.
    """
    control = ControlTokens(processor)
    sides = {"": "vision-rich side", TEACHER: "text-rich side"} if f"{TEACHER}input_ids" in batch else {"": ""}
    lines = []
    for prefix, name in reversed(sides.items()):
        ids, labels = _first_row(batch, prefix)
        num_labels = sum(label != -100 for label in labels)
        facts = [
            *filter(None, [*batch.get("row_id", [])[:1], name]),
            f"{len(ids):,} tokens, {num_labels:,} with labels",
        ]
        side_control = control if prefix == "" or teacher_processor is None else ControlTokens(teacher_processor)
        lines += [Text(", ".join(facts) + ":", style="bold"), _describe_tokens(ids, labels, side_control)]
    return Text("\n").join(lines)


def _first_row(batch: dict[str, Any], prefix: str) -> tuple[list[int], list[int]]:
    """Returns ids and labels of the first row, without padding and what is hidden from it."""
    ids, labels = (_as_list(batch[f"{prefix}{name}"]) for name in ("input_ids", "labels"))
    if ids and isinstance(ids[0], list):
        ids, labels = ids[0], labels[0]
    if "seq_lengths" in batch:
        length = _as_list(batch["seq_lengths"])[0]
        return ids[:length], labels[:length]
    if f"{prefix}attention_mask" not in batch:
        return ids, labels
    mask = _as_list(batch[f"{prefix}attention_mask"])[0]
    kept = [(token, label) for token, label, keep in zip(ids, labels, mask, strict=True) if keep]
    return [token for token, _ in kept], [label for _, label in kept]


def _as_list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _describe_tokens(ids: list[int], labels: list[int], control: ControlTokens) -> Text:
    """Decodes tokens run by run: of one control token or of none, with labels or without."""
    with_labels = [label != -100 for label in labels]
    # behind an answer there is nothing but the collator's blank picture
    end = max((position for position, labelled in enumerate(with_labels, 1) if labelled), default=len(ids))
    result, is_open = Text(), False
    tokens = zip(ids[:end], with_labels, strict=False)
    for (token, labelled), run in groupby(tokens, lambda pair: (pair[0] if pair[0] in control.ids else None, pair[1])):
        if labelled != is_open:
            result.append("⟦" if labelled else "⟧", style=LABELLED)
            is_open = labelled
        run_ids = [each for each, _ in run]
        text, style = _decode(run_ids, token, control)
        result.append(_printable(text), style=f"{style} {LABELLED}".strip() if labelled else style)
    if is_open:
        result.append("⟧", style=LABELLED)
    if end < len(ids):
        result.append(f" and {len(ids) - end:,} tokens of a blank picture, which the answer does not see", style="dim")
    return result


def _decode(ids: list[int], token: int | None, control: ControlTokens) -> tuple[str, str]:
    """Returns text and style of a run; in plain text, what reads like a control token has a backslash before it."""
    if token is None:
        text = _shorten(control.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return control.pattern.sub(lambda found: "\\" + found[0], text), ""
    text = control.tokenizer.convert_ids_to_tokens(token)
    return (f"{text} × {len(ids):,}" if len(ids) > LONGEST_RUN else text * len(ids)), CONTROL


def _shorten(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    cut = len(text) - LONGEST
    return f"{text[: LONGEST // 2]} … {cut:,} characters … {text[-LONGEST // 2 :]}"


def _printable(text: str) -> str:
    """Escapes what a terminal would obey instead of showing it."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1] for character in text
    )
