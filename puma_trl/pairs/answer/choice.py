"""Which replies are kept, why the others are not, and what came of it by kind and length."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.render import Renderer
from ...data.texts import is_blank
from ...evaluation.answers import find_truths, gold_answer, strip_thoughts
from ...evaluation.benchmarks import BENCHMARKS
from ...evaluation.gap_answers import SIDES, read_answer, same_answer
from ...evaluation.judging import is_equivalent
from .problems import SHOWN, Problem, find_change


RIGHT, REPEATED = "right", "the same text again"
# What ends a reply, to see whether its last thought has an end
MARK = "\ue000"
# Control tokens of the common chat formats, of which a server says no list
CONTROL = re.compile(
    r"<[|｜][^<>\n]{1,40}[|｜]>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]", re.IGNORECASE
)
SHORTEST = 32  # characters, of the first of the groups by length; the next ends at twice as many


@dataclass(frozen=True)
class Judged:
    """
    A reply and what became of it.

    Args:
        sample (`int`):
            Its number among those to the same problem, from 1.
        answer (`str`):
            The text to learn from: the reply without thoughts.
        verdict (`str`):
            `RIGHT`, or why it is not kept.
    """

    sample: int
    answer: str
    verdict: str


def agrees(answer: str, gold: str, options: tuple[str, ...], judge: str) -> bool:
    """
    Returns whether an answer ends in what the gold answer ends in.

    Args:
        answer (`str`):
            What the model said.
        gold (`str`):
            The answer of the data.
        options (`tuple[str, ...]`):
            Texts of the options, where the gold answer is the letter of one.
        judge (`str`):
            `"exact"`: the same letter, quantity or words, as `gap` counts; `"math_verify"`: what math-verify finds
            equal as well.
    """
    if same_answer(answer, gold, options):
        return True
    if judge == "exact" or options:
        return False
    ends = gold_answer(gold), read_answer(answer)
    if ends[0] is not None and find_truths(ends[0]):
        return False
    item = {"answer": ends[0], "question_type": "free-form"}
    return None not in ends and is_equivalent(BENCHMARKS["mathverse"], item, ends[1])


def find_flaw(
    problem: Problem, reply: dict[str, Any], answer: str | None, folder: Path, reader: Renderer | None
) -> str | None:
    """
    Says why a reply cannot be learned from, whatever it answers.

    Args:
        problem ([`Problem`]):
            What was asked.
        reply (`dict[str, Any]`):
            The row of the progress file.
        answer (`str`, *optional*):
            What [`without_thoughts`] returned.
        folder (`Path`):
            Where the answers will be written.
        reader ([`Renderer`], *optional*):
            What reads texts for the model.
    """
    if reply["is_cut"]:
        return "cut off"
    if answer is None:
        return "a thought without end"
    if is_blank(answer):
        return "nothing said"
    if "\ufffd" in answer:
        return "broken characters"
    if CONTROL.search(answer):
        return "control tokens"
    row = problem.answered(answer)
    if reader is not None and any(reader.find_problem(row, suffix) for suffix in SIDES.values()):
        return "control tokens"
    return "not readable as data" if find_change(problem, answer, folder) else None


def without_thoughts(reply: str) -> str | None:
    """Returns what stands outside of `<think>` and its like, `None` where the last thought has no end."""
    answer = strip_thoughts(reply + MARK)
    return answer.removesuffix(MARK).strip() if answer.endswith(MARK) else None


def judge_replies(
    problem: Problem, replies: Sequence[dict[str, Any]], judge: str, folder: Path, reader: Renderer | None
) -> list[Judged]:
    """
    Judges the replies to a problem.

    Args:
        problem ([`Problem`]):
            The problem.
        replies (`Sequence[dict[str, Any]]`):
            Rows of the progress file, in the order of their numbers.
        judge (`str`):
            `"exact"` or `"math_verify"`, see [`agrees`].
        folder (`Path`):
            Where the answers will be written.
        reader ([`Renderer`], *optional*):
            What reads texts for the model.
    """
    judged, seen = [], set()
    for reply in replies:
        answer = without_thoughts(reply["response"])
        verdict = find_flaw(problem, reply, answer, folder, reader)
        if verdict is None and not agrees(answer, problem.gold, problem.options, judge):
            verdict = "another answer"
        if verdict is None and answer in seen:
            verdict = REPEATED
        if verdict is None:
            seen.add(answer)
        judged.append(Judged(reply["sample"], reply["response"] if answer is None else answer, verdict or RIGHT))
    return judged


def choose(judged: Sequence[Judged], keep: str, seed: str) -> list[Judged]:
    """
    Chooses among the right answers to a problem.

    Args:
        judged (`Sequence[Judged]`):
            What [`judge_replies`] returned.
        keep (`str`):
            `"shortest"` (in characters; of equals the first), `"random"` (by the seed) or `"all"`.
        seed (`str`):
            Seed of the choice.
    """
    right = [each for each in judged if each.verdict == RIGHT]
    if keep == "all" or not right:
        return right
    if keep == "shortest":
        return [min(right, key=lambda each: len(each.answer))]
    return [random.Random(seed).choice(right)]


class Yield:
    """
    Counts what came of the replies, and words it.

    Args:
        prose (`Sequence[str]`, *optional*):
            Row ids of the problems whose gold answer is prose.
    """

    def __init__(self, prose: Sequence[str] = ()):
        self.prose = tuple(prose)
        self.total = Counter()
        self.by_kind: dict[str, Counter] = defaultdict(Counter)
        self.by_length: dict[int, Counter] = defaultdict(Counter)
        self.verdicts = Counter()

    def add(self, problem: Problem, judged: Sequence[Judged], kept: Sequence[Judged]) -> None:
        """Counts the replies to a problem."""
        good = (RIGHT, REPEATED)
        here = {"problems": 1, "solved": int(bool(kept)), "replies": len(judged), "kept": len(kept)}
        here["right"] = sum(each.verdict in good for each in judged)
        for counts in (self.total, self.by_kind[str(problem.facts.get("kind", ""))]):
            counts.update(here)
        for each in judged:
            longest = SHORTEST
            while len(each.answer) > longest:
                longest *= 2
            counts = {"replies": 1, "right": int(each.verdict in good), "kept": int(each in kept)}
            self.by_length[longest].update(counts)
        self.verdicts.update(each.verdict for each in judged)

    @property
    def kept(self) -> int:
        """The number of answers that are kept."""
        return self.total["kept"]

    @property
    def reasons(self) -> str:
        """Says why replies are not kept, and which gold answers are prose."""
        left = Counter(self.verdicts)
        left["right, but another was chosen"] = left.pop(RIGHT, 0) - self.kept
        words = f"Not kept: {'; '.join(f'{why}: {count:,}' for why, count in left.most_common() if count) or 'none'}."
        if self.prose:
            words += (
                f" {len(self.prose):,} gold answers are prose without an answer: only the same words are right there "
                f"({', '.join(self.prose[:SHOWN])}{', …' if len(self.prose) > SHOWN else ''})."
            )
        return words

    def describe(self) -> str:
        """Returns the page: tables in Markdown, and why replies are not kept."""
        kinds = [(kind or "no kind", counts) for kind, counts in sorted(self.by_kind.items())]
        lines = ["| kind | problems | solved | replies | right | kept |", "|---|---|---|---|---|---|"]
        for name, counts in [*kinds, ("all", self.total)]:
            numbers = [_share(counts, "solved", "problems"), counts["replies"], _share(counts, "right", "replies")]
            lines.append(_line(name, counts["problems"], *numbers, counts["kept"]))
        lines += ["", "| characters | replies | right | kept |", "|---|---|---|---|"]
        for longest, counts in sorted(self.by_length.items()):
            lines.append(
                _line(f"up to {longest:,}", counts["replies"], _share(counts, "right", "replies"), counts["kept"])
            )
        lines += ["", self.reasons]
        return "\n".join(lines) + "\n"


def _share(counts: Counter, part: str, whole: str) -> str:
    return f"{counts[part]:,} ({counts[part] / counts[whole]:.1%})"


def _line(*values: Any) -> str:
    return f"| {' | '.join(f'{value:,}' if isinstance(value, int) else value for value in values)} |"
