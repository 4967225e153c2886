"""Both sides of pairs, answered by a model and compared with the gold answer."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from ..data.render import prompt_of
from .answers import (
    final_answer,
    find_truths,
    gold_answer,
    parse_options,
    same_quantity,
    same_truth,
    same_words,
    strip_thoughts,
)
from .local_model import Generator, Prompt
from .progress import Progress


SIDES = {"text_rich": "", "vision_rich": "_2"}


def read_answer(text: str, options: tuple[str, ...] = ()) -> str | None:
    """Returns the answer that a text ends in by the `final` rule: of options the letter, else any text."""
    return final_answer(text, "choice", options) if options else final_answer(text, "text")


def same_answer(reply: str, gold: str, options: tuple[str, ...] = ()) -> bool:
    """
    Returns whether a reply ends in the answer that the gold output ends in.

    Both go through the `final` rule. Two answers are the same if they are the same quantity, whatever its notation and
    unit, or the same text without regard to case and spaces. A gold output that states no answer, or is prose with a
    number by the way, is compared whole; to yes or no counts what the reply says of it.

    Args:
        reply (`str`):
            What the model said.
        gold (`str`):
            The gold output.
        options (`tuple[str, ...]`, *optional*):
            Texts of the options, where the gold answer is one of them.
    """
    gold, reply = strip_thoughts(gold), strip_thoughts(reply)
    expected = gold_answer(gold, options)
    if expected is None:
        return same_words(gold, reply)
    if not options and find_truths(expected):
        return same_truth(expected, reply)
    answer = read_answer(reply, options)
    return answer is not None and equal_answers(expected, answer)


def equal_answers(first: str, second: str) -> bool:
    """Returns whether two answers mean the same."""
    same = same_quantity(first, second)
    return same_words(first, second) if same is None else same


def options_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the options that the text-rich side of a pair lists, if the gold answer is the letter of one."""
    gold = final_answer(row["output_2"], "text")
    if gold is None or len(gold.strip("() .")) != 1 or not gold.strip("() .").isalpha():
        return ()
    return parse_options(row["instruction"])


def longest_reply(rows: Dataset, max_new_tokens: int | None = None) -> int:
    """Returns how many tokens a reply may have: by default a quarter more than the longest gold answer."""
    return 8 + max(rows["num_answer_tokens"]) * 5 // 4 if max_new_tokens is None else max_new_tokens


def answer_pairs(generator: Generator, rows: Dataset, title: str) -> list[dict[str, Any]]:
    """
    Answers problems on both sides.

    Returns:
        One row per pair with, for each side, `{side}_reply`, `{side}_answer` (by the `final` rule), `{side}_correct`,
        `{side}_tokens` and `{side}_cut` (whether the reply was cut off), and `agree`, whether both sides give the same
        answer.
    """
    return join_answers(rows, [answer_sides(generator, rows, title)])


def answer_sides(
    generator: Generator, rows: Dataset, title: str, share: Callable[[list[list[int]]], list[list[int]]] = list
) -> dict[int, dict[str, Any]]:
    """
    Answers a share of both sides, the longest prompts first, so that a batch too large for the memory fails at once.

    Args:
        generator ([`Generator`]):
            The model.
        rows ([`~datasets.Dataset`]):
            Checked pairs.
        title (`str`):
            Words of the progress bar.
        share (`Callable`, *optional*):
            Chooses this process's batches from those of all. Defaults to all.

    Returns:
        Position of a pair → what [`describe_reply`] returns of the sides that were answered.
    """
    answers: dict[int, dict[str, Any]] = defaultdict(dict)
    golds = rows["output_2"][:]
    options = [options_of(row) for row in rows.select_columns(["instruction", "output_2"])]
    for side, suffix in SIDES.items():
        texts = [prompt_of(row, suffix) for row in rows]
        prompts = [
            Prompt(text, images or (), history)
            for (text, _, history), images in zip(texts, rows[f"image_url{suffix}"], strict=True)
        ]
        batches = share(generator.batches(prompts))
        with Progress(f"{title}, {side} replies", sum(map(len, batches))) as progress:
            for batch in batches:
                replies = generator.answer([prompts[position] for position in batch])
                for position, reply in zip(batch, replies, strict=True):
                    answers[position] |= describe_reply(side, reply, golds[position], options[position])
                progress.advance(len(batch), sum(answers[position][f"{side}_correct"] for position in batch))
    return dict(answers)


def join_answers(rows: Dataset, parts: list[dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns what [`answer_pairs`] does, from what each process has answered."""
    pairs = [{"row_id": row_id, "gold": gold} for row_id, gold in zip(rows["row_id"], rows["output_2"], strict=True)]
    for part in parts:
        for position, answers in part.items():
            pairs[position] |= answers
    for pair in pairs:
        answers = [pair[f"{side}_answer"] for side in SIDES]
        pair["agree"] = None not in answers and equal_answers(*answers)
    return pairs


def describe_reply(side: str, reply: str, gold: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Returns what is kept of a reply."""
    return {
        f"{side}_reply": str(reply),
        f"{side}_answer": read_answer(reply, options),
        f"{side}_correct": same_answer(reply, gold, options),
        f"{side}_tokens": getattr(reply, "num_tokens", None),
        f"{side}_cut": getattr(reply, "is_cut", False),
    }
