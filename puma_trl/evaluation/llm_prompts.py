"""What a language model is asked when it extracts or judges an answer. The worked examples are our own."""

from typing import Any

from .benchmarks import Benchmark


EXTRACT = (
    "You read a reply to a mathematics question and copy out the answer that the reply commits to. Output that answer "
    "and nothing else: no explanation, no unit that the question did not ask for, no solution of your own. For a "
    "multiple-choice question output the letter of the chosen option; for a numerical question the number; for a list "
    "the list in square brackets. If the reply commits to no answer, output null."
)
EXTRACT_EXAMPLES = (
    (
        "Question: How many edges does the drawn prism have?",
        "A triangular prism has two triangles and three rectangles. 3 + 3 + 3 gives 9 edges in total.",
        "9",
    ),
    (
        "Question: Which line is parallel to AB?\nChoices:\n(A) CD\n(B) EF\n(C) GH",
        "AB climbs one square for every two, and so does EF, therefore I would choose the second option.",
        "B",
    ),
    (
        "Question: What share of the disc is shaded? Give a floating-point number with two decimal places.",
        "Three of the eight equal sectors are shaded. 3/8 = 0.375, which rounds to 0.38.",
        "0.38",
    ),
    (
        "Question: In which two months did sales fall? Answer with a Python list of month numbers.",
        "The line goes down from February to March and again from August to September, so in months 3 and 9.",
        "[3, 9]",
    ),
    (
        "Question: Give the equation of the line in the figure.",
        "It passes through (0, 4) and (2, 0). The slope is -2. Hence the line is y = -2x + 4, as drawn.",
        "y = -2x + 4",
    ),
    (
        "Question: Find angle BCD.",
        "Without the lengths of the two chords I am not able to determine this angle.",
        "null",
    ),
)

JUDGE = (
    "You compare a model's answer to a mathematics question with the reference answer. Reply 1 if they agree and 0 if "
    "they do not; reply with that single digit only. In a multiple-choice question the letters must agree, or the "
    "model's answer must be the content of the right option and of no other. Otherwise answers agree if they mean the "
    "same, in whatever notation or unit, completely and not in part. Do not solve the question yourself."
)
JUDGE_EXAMPLES = (
    ("Find the length of the ladder.", "2.5 m", "250 cm", "1"),
    ("Which point is the centre?\nChoices:\nA: P\nB: Q\nC: R", "B", "R", "0"),
    ("Which point is the centre?\nChoices:\nA: P\nB: Q\nC: R", "B", "Q", "1"),
    ("State the zeros of the function.", "x = -3 and x = 1", "x = 1", "0"),
    ("Express the shaded area in terms of r.", "\\frac{\\pi r^2}{4}", "0.25πr²", "1"),
    ("On which interval does the graph rise?", "(0, 5]", "[0, 5]", "0"),
    ("Determine angle ADB.", "74", "null", "0"),
)


def extraction_messages(benchmark: Benchmark, item: dict[str, Any], reply: str) -> list[dict[str, Any]]:
    """Returns the chat that asks a language model to extract the answer from a reply."""
    messages = [{"role": "system", "content": EXTRACT}]
    for question, example_reply, answer in EXTRACT_EXAMPLES:
        messages.append({"role": "user", "content": f"{question}\n\nReply: {example_reply}"})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": f"{benchmark.build_prompt(item, 'official')}\n\nReply: {reply}"})
    return messages


def judge_messages(question: str, gold: str, extraction: str) -> list[dict[str, Any]]:
    """Returns the chat that asks a language model whether an extraction agrees with the gold answer."""
    messages = [{"role": "system", "content": JUDGE}]
    for *comparison, verdict in JUDGE_EXAMPLES:
        messages.append({"role": "user", "content": _comparison(*comparison)})
        messages.append({"role": "assistant", "content": verdict})
    messages.append({"role": "user", "content": _comparison(question, gold, extraction)})
    return messages


def _comparison(question: str, gold: str, answer: str) -> str:
    return f"Question: {question}\nReference answer: {gold}\nModel's answer: {answer}"
