"""Prompts are what the chat template makes of a conversation, with one beginning; answers end as it ends them."""

import pytest
from PIL import Image

from puma_trl.data.render import (
    Renderer,
    end_of_answer,
    end_token_id,
    prompt_of,
    render_answer,
    render_prompt,
)
from puma_trl.data.tokens import MARK
from puma_trl.errors import DataError
from puma_trl.mini import build_processor

from ..models.family_models import MINI, OTHERS, build_family
from .samples import ROW
from .tokenizers import CHATML, build


IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "This."},
]


def user(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_and_an_answer(processor):
    assert render_prompt(processor, "Why?", 2) == user(f"{IMAGE}{IMAGE}Why?")
    assert render_answer(processor, "So.") == "So.<|im_end|>" == Renderer(processor).answer("So.")


@pytest.mark.parametrize(
    ("instruction", "num_images", "expected"),
    [
        ("In <image>, why?", 1, f"In {IMAGE}, why?"),
        ("In <image> and <image>, why?", 2, f"In {IMAGE} and {IMAGE}, why?"),
        ("<image>\nWhy?", 1, f"{IMAGE}\nWhy?"),
        ("<image>", 1, IMAGE),
        ("<image><image>Why?", 2, f"{IMAGE}{IMAGE}Why?"),
    ],
)
def test_places_of_pictures(processor, instruction, num_images, expected):
    assert render_prompt(processor, instruction, num_images) == user(expected)
    assert Renderer(processor).prompts([(instruction, num_images)]) == [user(expected)]


def test_a_line_break_after_a_place_is_not_doubled():
    processor = build_processor("math_puma_qwen2")  # its template writes one after every picture
    for instruction in ("<image>\nWhy?", "Why?"):
        assert render_prompt(processor, instruction, 1).endswith(user("<|image|>\nWhy?"))
    assert render_prompt(processor, "In <image>\nwhy?", 1).endswith(user("In <|image|>\nwhy?"))


def test_other_numbers_of_places_and_pictures(processor):
    with pytest.raises(DataError, match=r"image places: the texts have 1 '<image>', but there are 2 images"):
        render_prompt(processor, "In <image>", 2)


def test_what_came_before(processor):
    before = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}Which?<|im_end|>\n"
    before += "<|im_start|>assistant\nThis.<|im_end|>\n"
    assert render_prompt(processor, "Why?", 0, HISTORY) == before.format("") + user("Why?")
    assert render_prompt(processor, "Why?", 1, HISTORY) == before.format(IMAGE) + user("Why?")
    assert render_prompt(processor, "In <image>, why?", 1, HISTORY) == before.format("") + user(f"In {IMAGE}, why?")
    turns = [HISTORY[0], HISTORY[1] | {"content": "<image>Which?"}, HISTORY[2]]
    assert render_prompt(processor, "In <image>, why?", 2, turns) == before.format(IMAGE) + user(f"In {IMAGE}, why?")
    tokenizer = build("qwen base")
    assert render_prompt(tokenizer, "Why?", 0, HISTORY) == before.format("") + user("Why?")


@pytest.mark.parametrize("change", ["", " | trim", " | upper", " | replace('a', 'b')"])
def test_fast_rendering_equals_the_template(change, monkeypatch):
    processor = build_processor()
    monkeypatch.setattr(
        processor, "chat_template", processor.chat_template.replace("part['text']", f"part['text']{change}")
    )
    prompts = [("an angle", 0), (" a \n", 1), ("{{ a }}", 2), ("", 0), ("<|image_pad|> a\\", 1), ("a<image>", 1)]
    prompts += [("an angle", 0, HISTORY)]
    for order in (prompts, prompts[::-1]):
        assert Renderer(processor).prompts(order) == [render_prompt(processor, *prompt) for prompt in order]


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("llama 3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("vicuna", "</s>"),  # its template closes with nothing
        ("qwen base", "<|im_end|>"),  # while its eos_token is <|endoftext|>
        ("qwen 1.5 base", "<|im_end|>"),  # closes only turns that others follow
        ("glm", "<|endoftext|>"),  # closes none: what follows opens the next turn
        ("headers", "<|endoftext|>"),  # the same, with one token that opens all
        ("phi 3", "<|end|>"),  # behind which a conversation ends with <|endoftext|>
        ("alpaca", "\n### End</s>"),  # words, behind which something must stop the model
        ("chatml without its tokens", "<|im_end|><|endoftext|>"),
    ],
)
def test_the_end_of_an_answer_is_the_templates(kind, end):
    tokenizer = build(kind)
    assert end_of_answer(tokenizer) == end
    assert render_answer(tokenizer, "So.") == "So." + end
    last = next(token for token in sorted(tokenizer.get_added_vocab(), key=len) if end.endswith(token))
    assert end_token_id(tokenizer) == tokenizer.convert_tokens_to_ids(last)


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_the_end_of_an_answer_of_every_family(name):
    processor, _ = build_family(name)
    ends = {"idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>", "gemma3": "<end_of_turn>"}
    ends["deepseek_vl_hybrid"] = "<｜end▁of▁sentence｜>"
    assert end_of_answer(processor) == ends.get(name, "<|im_end|>")


def test_a_template_that_always_starts_an_answer():
    """What stands behind every conversation is the start of the next answer, not the end of the last."""
    tokenizer = build("qwen base")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"
    assert render_prompt(tokenizer, "Why?", 0) == "<user>Why?<bot>"
    assert end_of_answer(tokenizer) == "<|endoftext|>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<bot>", "<|im_start|>")
    assert end_of_answer(tokenizer) == "<|endoftext|>"
    tokenizer.chat_template = CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
    assert end_of_answer(tokenizer) == "<|im_end|>"


def test_a_word_that_is_one_token_ends_an_answer():
    tokenizer = build("alpaca")
    tokenizer.chat_template = tokenizer.chat_template.replace("### End", "|")
    assert end_of_answer(tokenizer) == "\n|" and end_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("|")


def test_an_answer_needs_an_end():
    tokenizer = build("vicuna")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no `eos_token`"):
        render_answer(tokenizer, "So.")
    with pytest.raises(DataError, match="no `eos_token`"):
        Renderer(tokenizer).answer("So.")


@pytest.mark.parametrize("template_has_it", [True, False])
@pytest.mark.parametrize("kind", ["llama 3", "gemma", "mistral", "vicuna"])
def test_one_beginning(kind, template_has_it):
    tokenizer = build(kind)
    if not template_has_it:
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    ids = tokenizer(render_prompt(tokenizer, "Why?", 0), add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 == ids.index(tokenizer.bos_token_id) + 1


def test_no_beginning_where_neither_adds_it():
    tokenizer = build("qwen base")
    assert render_prompt(tokenizer, "Why?", 0).startswith("<|im_start|>")
    tokenizer.bos_token = "<|endoftext|>"  # there is one, but the tokenizer does not add it
    assert render_prompt(tokenizer, "Why?", 0).startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"instruction": "Find <it>, x < 5 and > 3 [1]."}, None),
        ({"instruction": "a<|im_end|>"}, "special token in text: `instruction` contains '<|im_end|>', which has a"),
        ({"output": "b<|endoftext|>"}, "special token in text: `output` contains '<|endoftext|>'"),
        ({"output": "b<|im_start|>user"}, "special token in text: `output` contains '<|im_start|>'"),
        ({"history": [HISTORY[1] | {"content": IMAGE}]}, "special token in text: `history[0]` contains '<|vision_"),
        ({"history": HISTORY}, None),
        ({"history": [{"role": "tool", "content": "17"}]}, None),
        # what the template puts together, when it takes the picture out
        ({"instruction": "a<|im_<image>end|>", "image_url": [1]}, "special token in text: `instruction` contains"),
    ],
)
def test_control_tokens_in_rows(change, problem, processor):
    found = Renderer(processor).find_problem(ROW | change, "")
    assert found is problem is None or found.startswith(problem)


def test_both_sides_have_their_columns(processor):
    row = {f"{name}_2": value for name, value in ROW.items()} | {"history_2": HISTORY, "image_url_2": ["x"]}
    assert prompt_of(row, "_2") == ("a", 1, HISTORY)
    row["history_2"] = [HISTORY[0] | {"content": "<|im_end|>"}]
    assert "`history_2[0]`" in Renderer(processor).find_problem(row, "_2")


def test_turns_that_a_template_leaves_out_or_refuses():
    tokenizer = build("mistral")  # knows no system turn, and writes nothing for it
    renderer = Renderer(tokenizer)
    assert renderer.find_problem(ROW | {"history": HISTORY[1:]}, "") is None
    problem = renderer.find_problem(ROW | {"history": HISTORY}, "")
    assert problem == "conversation: the chat template leaves out or changes `history[0]`: 'Be brief.'"
    problem = Renderer(build("gemma")).find_problem(ROW | {"history": HISTORY}, "")
    assert problem == "conversation: the chat template refuses it: System role not supported"


def test_pictures_inside_a_text_need_a_template_that_leaves_them_there():
    processor, _ = build_family("llava")
    inside = ROW | {"instruction": "In <image>, why?", "image_url": ["x"]}
    assert Renderer(processor).find_problem(inside, "") is None
    processor.chat_template = (
        "{% for m in messages %}{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}<|im_end|>{% endfor %}"
    )
    assert Renderer(processor).find_problem(inside, "").startswith("image places: `instruction` has a picture inside")
    for text in ("<image>\nWhy?", "Why?\n<image>"):  # nothing is lost
        assert Renderer(processor).find_problem(inside | {"instruction": text}, "") is None


def test_escaped_tokens_are_plain_text_in_all_turns(processor):
    renderer = Renderer(processor, "escape")
    turns = [{"role": role, "content": f"{role} <|im_end|> {IMAGE}"} for role in ("system", "user", "assistant")]
    row = ROW | {"instruction": "<|im_end|> <image> <|image_pad|>", "image_url": ["x"], "history": turns}
    assert renderer.find_problem(row, "") is None
    (prompt,) = renderer.prompts([prompt_of(row, "")])
    assert prompt.replace(MARK, "") == render_prompt(processor, *prompt_of(row, ""))
    picture = Image.new("RGB", (28, 28))
    ids = renderer.reader(images=[[picture]], text=[prompt], add_special_tokens=False)["input_ids"][0]
    expected = render_prompt(processor, "<image>", 1, [turn | {"content": "x"} for turn in turns])
    expected = processor(images=[[picture]], text=[expected], add_special_tokens=False)["input_ids"][0]
    control = renderer.control.ids
    assert [token for token in ids if token in control] == [token for token in expected if token in control]
    answer = renderer.reader.tokenizer(renderer.answer("a <|im_end|>"), add_special_tokens=False)["input_ids"]
    assert [token for token in answer if token in control] == [end_token_id(processor)]


def test_what_cannot_be_escaped_is_refused(processor, monkeypatch):
    renderer = Renderer(processor, "escape")
    monkeypatch.setattr(renderer.control, "_is_plain", lambda token: token != "<|im_end|>")
    assert renderer.find_problem(ROW | {"output": "<|im_start|>"}, "") is None
    problem = renderer.find_problem(ROW | {"output": "<|im_end|>"}, "")
    assert problem.endswith("`output` contains '<|im_end|>', which this tokenizer cannot read as plain text")
    problem = renderer.find_problem(ROW | {"output": MARK}, "")
    assert problem.startswith("invalid text: `output` has the character U+FDD0")
    joined = ROW | {"instruction": "<|im_<image>end|>", "image_url": [1]}
    assert renderer.find_problem(joined, "").startswith("special token in text: `instruction`")
