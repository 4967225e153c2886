"""
We-Math (https://huggingface.co/papers/2407.01284): data, prompts, extraction and aggregates by the definitions of the
official repository, We-Math/We-Math.
"""

import json
import math
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...errors import EvaluationError
from ..answers import final_answer, parse_options
from ..rates import rate
from .benchmark import Benchmark


STEPS = {
    2: ("2steps_1", "2steps_2", "2steps_multi"),
    3: ("3steps_1", "3steps_2", "3steps_3", "3steps_multi"),
}
KEYS = {key: steps for steps, keys in STEPS.items() for key in keys}
LETTERS = "ABCDEFGH"
PUMA_PHRASES = (
    "the correct option is",
    "The correct option is",
    "<Answer>:",
    "Answer:",
    "the answer is",
    "The answer is",
)
PROMPT = (
    "Now, we require you to solve a multiple-choice math question. {knowledge_line}Please briefly describe your "
    "thought process and provide the final answer(option). {knowledge}Question: {question} Option: {option} Regarding "
    "the format, please answer following the template below, and be sure to include two <> symbols: "
    "<Thought process>: <<your thought process>> <Answer>: <<your option>>"
)
KNOWLEDGE_LINE = "We will provide you with the relevant knowledge concepts of this question for your reference. "


class WeMath(Benchmark):
    """We-Math. The extracted option letter is compared with the gold answer; no rule asks a language model."""

    name = "wemath"
    title = "We-Math"
    hub_id = "We-Math/We-Math"
    archive = "testmini.zip"
    id_column = "question number"
    image_columns = ("image_path",)
    charted = ("accuracy", "S1", "S2", "S3", "strict", "loose", "domains")
    columns = ("ID", "key", "question number", "knowledge concept", "answer")
    prompt_columns = {
        "official": ("question", "option"),
        "math_puma": ("question", "option", "knowledge concept description"),
    }
    extraction_columns = {"math_puma": ("option",)}
    headline = ("four_dimensional",)
    llm_rules = ()

    def check_items(self, items: list[dict[str, Any]], allow_partial: bool) -> None:
        """
        Checks that the items form whole groups: the rows of one `ID` are its one-step problems and its multi-step
        problem.

        Raises:
            EvaluationError: if a key is unknown, a group mixes two and three steps or repeats a key, or lacks items.
        """
        for identity, group in group_items(items).items():
            for key in group:
                if key not in KEYS:
                    raise EvaluationError(f"Group {identity} has `key` {key!r}; expected one of {', '.join(KEYS)}.")
            steps = {KEYS[key] for key in group}
            if len(steps) > 1:
                raise EvaluationError(f"Group {identity} mixes two-step and three-step keys: {', '.join(group)}.")
            missing = [key for key in STEPS[steps.pop()] if key not in group]
            if missing and not allow_partial:
                raise EvaluationError(
                    f"Group {identity} lacks the item with `key` {', '.join(missing)}, so its class (IK, IG, CM or "
                    "RM) is unknown. Score the whole data set, or pass --allow_partial to leave such groups out."
                )
        concepts = {item["knowledge concept"] for item in items if not item["key"].endswith("multi")}
        unknown = sorted(concepts - set(read_domains()))
        if unknown:
            warnings.warn(f"These knowledge concepts belong to no domain and count in S1 only: {', '.join(unknown)}.")

    def describe(self, item: dict[str, Any]) -> str:
        """Returns a line for people: which step of which group, and its concept."""
        return f"Item {self.item_id(item)}: {item['key']} of {item['ID']}, {item['knowledge concept']}"

    def show_question(self, item: dict[str, Any]) -> str:
        """Returns the question with its options."""
        return f"{item.get('question') or ''}\n{item.get('option') or ''}".strip()

    def build_prompt(self, item: dict[str, Any], variant: str) -> str:
        """
        Returns the prompt, rebuilt from the fields: `"official"` is question and options with the two-slot template,
        `"math_puma"` the variant with the knowledge concept's description that the original project uses.
        """
        knowledge_line, knowledge = "", ""
        if variant == "math_puma":
            knowledge_line = KNOWLEDGE_LINE
            knowledge = f"Knowledge concept: {item['knowledge concept description']} "
        return PROMPT.format(
            knowledge_line=knowledge_line, knowledge=knowledge, question=item["question"], option=item["option"]
        )

    def extract(self, item: dict[str, Any], reply: str | None, rule: str) -> str | None:
        """
        Extracts the option letter, from A to H, or `None` (see [`Benchmark.extract`]): by the rule `"official"` the
        first character after the last "Answer", `<`, `>`, `:` and `.` removed.
        """
        reply = reply or ""
        if rule == "math_puma":
            return _extract_puma(item["option"], reply)
        if rule == "final":
            answer = final_answer(reply, "choice", parse_options(item.get("option") or ""))
            return answer if answer in tuple(LETTERS) else None
        text = re.sub(r"[<>:.]", "", reply.rpartition("Answer")[2].strip()).strip()
        return text[0] if text and text[0] in LETTERS else None

    def needs_llm(self, item: dict[str, Any], reply: str | None) -> bool:
        """Returns whether the official extraction asks a language model about this reply: never."""
        return False

    def compute_metrics(self, items: list[dict[str, Any]], correct: list[bool]) -> dict[str, Any]:
        """
        Computes S1, S2, S3, the twelve domains and the four dimensions.

        Returns:
            `dict[str, Any]` with rates as fractions, those of S1, S2 and S3 with counts in `steps`. `accuracy` pools
            all rows (not an official figure); the four dimensions count the groups that have all their items.
        """
        steps = {"S1": [], "S2": [], "S3": []}
        concepts = defaultdict(list)
        for item, right in zip(items, correct, strict=True):
            if item["key"].endswith("multi"):
                steps[f"S{KEYS[item['key']]}"].append(right)
            else:
                steps["S1"].append(right)
                concepts[item["knowledge concept"]].append(right)
        groups = group_items(items)
        return {
            **rate(correct),
            **{name: rate(outcomes)["accuracy"] for name, outcomes in steps.items()},
            "steps": {name: rate(outcomes) for name, outcomes in steps.items()},
            "domains": _domain_rates(concepts, read_domains()),
            "four_dimensional": four_dimensional(items, correct),
            "num_groups": len(groups),
            "incomplete_groups": sum(not _is_whole(group) for group in groups.values()),
        }


def read_domains() -> dict[str, str]:
    """Returns the domain of each of the 67 knowledge concepts."""
    return json.loads(Path(__file__).with_name("wemath_domains.json").read_text(encoding="utf-8"))


def group_items(items: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """
    Returns `ID` → `key` → position of the item.

    Raises:
        EvaluationError: if an (ID, key) pair occurs twice.
    """
    groups: dict[str, dict[str, int]] = defaultdict(dict)
    for position, item in enumerate(items):
        if item["key"] in groups[item["ID"]]:
            raise EvaluationError(f"Two items have ID {item['ID']!r} and key {item['key']!r}. {WeMath.duplicates}")
        groups[item["ID"]][item["key"]] = position
    return groups


def _extract_puma(option: str, reply: str) -> str | None:
    """Applies the rule of the original project: phrases in order, a letter or an option's text after each."""
    parts = [part.strip().split(".") for part in option.split(";") if "." in part]
    options = {part[0].strip(): part[1].strip().lower() for part in parts}
    for phrase in PUMA_PHRASES:
        if phrase not in reply:
            continue
        letter = re.search(f"[{LETTERS}]", reply.split(phrase)[1])
        if letter:
            return letter.group()
        for letter, text in options.items():
            if text in reply:
                return letter
    return None


def _domain_rates(concepts: dict[str, list[bool]], domains: dict[str, str]) -> dict[str, float | None]:
    """Returns, per domain, the unweighted mean over its concepts of their mean; `None` where no row belongs to it."""
    rates = {name: [] for name in dict.fromkeys(domains.values())}
    for concept, domain in domains.items():
        if concept in concepts:
            rates[domain].append(sum(concepts[concept]) / len(concepts[concept]))
    return {name: math.fsum(values) / len(values) if values else None for name, values in rates.items()}


def four_dimensional(items: list[dict[str, Any]], correct: list[bool]) -> dict[str, Any]:
    """
    Classifies each whole group and scores the run.

    With `a` all one-step rows right, `s` at least one right and `m` the multi-step row right: IK = not a, not m;
    IG = a, not m; strict CM = a and m, RM = not a, m; loose CM = s and m, RM = not s, m.

    Returns:
        `{"strict": {"IK": {"count", "rate"}, …, "score"}, "loose": …}`. IK, IG and CM are rates of all groups (525 in
        the benchmark), RM of RM + CM; the score is (CM + 0.5·IG) / groups. A rate over nothing is `None`.
    """
    groups = [group for group in group_items(items).values() if _is_whole(group)]
    counts = {setting: dict.fromkeys(("IK", "IG", "CM", "RM"), 0) for setting in ("strict", "loose")}
    for group in groups:
        one_steps = [correct[position] for key, position in group.items() if not key.endswith("multi")]
        multi = next(correct[position] for key, position in group.items() if key.endswith("multi"))
        for setting, mastered in (("strict", all(one_steps)), ("loose", any(one_steps))):
            if multi:
                counts[setting]["CM" if mastered else "RM"] += 1
            else:
                counts[setting]["IG" if all(one_steps) else "IK"] += 1
    return {setting: _dimension_rates(count, len(groups)) for setting, count in counts.items()}


def _is_whole(group: dict[str, int]) -> bool:
    return set(group) == set(STEPS[KEYS[next(iter(group))]])


def _dimension_rates(count: dict[str, int], num_groups: int) -> dict[str, Any]:
    totals = dict.fromkeys(count, num_groups) | {"RM": count["RM"] + count["CM"]}
    rates = {
        name: {"count": number, "rate": number / totals[name] if totals[name] else None}
        for name, number in count.items()
    }
    return rates | {"score": (count["CM"] + 0.5 * count["IG"]) / num_groups if num_groups else None}
