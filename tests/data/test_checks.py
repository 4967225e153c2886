"""Token counts agree with what processors do; every kind of unusable row is found, with its reason."""

import json
import re

import pytest
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    SiglipImageProcessor,
)

from puma_trl.data.checks import RowChecker, TokenCounter
from puma_trl.data.files import find_chunks, find_sources
from puma_trl.data.rows import read_row
from puma_trl.errors import DataError
from puma_trl.mini import build_processor, build_tokenizer
from puma_trl.models.families.family import Family
from puma_trl.models.families.qwen import QWEN_VL


PLAIN = Family(model_types=(), parts={})


def tokenizer_with(*tokens, **named):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([*tokens, *named.values()], special_tokens=True)
    for name, token in named.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def build(name):
    llava = {"patch_size": 14, "vision_feature_select_strategy": "default", "image_token": "<image>"}
    crop = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    if name == "qwen2_vl":
        return build_processor(name), QWEN_VL
    if name == "llava":
        images = CLIPImageProcessor(**crop)
        return LlavaProcessor(images, tokenizer_with("<image>"), num_additional_image_tokens=1, **llava), PLAIN
    if name == "llava with SigLIP":
        images = SiglipImageProcessor(size={"height": 56, "width": 56})
        return LlavaProcessor(images, tokenizer_with("<image>"), **llava), PLAIN
    if name == "llava_next":
        images = LlavaNextImageProcessor(image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]], **crop)
        return LlavaNextProcessor(images, tokenizer_with("<image>"), num_additional_image_tokens=1, **llava), PLAIN
    if name == "idefics3":
        images = Idefics3ImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 32})
        cells = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
        special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *cells]
        return Idefics3Processor(images, tokenizer_with(*special), image_seq_len=4), PLAIN
    if name == "gemma3":
        tokenizer = tokenizer_with(
            boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
        )
        images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
        return Gemma3Processor(images, tokenizer, image_seq_length=5), PLAIN
    tokenizer = tokenizer_with(image_token="<image_placeholder>")
    return DeepseekVLHybridProcessor(DeepseekVLHybridImageProcessor(), tokenizer, num_image_tokens=20), PLAIN


@pytest.mark.parametrize(
    "name", ["qwen2_vl", "llava", "llava with SigLIP", "llava_next", "idefics3", "gemma3", "deepseek_vl_hybrid"]
)
def test_image_tokens_are_those_that_the_processor_makes(name):
    processor, family = build(name)
    counter = TokenCounter(processor, family)
    text = f"Look: {family.image_text or processor.image_token}?"
    (plain,) = counter.count_texts([text])
    for height, width in ((30, 40), (100, 300), (333, 77), (57, 200), (128, 128)):
        image = Image.new("RGB", (width, height))
        expanded = processor(images=[[image]], text=[text], add_special_tokens=False)["input_ids"][0]
        assert plain + counter.count_image((height, width)) == len(expanded)


def test_texts_are_counted_without_added_tokens_or_padding(processor):
    tokenizer = processor.tokenizer
    texts = ["", "a", "Größe <|im_end|> 123", "x" * 500]
    expected = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    tokenizer(["a", "a b"], padding="max_length", max_length=50, truncation=True)
    assert TokenCounter(processor, QWEN_VL).count_texts(texts) == expected
    assert TokenCounter(tokenizer, QWEN_VL).count_texts([]) == []


GOOD = {"image_url": None, "instruction": "a", "output": "b", "image_url_2": [], "instruction_2": "c", "output_2": "b"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (None, "wrong type: the row is NoneType None, not an object"),
        ([1], "wrong type: the row is list"),
        ({"output": None}, "no answer: `output` is missing or null; the row has: image_url, instruction"),
        ({"instruction_2": None}, "missing value: `instruction_2`"),
        ({"output_2": None}, "no answer: `output_2`"),
        ({"output": [5]}, "wrong type: `output` is list [5], not text"),
        ({"instruction": ["a"]}, "wrong type: `instruction` is list"),
        ({"output_2": {"a": 1}}, "wrong type: `output_2` is dict"),
        ({"instruction": "a\0b"}, "invalid text: `instruction` has a NUL byte at position 1"),
        ({"instruction": "\ud800"}, "invalid text: `instruction` is not valid Unicode: surrogates not allowed"),
        ({"image_url": 5}, "wrong type: `image_url` holds int"),
        ({"image_url_2": ["a.png", None]}, "wrong type: `image_url_2` holds NoneType"),
        ({"image_url_2": [""]}, "wrong type: `image_url_2` holds str"),
        ({"image_url_2": {"path": None}}, "wrong type: `image_url_2` holds dict"),
        ({"image_url_2": {"bytes": "abc"}}, "wrong type: the bytes of `image_url_2` are str"),
        ({"image_url_2": "a\0.png"}, "invalid text: `image_url_2` has a NUL byte"),
    ],
)
def test_wrong_types_and_missing_values(change, problem):
    row = GOOD | change if isinstance(change, dict) else change
    with pytest.raises(DataError) as error:
        read_row(row, "/data")
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize(
    ("value", "images"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("a.png", [(None, "/data/a.png")]),
        ("/else/a.png", [(None, "/else/a.png")]),
        (["a.png", "b/c.png"], [(None, "/data/a.png"), (None, "/data/b/c.png")]),
        (b"png", [(b"png", None)]),
        ([{"bytes": None, "path": "a.png"}], [(None, "/data/a.png")]),
        ({"bytes": b"png", "path": "a.png"}, [(b"png", "a.png")]),
    ],
)
def test_forms_of_images(value, images):
    row = read_row({"image_url": value, "instruction": "a", "output": "b"}, "/data")
    assert row["image_url"] == [{"bytes": content, "path": path} for content, path in images]
    assert (row["image_url_2"], row["instruction_2"], row["output_2"]) == (None, None, None)


def test_relative_paths_need_a_root():
    with pytest.raises(DataError, match="relative to no folder; set `image_root`"):
        read_row({"image_url": "a.png", "instruction": "a", "output": "b"}, None)


@pytest.fixture
def check(tmp_path, processor):
    """Returns a function that checks rows: `(problems, lengths, answer tokens)`."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("text")

    def check(rows, processor=processor, use_kl=True, max_length=None, student_answers=False, special_tokens="error"):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = find_sources([str(tmp_path / "pairs.jsonl")], None, None, "train")
        counter = TokenCounter(processor, QWEN_VL, special_tokens)
        checker = RowChecker(sources, counter, use_kl, max_length, student_answers)
        (chunk,) = find_chunks(sources)
        checked = checker({name: [value] for name, value in chunk._asdict().items()})
        return checked["problem"], checked["length"], checked["num_answer_tokens"]

    return check


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"instruction": " \n"}, "empty text: `instruction` is empty"),
        ({"output": "", "output_2": ""}, "no answer: `output` is empty"),
        ({"output": "\u200b\u3164\u2800", "output_2": "\u200b\u3164\u2800"}, "no answer: `output` is empty"),
        ({"output_2": "b "}, "answers differ: `output` is 'b', `output_2` is 'b '"),
        ({"image_url_2": "none.png"}, "missing image: "),
        ({"image_url": ["a.png", "text.png"]}, "unreadable image: "),
        ({"instruction_2": "see <|im_start|>"}, "special token in text: `instruction_2` contains '<|im_start|>'"),
        ({"instruction": "see <|video_pad|>"}, "image places: `instruction` has '<|video_pad|>' in its text"),
        (
            {"output": "b<|im_end|>", "output_2": "b<|im_end|>"},
            "special token in text: `output` contains '<|im_end|>'",
        ),
    ],
)
def test_contents_that_cannot_be_trained_on(change, problem, check):
    ((found,), *_) = check([GOOD | change])
    assert found is problem is None or found.startswith(problem)


def test_without_kl_only_the_student_side_is_checked(check):
    bad_teacher = {"instruction": "", "output": "other", "image_url": "none.png"}
    problems, lengths, answers = check([GOOD | bad_teacher, GOOD | {"image_url_2": "none.png"}], use_kl=False)
    assert problems[0] is None and problems[1].startswith("missing image")
    single = check([{"instruction": "c", "output": "b"}])
    assert lengths[0] == single[1][0] and answers[0] == single[2][0] == 2


def test_student_answers_replace_the_text_rich_ones(check):
    problems, lengths, _ = check([GOOD | {"output": "a long other answer"}, GOOD], student_answers=True)
    assert problems == [None, None] and lengths[0] == lengths[1]


@pytest.mark.parametrize(("change", "side"), [("instruction", "text-rich"), ("instruction_2", "vision-rich")])
def test_a_row_may_be_too_long_on_one_side_only(change, side, check):
    _, (length,), _ = check([GOOD])
    at_limit = length // 2 + 10  # both sides of GOOD are equally long; a letter is a token, and so is a digit
    rows = [GOOD | {change: "7" * 11}, GOOD | {change: "7" * 12}]
    problems, *_ = check(rows, max_length=at_limit)
    assert problems[0] is None
    assert problems[1] == (f"too long: the {side} side has {at_limit + 1} tokens, more than `max_length: {at_limit}`")


def test_image_tokens_count_towards_the_limit(check):
    row = GOOD | {"image_url_2": "a.png"}
    _, (with_image, without), _ = check([row, GOOD])
    assert with_image == without + 4 + 2  # 2 x 2 patches after merging, and the tokens around them
    ((problem,), *_) = check([row], max_length=without // 2 + 5)
    assert problem == (
        f"too long: the vision-rich side has {without // 2 + 6} tokens (6 of pictures), more than `max_length: "
        f"{without // 2 + 5}`"
    )
    assert check([row], max_length=without // 2 + 6)[0] == [None]


def test_a_picture_has_the_tokens_of_who_reads_it(tmp_path, processor):
    """The same file on both sides, which another model's processor makes larger."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(GOOD | {"image_url": "a.png", "image_url_2": "a.png"}) + "\n")
    sources = find_sources([str(tmp_path / "pairs.jsonl")], None, None, "train")
    other = build_processor("qwen2_vl")
    other.image_processor.size["shortest_edge"] = 112 * 112
    mine, teachers = (TokenCounter(each, QWEN_VL) for each in (processor, other))
    (chunk,) = find_chunks(sources)
    alone, taught = (
        RowChecker(sources, mine, True, None, False, teacher_counter=teacher).check(chunk)[0]["length"]
        for teacher in (None, teachers)
    )
    assert taught - alone == teachers.count_image((56, 56)) - mine.count_image((56, 56)) > 0


def test_sizes_that_the_processor_refuses_are_found(check, tmp_path):
    Image.new("RGB", (6000, 2)).save(tmp_path / "thin.png")
    ((problem,), *_) = check([GOOD | {"image_url_2": "thin.png"}])
    assert problem.startswith("unreadable image: ") and "aspect ratio" in problem


def test_a_text_model_reads_the_text_rich_side_of_pairs(check):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}:{% endif %}{% endfor %}"
    rows = [GOOD, GOOD | {"image_url_2": "a.png", "output_2": "other"}, GOOD | {"image_url": "a.png"}]
    problems, lengths, answers = check(rows, processor=tokenizer, use_kl=False)
    assert problems == [None, None, "image for a text model: `image_url` has 1"]
    assert lengths[:2] == [1 + 1 + 2] * 2 and answers[:2] == [2, 2]
    ((problem,), *_) = check([GOOD | {"image_url_2": "a.png"}], processor=tokenizer)  # asks for both sides
    assert problem == "image for a text model: `image_url_2` has 1"
    ((problem,), *_) = check([GOOD | {"instruction": "<|im_end|>"}], processor=tokenizer, use_kl=False)
    assert problem == "special token in text: `instruction` contains '<|im_end|>', which has a meaning to the model"


def test_escaped_tokens_count_as_text(check):
    row = GOOD | {"output": "b<|im_end|>", "output_2": "b<|im_end|>", "instruction": "<|vision_start|>"}
    problems, (length,), (answer,) = check([row], special_tokens="escape")
    (_, (plain,), _) = check([GOOD])
    pieces = [len(build_tokenizer()(text)["input_ids"]) for text in ("b< |im_end|>", "< |vision_start|>")]
    assert problems == [None]
    assert abs(answer - (pieces[0] + 1)) <= 2  # without the space
    assert length > plain + 2 * (answer - 2)


def test_rows_with_one_side_have_no_name_for_it(check):
    ((problem,), *_) = check([{"instruction": "7" * 50, "output": "b"}], use_kl=False, max_length=20)
    assert re.fullmatch(r"too long: the row has \d+ tokens, more than `max_length: 20`", problem)


def test_an_image_file_is_looked_at_once(check, monkeypatch):
    from puma_trl.data import checks as data_checks

    looked = []
    monkeypatch.setattr(data_checks, "image_size", lambda image, decode: looked.append(image["path"]) or (56, 56))
    check([GOOD | {"image_url_2": "a.png"}] * 5)
    assert len(looked) == 1
