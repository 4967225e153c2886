"""`chat_template_path`: read from a file or a folder, tried, set before the data is read, and not once more by TRL."""

import json

import pytest
from transformers import AutoTokenizer
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.data.render import render_prompt
from puma_trl.errors import ModelError
from puma_trl.mini import CHAT_TEMPLATE
from puma_trl.models.load import load_processor

from ..checkpoints.test_assemble import TEXT_TEMPLATE, write_language_model


NEW = TEXT_TEMPLATE.replace("<|im_start|>assistant", "<|im_start|>teacher")
PICTURES = CHAT_TEMPLATE.replace("<|im_start|>assistant", "<|im_start|>teacher")


@pytest.fixture
def load(tmp_path, processor):
    """Returns a function that loads tokenizer or processor as the run script does, with its arguments."""
    text = write_language_model(tmp_path / "text")
    processor.save_pretrained(tmp_path / "vision")

    def load(path, kind="text"):
        args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True, chat_template_path=path and str(path))
        return load_processor(ModelConfig(str(tmp_path / kind)), args), args

    load.text, load.vision = text, tmp_path / "vision"
    return load


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


@pytest.mark.parametrize("kind", ["text", "vision"])
@pytest.mark.parametrize("form", ["jinja", "any name", "json", "folder", "tokenizer"])
def test_where_a_template_is_read_from(load, tmp_path, kind, form):
    template = NEW if kind == "text" else PICTURES
    place = tmp_path / "template"
    if form == "folder":
        write(place, "chat_template.jinja", template)
    elif form == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(load.text)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(place)
    elif form == "json":
        place = write(place, "chat_template.json", json.dumps({"chat_template": template}))
    else:
        place = write(place, "mine.jinja" if form == "jinja" else "prompt", template)
    piece, args = load(place, kind)
    assert render_prompt(piece, "Why?", 0).endswith("Why?<|im_end|>\n<|im_start|>teacher\n")
    assert args.chat_template_path is None  # or TRL would apply it once more, and from a folder change the model
    # the processor's tokenizer has it too, and both are saved
    piece.save_pretrained(tmp_path / "saved")
    assert getattr(piece, "tokenizer", piece).chat_template == template
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jinja", None, "there is no regular file .*none.jinja. Name a file with a Jinja template, a folder"),
        ("a/b/c", None, "there is no regular file .*a/b/c"),
        ("folder", "", "there is no regular file .*folder/chat_template.jinja"),
        ("broken.jinja", "{% for m in messages %}", "cannot render a problem: TemplateSyntaxError"),
        (
            "picky.jinja",
            "{{ raise_exception('no users here') }}",
            "cannot render a problem: TemplateError: no users here",
        ),
        ("README.md", "# A model", "leaves out what the user writes"),
        ("config.json", "{}", "JSON file without a text `chat_template`"),
        ("torn.json", "{", "torn.json is not valid JSON"),
        ("model.bin", b"\xff\x00", "is not UTF-8 text"),
    ],
)
def test_what_is_no_template(load, tmp_path, name, content, message):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=message):
        load(tmp_path / name)


def test_a_folder_without_any_tokenizer_or_of_the_hub(load, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match="`chat_template_path: me/chat` is neither a template file nor a folder or model"
    ):
        load("me/chat")
    tokenizer = AutoTokenizer.from_pretrained(load.text)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="has a tokenizer, but no chat template"):
        load(tmp_path / "bare")


@pytest.mark.parametrize("template", [TEXT_TEMPLATE, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_the_template_of_a_text_model_for_pictures(load, tmp_path, template):
    path = write(tmp_path / "other", "text.jinja", template)
    with pytest.raises(ModelError, match="cannot render a problem: TypeError|does not write a picture's place"):
        load(path, "vision")
    # as that of the model itself, too
    write(load.vision, "chat_template.jinja", template)
    with pytest.raises(ModelError, match="cannot render a problem: TypeError|does not write a picture's place"):
        load(None, "vision")


def test_control_tokens_that_the_model_does_not_have(load, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(load.text)
    tokenizer.add_tokens(["<|user|>", "<|rare|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "sister")
    with pytest.raises(ModelError, match=r"writes <\|user\|>, which this model's tokenizer does not have"):
        load(tmp_path / "sister")


def test_the_remedy_of_a_tokenizer_without_a_template(load, tmp_path):
    (tmp_path / "text" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="The tokenizer of .*text` has no chat template.*`chat_template_path`"):
        load(None)
    piece, _ = load(write(tmp_path / "other", "text.jinja", NEW))
    assert render_prompt(piece, "Why?", 0).endswith("teacher\n")
