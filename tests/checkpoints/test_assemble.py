"""A text model and a vision tower become one model that stage 2 can train."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionModel,
)
from transformers.trainer_utils import align_special_tokens

from puma_trl.checkpoints.assemble import MODELS, assemble
from puma_trl.checkpoints.command import ALIGNERS, main
from puma_trl.config import PumaKLConfig
from puma_trl.data.render import end_of_answer, render_prompt
from puma_trl.errors import CheckpointError, ModelError, PumaError
from puma_trl.mini import build_tokenizer
from puma_trl.models.families import get_family
from puma_trl.models.families.math_puma_qwen2 import CHAT_TEMPLATE, MathPumaQwen2ForConditionalGeneration
from puma_trl.models.parts import set_trainable_parts
from puma_trl.models.pixels import cropped_share
from puma_trl.record.hub import write_card
from puma_trl.record.provenance import describe_run
from puma_trl.train.trainer import PumaKLTrainer


SIZES = {"intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TOWER = {"hidden_size": 32, "image_size": 28, "patch_size": 14, **SIZES}


TEXT_TEMPLATE = (  # as those of text models: the content of a turn is a string
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def write_language_model(folder, extra_rows=0, tie=False):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=64,
        num_key_value_heads=2,
        vocab_size=len(tokenizer) + extra_rows,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **SIZES,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_tower(folder, kind):
    torch.manual_seed(1)
    if kind == "clip":
        CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
        return str(folder)
    model = SiglipModel(SiglipConfig(text_config={"hidden_size": 32, "vocab_size": 50, **SIZES}, vision_config=TOWER))
    (model if kind == "siglip" else model.vision_model).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("aligner", "kind", "num_tokens"),
    [("gated_mlp", "siglip", 3), ("gated_mlp", "siglip tower", 3), ("mlp", "siglip", 4), ("mlp", "clip", 4)],
)
def test_what_is_kept_and_what_trains(tmp_path, pairs, aligner, kind, num_tokens):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", kind)
    assemble(text, tower, aligner, tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert isinstance(model, MathPumaQwen2ForConditionalGeneration) == (aligner == "gated_mlp")

    # the text model answers as before, and the tower is the one that was given
    original = AutoModelForCausalLM.from_pretrained(text)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[..., : original.vocab_size]
        assert_close(logits, original(input_ids=ids).logits, rtol=0, atol=1e-6)
    source = (CLIPVisionModel if kind == "clip" else SiglipVisionModel).from_pretrained(tower).state_dict()
    assert all(torch.equal(model.model.vision_tower.state_dict()[key], value) for key, value in source.items())
    picture = Image.new("RGB", (40, 30), "red")
    inputs = processor(images=[[picture]], text=["<|image|>"], return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"].shape == (1, num_tokens)

    family = get_family(model.config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    set_trainable_parts(model, ["aligner"], family)
    args = PumaKLConfig(
        str(tmp_path / "out"),
        bf16=False,
        gradient_checkpointing=False,
        max_steps=2,
        learning_rate=0.1,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    PumaKLTrainer(model=model, args=args, train_dataset=pairs(4), processing_class=processor).train()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("model.multi_modal_projector.")}


def test_base_models_are_recorded_and_reach_the_cards_of_later_stages(tmp_path):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    for folder, name, terms in ((text, "Qwen/Qwen2-7B", "license: apache-2.0\n"), (tower, "google/siglip", "")):
        (Path(folder) / "README.md").write_text(f"---\nbase_model: {name}\n{terms}---\n# A stage\n")
    model = assemble(text, tower, "mlp", tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True)
    for stage in ("stage2", "stage3"):  # each starts from the folder of the one before
        (tmp_path / stage).mkdir()
        write_card(tmp_path / stage, describe_run(args, model))
        card = ModelCard.load(tmp_path / stage / "README.md")
        assert card.data.base_model == ["Qwen/Qwen2-7B", "google/siglip"] and card.data.license == "apache-2.0"
        assert "[Qwen/Qwen2-7B](https://huggingface.co/Qwen/Qwen2-7B), [google/siglip](" in card.text
        assert str(tmp_path / stage) in card.text  # the quick start
        model.config._name_or_path = str(tmp_path / stage)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("extra_rows", [0, 6])
def test_the_image_token_gets_a_row(tmp_path, extra_rows, tie):
    """The embedding grows by one row, or not at all where padding rows are left; a tied head stays tied."""
    text = write_language_model(tmp_path / "text", extra_rows, tie)
    model = assemble(text, write_tower(tmp_path / "tower", "siglip"), "gated_mlp", tmp_path / "model")
    old = AutoModelForCausalLM.from_pretrained(text).vocab_size
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    for each in (model, loaded):
        rows = each.get_input_embeddings().num_embeddings
        assert rows == each.config.text_config.vocab_size == each.lm_head.out_features == old + (extra_rows == 0)
        assert (each.lm_head.weight is each.get_input_embeddings().weight) == tie
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "model").tokenizer
    assert tokenizer.convert_tokens_to_ids("<|image|>") == old - extra_rows == loaded.config.image_token_id
    assert loaded.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_the_command_knows_all_aligners():
    assert ALIGNERS == tuple(MODELS)


def test_the_aligner_is_seeded(tmp_path):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    models = [
        assemble(text, tower, "gated_mlp", tmp_path / f"{index}", seed=seed) for index, seed in enumerate((3, 3, 4))
    ]
    first, same, other = (model.model.multi_modal_projector.gate_proj.weight for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.std().item() == pytest.approx(models[0].config.text_config.initializer_range, rel=0.1)


def test_errors_leave_nothing_behind(tmp_path, capsys):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    small = write_language_model(tmp_path / "small")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(small)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases = [
        (small, tower, "new", "goes up to id .* but the embedding has .* rows only"),
        (tower, tower, "new", "which is not a text language model"),
        (text, text, "new", "Known towers: siglip_vision_model, clip_vision_model"),
        (text, str(tmp_path / "none"), "new", "could not load"),
        (text, tower, "full", "not empty"),
    ]
    for language_model, vision_tower, destination, message in cases:
        with pytest.raises((CheckpointError, FileExistsError), match=message):
            assemble(language_model, vision_tower, "mlp", tmp_path / destination)
    (tmp_path / "text" / "model.safetensors").rename(tmp_path / "text" / "pytorch_model.bin")
    with pytest.raises(PumaError) as error:
        argv = ["--language_model", text, "--vision_tower", tower, "--aligner", "mlp"]
        main(["assemble", *argv, str(tmp_path / "new")])
    assert "has only pickled weights (pytorch_model.bin)" in str(error.value)
    path = tmp_path / "tower" / "model.safetensors"
    tensors = load_file(path)
    del tensors["vision_model.encoder.layers.0.mlp.fc1.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 tensors of SiglipVisionModel.*fc1.bias"):
        assemble(write_language_model(tmp_path / "text"), tower, "mlp", tmp_path / "new")
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ModelError, match=r"tower/model.safetensors cannot be read.*truncated"):
        assemble(write_language_model(tmp_path / "text"), tower, "mlp", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"text", "tower", "small", "full"}


QWEN = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nPlease reason step by step.<|im_end|>\\n' }}{%- endif %}\n"
    "{%- for message in messages %}\n{%- if not (message.role == 'system' and loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = 'Cutting off.' %}{%- endif %}"
    "{{- '<|im_start|>system\\n\\n' + system + '<|im_end|>' }}{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
)
TURNS = [
    {"role": "user", "content": "What is 1 + 2?"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "And 3 + 4?"},
]
SYSTEM = {"role": "system", "content": "Answer in Latin."}


def change_tokenizer(folder, template=None, **names):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in names.items():
        setattr(tokenizer, name, value)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("turns", [TURNS[:1], TURNS, [SYSTEM, *TURNS]], ids=["one", "several", "system"])
@pytest.mark.parametrize("template", [TEXT_TEMPLATE, QWEN, LLAMA], ids=["plain", "qwen", "llama"])
def test_prompts_stay_those_of_the_language_model(tmp_path, template, turns):
    """Its system prompt where there is none, and one first token; pictures come at their places."""
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    tokenizer = change_tokenizer(text, template, bos_token="<|endoftext|>")
    assemble(text, tower, "gated_mlp", tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    in_parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    for messages in (turns, in_parts):
        assert processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == expected
    in_parts[-1]["content"] = [{"type": "image"}, {"type": "text", "text": "Look at "}, {"type": "image"}]
    in_parts[-1]["content"].append({"type": "text", "text": turns[-1]["content"]})
    with_pictures = processor.apply_chat_template(in_parts, add_generation_prompt=True, tokenize=False)
    head, problem, tail = expected.rpartition(turns[-1]["content"])
    assert with_pictures == f"{head}<|image|>\nLook at <|image|>\n{problem}{tail}"


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("template", [QWEN, LLAMA], ids=["qwen", "llama"])
def test_one_first_token(tmp_path, template, adds):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", template
    if adds:  # as the tokenizer.json of Llama 3 says
        first = [("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=first
        )
    tokenizer.save_pretrained(text)
    assemble(text, tower, "mlp", tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    messages = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = [
        processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)[0],
        processor(text=[prompt])["input_ids"][0],
        processor(text=[render_prompt(processor, "Why?", 0)], add_special_tokens=False)["input_ids"][0],
    ]
    # without one in its template the language model begins as its tokenizer says
    number = 1 if template == LLAMA or adds else 0
    assert [each.count(processor.tokenizer.bos_token_id) for each in ids] == [number] * 3


def test_answers_end_where_any_of_the_parts_says(tmp_path):
    """A base model ends texts with one token, its template answers with another; what it generates ends at both."""
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    tokenizer = change_tokenizer(text, QWEN, eos_token="<|vision_end|>", pad_token=None)
    end, of_tokenizer, stated = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|vision_end|>", "<|endoftext|>"])
    GenerationConfig(eos_token_id=[stated], do_sample=True, temperature=0.3).save_pretrained(text)
    assemble(text, tower, "gated_mlp", tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    generation_config = model.generation_config
    assert generation_config.eos_token_id == [end, of_tokenizer, stated]
    assert (generation_config.do_sample, generation_config.temperature) == (True, 0.3)
    assert end_of_answer(processor) == processor.tokenizer.eos_token == "<|im_end|>"
    assert processor.tokenizer.pad_token == "<|vision_end|>"  # and no end of an answer
    # training keeps them
    align_special_tokens(model, processor)
    assert set(model.generation_config.eos_token_id) == {end, of_tokenizer, stated}
    for token in (end, of_tokenizer, stated):
        with torch.no_grad():
            model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.out_features))
        model.lm_head.bias.data[token] = 9.0
        ids = model.generate(torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=4)
        assert ids[0].tolist() == [5, 6, token]


@pytest.mark.parametrize("aligner", ["mlp", "gated_mlp"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("size", [(280, 40), (40, 280), (60, 60)], ids=["wide", "tall", "square"])
def test_pictures_are_seen_whole(tmp_path, aligner, kind, size):
    """Of a picture with a mark at each end both marks are seen; CLIP also sees its proportions."""
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", kind)
    assemble(text, tower, aligner, tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    picture, mark = Image.new("RGB", size, "white"), Image.new("RGB", (20, 20), "black")
    picture.paste(mark, (0, 0))
    picture.paste(mark, (size[0] - 20, size[1] - 20))
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0].mean(0)
    assert pixels.shape == (28, 28)
    dark = (pixels < pixels.min() + 0.25 * (pixels.max() - pixels.min())).nonzero()
    wide = size[0] >= size[1]
    along = dark[:, 1 if wide else 0]
    assert along.min() <= 1 and along.max() >= 26
    assert cropped_share(processor, [(size[1], size[0])]) == 0
    if kind == "clip":
        # the longer side fills the square, so a mark of 20 pixels has 20 * 28 / longer of it
        edge = 20 * 28 / max(size)
        first = dark[along < 14]
        for side in (first[:, 0], first[:, 1]):
            assert abs((side.max() - side.min() + 1).item() - edge) <= 1.5


def test_another_prompt(tmp_path):
    """A tokenizer without a template and without the tokens of ChatML needs one."""
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    (tmp_path / "text" / "chat_template.jinja").unlink()
    assemble(text, tower, "gated_mlp", tmp_path / "chatml")
    assert AutoProcessor.from_pretrained(tmp_path / "chatml").chat_template == CHAT_TEMPLATE
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "text" / file
        path.write_text(path.read_text().replace("<|im_end|>", "</s>"))
    with pytest.raises(CheckpointError, match="--chat_template"):
        assemble(text, tower, "gated_mlp", tmp_path / "model")
    template = CHAT_TEMPLATE.replace("<|im_end|>", "</s>")
    assemble(text, tower, "gated_mlp", tmp_path / "model", chat_template=template)
    assert AutoProcessor.from_pretrained(tmp_path / "model").chat_template == template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEXT_TEMPLATE, "cannot render a problem: TypeError"),
        ("{% for", "cannot render a problem: TemplateSyntaxError"),
        (CHAT_TEMPLATE.replace("<|image|>\\n", ""), "does not write a picture's place"),
    ],
)
def test_templates_that_take_no_pictures(tmp_path, capsys, template, message):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    (tmp_path / "text.jinja").write_text(template)
    argv = ["--language_model", text, "--vision_tower", tower, "--aligner", "mlp", str(tmp_path / "new")]
    with pytest.raises(PumaError, match=message):
        main(["assemble", *argv, "--chat_template", str(tmp_path / "text.jinja")])
    assert not (tmp_path / "new").exists()
    main(["assemble", *argv])
    assert f"Prompts are those of {text}; answers end at <|im_end|>." in capsys.readouterr().out
