"""The quick start of the model card, as printed, in another folder: for every family, adapters and text models."""

import re

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.mini import build_processor
from puma_trl.models.adapters import build_peft_config
from puma_trl.models.families import get_family
from puma_trl.record.hub import write_card
from puma_trl.record.provenance import describe_run, describe_software
from puma_trl.train.trainer import PumaKLTrainer

from ..checkpoints.test_assemble import write_language_model
from ..models.family_models import MINI, OTHERS, build_family


@pytest.fixture
def write(tmp_path, monkeypatch):
    """
    Returns a function that saves a model, or adapters on it, and gives the card and its quick start.

    The tiny models answer with one token, which is no special one.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (56, 56), "white").save(elsewhere / "problem.png")

    def write(processor, model, adapters):
        tokenizer = getattr(processor, "tokenizer", processor)
        answer = tokenizer.convert_tokens_to_ids("7")
        with torch.no_grad():  # after any input
            model.get_output_embeddings().weight.zero_()
        model.generation_config.update(eos_token_id=answer, pad_token_id=tokenizer.pad_token_id, bad_words_ids=None)
        model.generation_config.suppress_tokens = [number for number in range(len(tokenizer)) if number != answer]
        args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True, use_kl=False)
        folder = tmp_path / "base"
        for piece in (processor, model):
            piece.save_pretrained(folder)
        if not adapters:
            write_card(folder, describe_run(args, model) | describe_software())
            return read(folder)
        model = type(model).from_pretrained(folder)
        family = get_family(model.config)
        peft_config = build_peft_config(model, ModelConfig(use_peft=True, lora_r=2), ["language_model"], family)
        facts = describe_run(args, model, peft_config) | describe_software()
        folder = tmp_path / "adapters"
        get_peft_model(model, peft_config).save_pretrained(folder)
        processor.save_pretrained(folder)
        write_card(folder, facts)
        return read(folder)

    def read(folder):
        monkeypatch.chdir(elsewhere)
        card = (folder / "README.md").read_text()
        return card, re.search(r"## Quick start\n\n```python\n(.*?)```", card, re.DOTALL)[1]

    return write


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_every_family(write, capsys, name, adapters):
    card, code = write(*build_family(name), adapters)
    needs_import = name == "math_puma_qwen2"
    assert code.startswith("import puma_trl") == needs_import == ("`puma_trl` must be installed" in card)
    assert ("These are adapters" in card) == adapters == ("It is a folder of the machine" in card)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out == "7\n"


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_text_models(write, tmp_path, capsys, adapters):
    text = write_language_model(tmp_path / "text")
    card, code = write(AutoTokenizer.from_pretrained(text), AutoModelForCausalLM.from_pretrained(text), adapters)
    assert "text-generation" in code and "image" not in code
    assert f"| Base model | `{'base' if adapters else 'text'}`, a local folder |" in card
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out == "7\n"


def test_before_a_push_the_model_is_where_it_was_written(tmp_path, tiny_model, pairs):
    """A name gives the title alone: nothing loads by it."""
    args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none")
    trainer = PumaKLTrainer(tiny_model(), args, train_dataset=pairs(2), processing_class=build_processor())
    trainer.create_model_card(model_name="A name")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# A name\n" in card and f'model="{tmp_path / "out"}"' in card
    trainer.hub_model_id = "me/model"
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# model\n" in card and 'model="me/model"' in card
