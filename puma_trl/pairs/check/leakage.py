"""Whether a prompt gives the answer away, or a pair has nothing to align."""

import re
from collections.abc import Iterator

from ...data.texts import shorten
from .content import Side, short_answer, split_words


IDENTICAL = "identical sides"
IN_VISION_RICH = "answer in vision-rich prompt"
IN_TEXT_RICH = "answer in text-rich prompt"
NUMBER_IN_PROMPT = "answer among the numbers"

# Options such as "(A) 40" or "B. 50" name the right answer by design: only the text before them is looked at.
OPTION = re.compile(r"(?:^|[\s(（])([A-H])\s?[).:：、．）]")
LISTED = re.compile(r"(?:^|\n|\s)(?:choices|options|选项)\s*[:：]", re.IGNORECASE)
# "The answer is: $110$", but neither "answer yes or no" nor an example of the form: "e.g., Answer: B".
ANNOUNCED = (
    r"(?:\banswers?\b|\bsolution\b|答案)[\s:=：]*(?:is|are|为|是)?[\s:=：$*\\({{\[]*{answer}"
    r"(?!\w|[.,]\d|\s*(?:or\b|/|或))"
)
EXAMPLE = re.compile(r"(?:\be\.?g\b|\bexample|\bsuch as|\bform(?:at)?\b|例如|比如|格式)[^\n]{0,20}$", re.IGNORECASE)
# An answer of fewer words may stand in a prompt by chance, or because the prompt asks to decide between two.
TELLING_WORDS = 3
UNTELLING = {"yes", "no", "true", "false", "是", "否"}
# Words from which on a whole solution is told from a final answer.
WHOLE_SOLUTION = 6


def find_leaks(row: dict[str, str], text_rich: Side, vision_rich: Side) -> Iterator[tuple[str, str]]:
    """
    Finds what is wrong with the two prompts of a pair.

    Three signs tell a given-away answer from a number that is given in the problem and happens to be the answer too:
    the prompt announces it ("the answer is 110"), it holds the whole solution, or, on the vision-rich side, a final
    answer that the text-rich question does not mention. A final answer of three words or more counts as it stands. A
    single digit or letter counts only when it is announced. Options to choose from are left aside.

    Args:
        row (`dict[str, str]`):
            The texts of the pair.
        text_rich (`Side`), vision_rich (`Side`):
            Its two sides.

    Yields:
        Kind of finding and details.
    """
    if text_rich.key == vision_rich.key:
        yield IDENTICAL, f"both sides: {shorten(row['instruction'], 80)!r} with the same pictures"
    answer = short_answer(row["output_2"])
    solution = split_words(row["output_2"])
    prompts = {name: _before_options(row[name]) for name in ("instruction", "instruction_2")}
    words = {name: split_words(prompt) for name, prompt in prompts.items()}
    kinds = {"instruction_2": IN_VISION_RICH, "instruction": IN_TEXT_RICH}
    for name, kind in kinds.items():
        detail = f"`{name}` is {shorten(row[name], 80)!r}, and the answer {shorten(answer or '', 40)!r}"
        if len(solution) >= WHOLE_SOLUTION and _contains(words[name], solution):
            yield kind, f"`{name}` holds the whole answer: {shorten(row[name], 80)!r}"
        elif answer and (_announces(prompts[name], answer) or _tells(words[name], split_words(answer))):
            yield kind, detail
        elif answer and _mentions(words[name], split_words(answer)):
            given = name == "instruction" or _mentions(words["instruction"], split_words(answer))
            yield (NUMBER_IN_PROMPT if given else kind), detail


def _before_options(prompt: str) -> str:
    listed = LISTED.search(prompt)
    prompt = prompt[: listed.start()] if listed else prompt
    options = list(OPTION.finditer(prompt))
    first = next((option for option in options if option[1] == "A"), None)
    second = first and next((each for each in options if each[1] == "B" and each.start() > first.start()), None)
    # the rows of a table are named in the same way: "Row A: 1, 2. Row B: 3, 4."
    if second is None or (name := _word_before(prompt, first)) is not None and name == _word_before(prompt, second):
        return prompt
    return prompt[: first.start()]


def _word_before(prompt: str, option: re.Match) -> str | None:
    word = re.search(r"[^\W\d_]+$", prompt[: option.start()].rstrip(" "))
    return word and word[0].casefold()


def _announces(prompt: str, answer: str) -> bool:
    found = re.finditer(ANNOUNCED.format(answer=re.escape(answer)), prompt, re.IGNORECASE)
    return any(not EXAMPLE.search(prompt[: match.start()]) for match in found)


def _tells(words: list[str], answer: list[str]) -> bool:
    """Whether an answer in words stands in the prompt."""
    named = [word for word in answer if len(word) > 1 and not word[0].isdigit()]
    return len(named) >= TELLING_WORDS and _contains(words, answer)


def _mentions(words: list[str], answer: list[str]) -> bool:
    """Whether an answer that is no single digit or letter, and no yes or no, stands in the prompt."""
    return len("".join(answer)) > 1 and answer[0] not in UNTELLING and _contains(words, answer)


def _contains(words: list[str], part: list[str]) -> bool:
    return f" {' '.join(part)} " in f" {' '.join(words)} "
