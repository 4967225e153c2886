"""Answers with thoughts: those that a model can write are trained on with its own tokens, others are refused."""

from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken

from puma_trl.data.encode import TextCollator
from puma_trl.data.opening import Opening
from puma_trl.data.render import Renderer, render_answer
from puma_trl.data.thoughts import find_end, find_tags
from puma_trl.data.tokens import ControlTokens

from .samples import ROW
from .tokenizers import CHATML, build


END = "<|im_end|>"
OPENS, EMPTY = "assistant\n<think>\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif"
PAIRS = {"<think>": "</think>", "[THINK]": "[/THINK]", "◁think▷": "◁/think▷"}


def thinker(opening="assistant\n{% endif", start="<think>", special=False):
    """A tokenizer of bytes that has the tags of a thought as tokens, if it has a start, and how it opens answers."""
    tokenizer = build("qwen base")
    if start:
        tokenizer.add_tokens([AddedToken(tag, normalized=False, special=special) for tag in (start, PAIRS[start])])
    tokenizer.chat_template = CHATML.replace("assistant\n{% endif", opening)
    return tokenizer


def problem_of(tokenizer, output, special_tokens="error", **row):
    renderer = Renderer(tokenizer, special_tokens)
    renderer.check_template()
    return renderer.find_problem(ROW | {"output": output} | row, "")


def trained_on(tokenizer, output, special_tokens="error"):
    """The control tokens of an answer as it is tokenised."""
    renderer = Renderer(tokenizer, special_tokens)
    ids = renderer.reader(renderer.answer(output), add_special_tokens=False)["input_ids"]
    return [tokenizer.convert_ids_to_tokens(token) for token in ids if token in renderer.control.ids]


WRITTEN = [
    "<think>\n180 - 28 - 48\n</think>\n\nThe angle is 104",
    "<think>x</think>104",
    "\n<think>\n\n</think>\n\n104",
    "<think>x</think><answer>104</answer>",
]


@pytest.mark.parametrize("special_tokens", ["error", "escape"])
@pytest.mark.parametrize("output", WRITTEN)
def test_a_thought_as_models_write_it(output, special_tokens):
    """Its tags are the model's tokens, whether other control tokens are plain text or not."""
    tokenizer = thinker()
    assert problem_of(tokenizer, output, special_tokens) is None
    assert Renderer(tokenizer, special_tokens).answer(output) == render_answer(tokenizer, output) == output + END
    assert trained_on(tokenizer, output, special_tokens) == ["<think>", "</think>", END]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("start", PAIRS)
def test_tags_of_several_makers(start, special):
    tokenizer, end = thinker(start=start, special=special), PAIRS[start]
    assert find_tags(tokenizer) == {start: end} and {start, end} <= set(ControlTokens(tokenizer).tokens)
    assert problem_of(tokenizer, f"{start}x{end}104") is None
    assert trained_on(tokenizer, f"{start}x{end}104") == [start, end, END]
    assert problem_of(tokenizer, f"x{end}104") is not None


@pytest.mark.parametrize("special_tokens", ["error", "escape"])
@pytest.mark.parametrize(
    "output",
    ["<think>\nx\n</think>\n\n104", "x\n</think>\n\n104", "<think>x\n</think>\n\n104", "\n<think>x\n</think>\n\n104"],
)
def test_a_thought_that_the_prompt_opens(output, special_tokens):
    """Its tag is taken once, and what closes it is the model's token."""
    tokenizer = thinker(OPENS)
    assert problem_of(tokenizer, output, special_tokens) is None
    assert Renderer(tokenizer, special_tokens).answer(output) == "x\n</think>\n\n104" + END
    assert trained_on(tokenizer, output, special_tokens) == ["</think>", END]


UNPAIRED = [
    ("x\n</think>\n\n104", "'</think>' closes a thought that nothing opens; write the tag that opens it"),
    ("<think>\nx", "nothing closes the thought that '<think>' opens; write '</think>' behind it"),
    ("Well. <think>x</think>104", "'<think>' stands behind 'Well.'; write the thought first"),
    ("\ufeff<think>x</think>104", r"'<think>' stands behind '\ufeff'; write the thought first"),
    ("The tag <think> opens it", "'<think>' stands behind 'The tag'; write"),
    ("</think>x<think>104", "'</think>' closes a thought that nothing opens"),
    ("<think><think>x</think>104", "'<think>' stands there besides the tags of its thought; write one"),
    ("<think>x</think>104</think>", "'</think>' stands there besides the tags of its thought; write one"),
    ("<think>x</think>y<think>z</think>104", "'<think>' stands there besides the tags of its thought; write one"),
    ("<think>x</think>\n", "nothing stands behind '</think>'; write the answer there"),
    ("<think>x</think>\u200b", "nothing stands behind '</think>'; write the answer there"),
]


@pytest.mark.parametrize(("output", "reason"), UNPAIRED)
def test_thoughts_that_no_model_writes(output, reason):
    """They are refused, or plain text as a whole where control tokens are."""
    problem = problem_of(thinker(), output)
    assert problem.startswith(f"thought: in `output` {reason}") and "\n" not in problem
    assert problem_of(thinker(), output, "escape") is None
    assert trained_on(thinker(), output, "escape") == [END]


@pytest.mark.parametrize("special_tokens", ["error", "escape"])
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "104",
            "nothing closes the thought that the chat template opens with '<think>'; write '</think>'",
        ),
        ("<thinking>x</thinking>104", "nothing closes the thought that the chat template opens"),
        ("Well. <think>x</think>104", "'<think>' stands there besides the tags of its thought"),
        ("<think><think>x</think>104", "'<think>' stands there besides"),
        ("x</think>y</think>104", "'</think>' stands there besides"),
        ("<think>x</think> ", "nothing stands behind '</think>'"),
    ],
)
@pytest.mark.parametrize("start", ["<think>", None])
def test_answers_that_do_not_go_on_with_what_the_prompt_opens(output, reason, special_tokens, start):
    """Also where the tags are no tokens of the model."""
    problem = problem_of(thinker(OPENS, start), output, special_tokens)
    assert problem.startswith(f"thought: in `output` {reason}")
    assert ("`chat_template_path`" in problem) is ("opens with" in reason or "template opens" in reason)


def test_a_prompt_with_an_empty_thought_takes_no_other():
    tokenizer = thinker(EMPTY)
    assert problem_of(tokenizer, "104") is None
    for output in ("<think>x</think>104", "x</think>104"):
        problem = problem_of(tokenizer, output)
        assert "stands behind the empty thought that the chat template writes; take it out, or give a" in problem
    assert Opening(tokenizer).writable == set()


def test_tags_are_text_for_a_tokenizer_without_them():
    for output in [*WRITTEN, *(output for output, _ in UNPAIRED)]:
        assert problem_of(thinker(start=None), output) is None
        assert trained_on(thinker(start=None), output) == [END]
    for output in ("<thinking>x</thinking>104", "<THINK>x</THINK>104"):  # nor has this one these
        assert problem_of(thinker(), output) is None and trained_on(thinker(), output) == [END]


@pytest.mark.parametrize("token", ["<tool_call>", END, "<|endoftext|>"])
@pytest.mark.parametrize("output", ["<think>a {} b</think>104", "<think>a</think>104 {}"])
def test_other_control_tokens_beside_a_thought(output, token):
    output = output.format(token)
    problem = problem_of(thinker(), output)
    assert problem == f"special token in text: `output` contains '{token}', which has a meaning to the model"
    assert problem_of(thinker(), output, "escape") is None
    assert trained_on(thinker(), output, "escape") == ["<think>", "</think>", END]


def test_a_tag_that_has_no_other_is_a_control_token():
    tokenizer = build("qwen base")
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    assert find_tags(tokenizer) == {}
    assert problem_of(tokenizer, "<think>x</think>104").startswith(
        "special token in text: `output` contains '<think>'"
    )


def test_tags_before_the_answer():
    history = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": WRITTEN[0]}]
    problem = problem_of(thinker(), "104", history=history)
    assert problem.startswith("thought: `history[1]` contains '<think>'; take out thoughts of turns before")
    for change in (
        {"instruction": "Write <think> first."},
        {"history": [{"role": "system", "content": "a </think>"}]},
    ):
        assert problem_of(thinker(), WRITTEN[0], **change).startswith("special token in text: ")
        assert problem_of(thinker(), WRITTEN[0], "escape", **change) is None


def test_a_row_whose_prompt_is_opened_otherwise():
    """Where the template opens a thought in some conversations alone, such as those with a system prompt."""
    tokenizer = thinker("assistant\n{% if messages[0].role == 'system' %}<think>\n{% endif %}{% endif")
    history = [{"role": "system", "content": "Think."}]
    assert problem_of(tokenizer, "104") is None
    problem = problem_of(tokenizer, "x</think>104", history=history)
    assert problem.startswith("conversation: the chat template opens this answer otherwise than others: ")


def test_an_answer_that_the_model_will_write_has_no_thought_yet():
    assert problem_of(thinker(OPENS), "") is None


@pytest.mark.parametrize(
    ("tokenizer", "tags"),
    [
        (thinker(), {"<think>", "</think>"}),
        (thinker(OPENS), {"</think>"}),
        (thinker(EMPTY), set()),
        (thinker(OPENS, None), set()),
        (build("qwen base"), set()),
    ],
)
def test_which_tags_a_model_may_write(tokenizer, tags):
    assert Opening(tokenizer).writable == tags


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("Q\n<think>\n", "<think>"),
        ("Q <think></think>\n\n", "</think>"),
        ("Q <think> A", None),
        ("Q [/THINK]", "[/THINK]"),
    ],
)
def test_what_a_prompt_ends_with(prompt, tag):
    found = find_end(prompt)
    assert (found and found[0]) == tag and (found is None or bool(found["begins"]) is ("/" not in tag))


# What the templates of known models open: a thought, an empty one, or none
KNOWN = {
    "qwen3": None,
    "qwen3_5_think": "<think>",
    "qwen3_6": "<think>",
    "qwen3_8": "<think>",
    "qwen3_vl": None,
    "deepseek_r1_distill": "<think>",
    "glm4moe": None,
    "nemotron_3_nano": "<think>",
    "lfm2_2_5_vl": None,
}


@pytest.mark.parametrize("name", KNOWN)
def test_templates_of_models_that_think(name):
    """An answer goes on with what they open, whatever they make of answers of turns before."""
    tokenizer = thinker()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    renderer = Renderer(tokenizer)
    renderer.check_template()
    row = ROW | {"output": WRITTEN[0]}
    assert renderer.opening.thought == KNOWN[name] and renderer.find_problem(row, "") is None
    (prompt,), answer = renderer.prompts([("Q", 0)]), renderer.answer(WRITTEN[0])
    batch = TextCollator(tokenizer)([{"prompt": prompt, "completion": answer}])
    written = tokenizer.decode(batch["input_ids"][0])
    assert written.count("<think>") == written.count("</think>") == 1
    assert written.endswith("<think>\n180 - 28 - 48\n</think>\n\nThe angle is 104" + renderer.end)
