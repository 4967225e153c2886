"""What the answers of models to both sides of pairs come to: accuracies with intervals, differences, groups."""

from itertools import combinations
from typing import Any

from ..record.intervals import wilson
from .gap_answers import SIDES, equal_answers
from .modality import modality_rank
from .paired import compare_outcomes


DIVERGENCES = ("forward_kl", "reverse_kl", "shuffled_forward_kl", "shuffled_reverse_kl")
GROUPS = ("kind", "level", "modality")


def summarise_answers(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Summarises what both sides were answered.

    Args:
        pairs (`list[dict[str, Any]]`):
            What [`answer_pairs`] returned, at least one.

    Returns:
        `pairs` (their number), for each side `{side}_accuracy`, its 95 % `{side}_interval` (Wilson), `{side}_tokens`
        (mean length of a reply) and `{side}_cut` (share of replies that were cut off), `gap` (text-rich minus
        vision-rich), its 95 % `gap_interval`, `gap_p` (McNemar's exact test) and `agreement` (share of pairs with the
        same answer on both sides).
    """
    count = len(pairs)
    summary: dict[str, Any] = {"pairs": count}
    for side in SIDES:
        right = sum(pair[f"{side}_correct"] for pair in pairs)
        lengths = [pair[f"{side}_tokens"] for pair in pairs if pair[f"{side}_tokens"] is not None]
        summary |= {
            f"{side}_accuracy": right / count,
            f"{side}_interval": wilson(right, count),
            f"{side}_tokens": sum(lengths) / len(lengths) if lengths else None,
            f"{side}_cut": sum(pair[f"{side}_cut"] for pair in pairs) / count,
        }
    gap = compare_outcomes(*([pair[f"{side}_correct"] for pair in pairs] for side in SIDES))
    return summary | {
        "gap": gap["difference"],
        "gap_interval": gap["interval"],
        "gap_p": gap["p"],
        "agreement": sum(pair["agree"] for pair in pairs) / count,
    }


def summarise(label: str, model: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Summarises the results of one model.

    Args:
        label (`str`):
            What the model is called.
        model (`str`):
            Its folder.
        pairs (`list[dict[str, Any]]`):
            Answers and divergences per pair, with the `kind`, `level` and `modality` of pairs that have them.

    Returns:
        What [`summarise_answers`] returns, the divergences per answer token (all tokens of all pairs weigh the same),
        and `by`: field → value → the same summary of answers, where the data has the field.
    """
    tokens = sum(pair["num_tokens"] for pair in pairs)
    divergences = {name: sum(pair[name] * pair["num_tokens"] for pair in pairs) / tokens for name in DIVERGENCES}
    groups = {}
    for field in GROUPS:
        # by their text, since files may say 1 as well as "1"
        said = [(str(pair[field]), pair) for pair in pairs if pair.get(field) not in (None, "")]
        chosen = {name: [pair for each, pair in said if each == name] for name in {name for name, _ in said}}
        if chosen:
            groups[field] = {name: summarise_answers(chosen[name]) for name in sorted(chosen, key=modality_rank)}
    names = {"label": label, "model": model, "answer_tokens": tokens}
    return names | summarise_answers(pairs) | divergences | {"by": groups}


def compare_models(pairs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """
    Compares each two models on the same pairs.

    Args:
        pairs (`dict[str, list[dict[str, Any]]]`):
            Label → results per pair, in the same order.

    Returns:
        Per two models `{"first", "second"}`, their labels, and for each side what [`compare_outcomes`] returns, the
        second minus the first, with `agreement`, the share of pairs to which both give the same answer.
    """
    comparisons = []
    for first, second in combinations(pairs, 2):
        sides = {}
        for side in SIDES:
            outcomes = ([pair[f"{side}_correct"] for pair in pairs[label]] for label in (second, first))
            answers = ([pair[f"{side}_answer"] for pair in pairs[label]] for label in (first, second))
            same = sum(None not in both and equal_answers(*both) for both in zip(*answers, strict=True))
            change = compare_outcomes(*outcomes)
            alone = {"only_first": change["only_second"], "only_second": change["only_first"]}
            sides[side] = change | alone | {"agreement": same / len(pairs[first])}
        comparisons.append({"first": first, "second": second} | sides)
    return comparisons
