"""Templates that change what they are given, and how they open answers."""

import pytest

from puma_trl.data.render import (
    Renderer,
    render_answer,
    render_prompt,
)
from puma_trl.errors import DataError
from puma_trl.mini import build_processor

from ..models.family_models import MINI, OTHERS, build_family
from .samples import ROW
from .tokenizers import CHATML, KINDS, build


def template(content):
    """A template in which a turn's content is written as an expression says."""
    turn = "<|im_start|>{{ m.role }}\n{{ " + content + " }}<|im_end|>\n"
    start = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    return "{% for m in messages %}" + turn + "{% endfor %}" + start


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "There is no chat template"),
        ("m.content | e", "changes a question such as '1 < 2 .* or leaves it out"),
        ("m.content | tojson", "changes a question"),
        ("m.content.replace('\n', ' ')", "changes a question"),
        ("m.content ~ m.content", "writes a question 2 times"),
        ("m.content ~ (m.content if m.role == 'assistant' else '')", "writes an answer 2 times"),
        ("m.content if m.role == 'user' else m.content | upper", "changes an answer"),
    ],
)
def test_templates_that_change_what_they_are_given(content, reason):
    tokenizer = build_processor("qwen2_vl").tokenizer
    tokenizer.chat_template = content and template(content)
    with pytest.raises(DataError, match=reason):
        Renderer(tokenizer).check_template()


LONG = "Find the third angle. # It is <b>not</b> 48. " * 4
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "This."},
]


@pytest.mark.parametrize(
    ("content", "instruction"),
    [
        ("m.content[:100]", LONG),
        ("m.content.split('.')[0]", LONG),
        ("m.content | replace('#', '')", LONG),
        ("m.content.split('</think>')[-1]", "What does </think> mean?"),
        ("m.content | truncate", LONG * 3),
        ("m.content if m.content | length < 90 else 'Long.'", LONG),
        ("m.content ~ (m.content if 'third' in m.content else '')", LONG),
        ("'Four.' if m.content == 'Seven.' else m.content", "Seven."),
        ("m.content if not m.content.isdigit() else m.content | int + 1", "17"),
    ],
)
def test_rows_that_a_template_cuts_or_rewrites(content, instruction):
    """Every row is compared with its own texts; what the template leaves alone can be used."""
    tokenizer = build("qwen base")
    tokenizer.chat_template = template(content)
    renderer = Renderer(tokenizer)
    problem = renderer.find_problem(ROW | {"instruction": instruction}, "")
    assert problem.startswith("conversation: the chat template leaves out or changes `instruction`: ")
    assert renderer.find_problem(ROW | {"instruction": "Which one?"}, "") is None
    for text in (instruction, "Which one?"):
        assert renderer.prompts([(text, 0)]) == [render_prompt(tokenizer, text, 0)]


def test_most_templates_are_rendered_once(processor, monkeypatch):
    """What proves that a template leaves texts alone is rendered once for conversations of a structure."""
    texts = [LONG, "1", " a <b>\n", "user", "</think>", "system\n"]
    expected = [render_prompt(processor, text, 1) for text in texts]
    renderer = Renderer(processor)
    renderer.prompts([("a", 1)])
    monkeypatch.setattr(processor, "apply_chat_template", None)
    assert renderer.prompts([(text, 1) for text in texts]) == expected


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (CHATML, None),
        (CHATML.replace("in messages", "in messages | reverse"), "writes at another place than the conversation"),
        (CHATML.replace("in messages", "in messages[-2:]"), "leaves out or changes `history[0]`: 'Be brief.'"),
        (
            CHATML.replace("<|im_start|>{{", "{{ messages[0].content }}<|im_start|>{{", 1),
            "writes 5 times `history[0]`",
        ),
        (
            CHATML.replace("m.content", "(m.content if m.role != 'system' else [{'text': m.content}])"),
            "leaves out or changes `history[0]`",
        ),
    ],
)
def test_templates_keep_conversations(source, problem):
    tokenizer = build("qwen base")
    tokenizer.chat_template = source
    found = Renderer(tokenizer).find_problem(ROW | {"history": TALK}, "")
    assert found is problem is None or found.startswith(f"conversation: the chat template {problem}")


def test_a_system_prompt_may_stand_before_the_last_question():
    tokenizer = build("mistral")  # as its later templates have it
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>{% elif m.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content }} [/INST]{% endif %}{% endfor %}"
    )
    assert Renderer(tokenizer).find_problem(ROW | {"history": TALK}, "") is None


def test_indentation_that_a_template_cuts():
    renderer = Renderer(build("llama 3"))  # its template trims
    for text in ("    x = 1\n    y = 2", "\n\tx = 1"):
        problem = renderer.find_problem(ROW | {"instruction": text}, "")
        assert problem.startswith("conversation: the chat template cuts the indentation of `instruction`: ")
        assert Renderer(build("qwen base")).find_problem(ROW | {"instruction": text}, "") is None
    for text in (" Which?\n", "Which?  \n", "x:\n    y = 2"):
        assert renderer.find_problem(ROW | {"instruction": text}, "") is None


@pytest.mark.parametrize(
    ("change", "opened"),
    [
        (("{% if add_generation_prompt %}", "{% if false %}"), r"'<\|im_end\|>.n' where one is to be generated"),
        (("<|im_start|>assistant\n{% endif", "<|im_start|>user\n{% endif"), "opens an answer with"),
        (("{{ m.role }}", "{{ m.role if loop.last or m.role == 'system' else 'user' }}"), "opens an answer with"),
        (("assistant\n{% endif", "assistant\nSure! {% endif"), "opens an answer with"),
    ],
)
def test_answers_are_opened_as_they_are_written(change, opened):
    tokenizer = build("qwen base")
    tokenizer.chat_template = CHATML.replace(*change)
    assert tokenizer.chat_template != CHATML
    with pytest.raises(DataError, match=opened):
        Renderer(tokenizer).check_template()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chatml without its tokens"])
def test_known_templates_open_answers_as_they_write_them(kind):
    Renderer(build(kind)).check_template()


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_the_templates_of_every_family_keep_what_they_are_given(name):
    renderer = Renderer(build_family(name)[0])
    renderer.check_template()
    row = ROW | {"history": TALK[1:], "image_url": ["x"]}
    assert renderer.find_problem(row, "") is None
    assert all(frame.is_opaque for frame in renderer.frames.frames.values())


@pytest.mark.parametrize(
    ("output", "trained"),
    [
        ("<think>\neasy\n</think>\n\n4", "easy\n</think>\n\n4<|im_end|>"),
        ("easy\n</think>\n\n4", "easy\n</think>\n\n4<|im_end|>"),
        ("4", None),
        ("<think>\neasy", None),
    ],
)
def test_a_thought_that_the_template_opens(output, trained):
    tokenizer = build("qwen base")
    tokenizer.chat_template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    renderer = Renderer(tokenizer)
    renderer.check_template()
    problem = renderer.find_problem(ROW | {"output": output}, "")
    if trained is None:
        assert problem.startswith(
            "thought: in `output` nothing closes the thought that the chat template opens with '<think>'"
        )
        assert "`chat_template_path`" in problem
    else:
        assert problem is None
        assert renderer.answer(output) == render_answer(tokenizer, output) == trained


def test_an_empty_thought_is_closed():
    tokenizer = build("qwen base")
    closed = "assistant\n<think>\n\n</think>\n\n{% endif"
    tokenizer.chat_template = CHATML.replace("assistant\n{% endif", closed)
    renderer = Renderer(tokenizer)
    renderer.check_template()
    assert renderer.find_problem(ROW, "") is None
    assert renderer.answer("4") == "4<|im_end|>"


def test_templates_that_write_what_they_are_given(processor):
    tokenizer = build_processor("qwen2_vl").tokenizer
    tokenizer.chat_template = template("m.content | trim")
    for each in (processor, tokenizer):
        Renderer(each).check_template()
