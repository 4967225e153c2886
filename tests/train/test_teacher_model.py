"""`teacher: model`: another model with the same tokens reads the text-rich side through its own template."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from deepspeed.utils import groups
from peft import LoraConfig
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from puma_trl.config import PumaKLConfig
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.errors import CheckpointError, ConfigError, DataError, ModelError, PumaError
from puma_trl.models import teacher_model
from puma_trl.models.teacher_model import TeacherSide, check_same_tokens, loading_another
from puma_trl.step.forward import SeparateTeacher, logit_transform
from puma_trl.step.reference import puma_loss
from puma_trl.train.throughput import COUNTS, Costs
from puma_trl.train.trainer import PumaKLTrainer

from ..models.family_models import build_family, write_text_model


@pytest.fixture(scope="module")
def rows(pairs):
    """Pairs whose text-rich side has no picture, in the columns of a file, so that they are checked."""
    return pairs(6).remove_columns(["row_id", "num_answer_tokens"])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: `student`, the model that trains, `padded`, its twin, `other`, of another family, and `text`."""
    folder = tmp_path_factory.mktemp("models")
    processor, model = build_family("qwen2_vl")
    model.save_pretrained(folder / "student")
    model.resize_token_embeddings(len(processor.tokenizer) + 64, mean_resizing=False)
    model.save_pretrained(folder / "padded")
    for name in ("student", "padded"):
        processor.save_pretrained(folder / name)
    write_text_model(folder / "text")
    processor, model = build_family("qwen2_5_vl", seed=1)
    model.save_pretrained(folder / "other")
    processor.save_pretrained(folder / "other")
    return folder


@pytest.fixture
def make(tmp_path, rows, models):
    """Returns a function that makes a trainer on fresh weights of the student."""

    def make(name=None, data=rows, padding_free=False, peft_config=None, processor=None, collator=None, **values):
        model = AutoModelForImageTextToText.from_pretrained(
            models / "student", attn_implementation="varlen" if padding_free else "sdpa"
        )
        if name is not None:
            values |= {"teacher": "model", "teacher_model_name_or_path": str(models / name)}
        defaults = {
            "bf16": False,
            "gradient_checkpointing": False,
            "lambda_kl": 0.7,
            "learning_rate": 0.1,
            "logging_steps": 1,
            "max_length": None,
            "max_steps": 3,
            "optim": "sgd",
            "output_dir": str(tmp_path / "out"),
            "padding_free": padding_free,
            "per_device_train_batch_size": 3,
            "report_to": "none",
            "save_strategy": "no",
            "trainable_parts": None if peft_config else ["all"],
            "use_cpu": True,
        }
        args = PumaKLConfig(**defaults | values)
        torch.manual_seed(0)
        given = {"train_dataset": data, "processing_class": processor, "peft_config": peft_config}
        return PumaKLTrainer(model, args, collator, **given)

    return make


def train(trainer):
    trainer.train()
    logs = [each for each in trainer.state.log_history if "kl" in each]
    names = ("loss", "kl", "ce", "teacher_ce", "teacher_mean_token_accuracy", "grad_norm", "entropy")
    return [[each[name] for name in names] for each in logs], dict(trainer.model.named_parameters())


def assert_same(one, other, atol=1e-7):
    (logs, weights), (other_logs, other_weights) = one, other
    assert_close(torch.tensor(logs), torch.tensor(other_logs), rtol=1e-6, atol=1e-6)
    for name, value in weights.items():
        assert_close(other_weights[name], value, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("padding_free", [False, True])
def test_the_students_own_weights_are_those_of_a_frozen_teacher(make, padding_free):
    frozen = train(make(teacher="frozen", padding_free=padding_free))
    live = train(make(padding_free=padding_free))
    assert live[0] != frozen[0]  # the weights have moved
    assert_same(train(make("student", padding_free=padding_free)), frozen)
    # 64 rows more in the head, which are left out
    assert_same(train(make("padded", padding_free=padding_free)), frozen)


def test_adapters(make):
    lora = LoraConfig(r=4, lora_dropout=0.0, target_modules=r".*(q_proj|v_proj)")
    frozen = train(make(teacher="frozen", peft_config=copy.deepcopy(lora)))
    assert_same(train(make("student", peft_config=copy.deepcopy(lora))), frozen)


def test_a_text_model_teaches_a_vision_language_model(make, models):
    """Its own template, width, and more rows in its head; the step is the formulas on full logits."""
    trainer = make("text", standardize_logits=True)
    student, teacher = copy.deepcopy(trainer.model), trainer.teacher.model
    assert isinstance(trainer.teacher, SeparateTeacher) and teacher.config.hidden_size == 96
    batch = trainer.data_collator([trainer.train_dataset[0]])
    ids = batch["teacher_input_ids"][0]
    tokenizer = AutoTokenizer.from_pretrained(models / "text")
    row = trainer.train_dataset[0]
    turn = [{"role": "user", "content": row["instruction"]}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids) == f"{prompt}{row['output']}<|im_end|>"
    answers = batch["labels"][batch["labels"] != -100]
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
    with torch.no_grad():
        logits = student(**{name: batch[name] for name in names}, use_cache=False).logits[0]
        hidden = teacher(
            inputs={"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]},
            positions=torch.arange(len(ids) - len(answers) - 1, len(ids) - 1),
        )
    size = len(tokenizer)
    expected = puma_loss(
        logits[:-1][batch["labels"][0, 1:] != -100],
        hidden @ teacher.get_output_embeddings().weight.T,
        answers,
        lambda_kl=0.7,
        standardize_logits=True,
        shared_vocab_size=size,
    )
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(float(len(answers))))
    assert_close(loss.detach(), expected.loss, rtol=1e-5, atol=1e-6)
    assert "\x1b" not in trainer.describe_sample().plain and prompt.strip() in trainer.describe_sample().plain


def test_another_vision_language_model_teaches(make, models, pairs):
    """Of another family, with pictures on the text-rich side of some rows, whose sizes it is told; padded and not."""
    data = pairs(6, text_rich_images=lambda index: index % 3 == 1).remove_columns(["row_id", "num_answer_tokens"])
    padded = make("other", data, max_pixels=28 * 28)
    assert padded.teacher.model.config.model_type == "qwen2_5_vl"
    batches = [each.data_collator(list(each.train_dataset)) for each in (padded, make("other", data))]
    assert len(batches[0]["teacher_pixel_values"]) < len(batches[1]["teacher_pixel_values"])
    free = make("other", data, max_pixels=28 * 28, padding_free=True)
    assert_same(train(free), train(padded), atol=1e-6)


def test_a_text_model_with_padding_and_without(make):
    assert_same(train(make("text", padding_free=True)), train(make("text")), atol=1e-6)


def test_text_rows_are_padded_like_those_of_a_processor(rows, models):
    processor, _ = build_family("qwen2_vl")
    tokenizer = AutoTokenizer.from_pretrained(models / "text")
    side = TeacherSide(tokenizer, AutoConfig.from_pretrained(models / "text"))
    batch = DataCollatorForPumaPairs(processor, teacher=side)(list(rows)[:3])
    single = [DataCollatorForPumaPairs(processor, teacher=side)([row]) for row in list(rows)[:3]]
    for index, each in enumerate(single):
        length = each["teacher_input_ids"].shape[1]
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[f"teacher_{name}"][index, :length], each[f"teacher_{name}"][0])
        assert not batch["teacher_attention_mask"][index, length:].any()
        assert (batch["teacher_labels"][index, length:] == -100).all()
        assert (batch["teacher_input_ids"][index, length:] == tokenizer.pad_token_id).all()


def change_folder(models, target, change):
    """A copy of the text model's files with another tokenizer or template."""
    target.mkdir()
    for path in (models / "text").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    change(target)
    return str(target)


def permute(folder):
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    one, other = "a", "b"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(state))


def test_permuted_vocabulary_is_refused(make, models, tmp_path):
    folder = change_folder(models, tmp_path / "permuted", permute)
    with pytest.raises(ModelError, match=r"has other tokens than .*: 2 of [\d,]+ differ, first id \d+ is 'a' in"):
        make(teacher="model", teacher_model_name_or_path=folder)


class Vocabulary:
    def __init__(self, *tokens, special=(), **ids):
        self.ids = {token: number for number, token in enumerate(tokens)} | ids
        self.all_special_tokens = list(special)

    def get_vocab(self):
        return self.ids


def test_which_vocabularies_go_together():
    check_same_tokens(Vocabulary("a", "b", "<e>"), Vocabulary("a", "b"), "x")
    check_same_tokens(Vocabulary("a", "b"), Vocabulary("a", "b", pad=9), "x")
    with pytest.raises(ModelError, match=r"4 of 4 differ, first id 0 is 'a' .* 'b' .*; id 1 .*; id 2 is 'c' [^;]*\. "):
        check_same_tokens(Vocabulary("a", "b", "c", "d"), Vocabulary("b", "c", "d", "a"), "x")
    with pytest.raises(ModelError, match=r"'<e>' \(special\) has the id 2 in the student and 5 in the teacher"):
        check_same_tokens(Vocabulary("a", "b", "<e>"), Vocabulary("a", "b", special=["<e>"], **{"<e>": 5}), "x")


def write_template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


TURN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + END }}{% endfor %}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            write_template(TURN.replace("END", "'<|endoftext|>'")),
            "An answer of the model that trains ends with",
        ),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template, so how a problem is put to"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "which predicts no next token"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "`teacher_model_name_or_path`: .* holds a",
        ),
    ],
)
def test_teachers_that_cannot_be(make, models, tmp_path, change, message):
    folder = change_folder(models, tmp_path / "teacher", change)
    with pytest.raises(ModelError, match=message):
        make(teacher="model", teacher_model_name_or_path=folder)


def test_pictures_for_a_text_teacher(make, pairs, models):
    data = pairs(6, text_rich_images=lambda index: index == 4).remove_columns(["row_id", "num_answer_tokens"])
    with pytest.raises(DataError, match="1 image for a text teacher.*train#5: image for a text teacher: `image_url`"):
        make("text", data)
    assert len(make("text", data, bad_rows="drop").train_dataset) == 5
    assert len(make("student", data).train_dataset) == 6  # which reads pictures
    processor, _ = build_family("qwen2_vl")
    side = TeacherSide(AutoTokenizer.from_pretrained(models / "text"), AutoConfig.from_pretrained(models / "text"))
    with pytest.raises(DataError, match="Row 1 of a batch: image for a text teacher"):
        DataCollatorForPumaPairs(processor, teacher=side)([data[0], data[4]])


def test_answers_that_the_teacher_splits_otherwise(make, models, tmp_path):
    """The same tokens, put together by other rules."""

    def drop_merges(folder):
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text())
        state["model"]["merges"] = state["model"]["merges"][:5]
        path.write_text(json.dumps(state))

    folder = change_folder(models, tmp_path / "split", drop_merges)
    with pytest.raises(DataError, match=r"answer in other tokens: \d+ in the student, \d+ in the teacher"):
        make(teacher="model", teacher_model_name_or_path=folder)


def test_the_teachers_tokens_count(make, models, tmp_path):
    """Its template is longer, so its side is what is too long, and lengths tell."""
    plain = make("text").train_dataset["length"]
    template = (models / "text" / "chat_template.jinja").read_text()
    folder = change_folder(models, tmp_path / "long", write_template("so " * 200 + template))
    values = {"teacher": "model", "teacher_model_name_or_path": folder}
    longer = make(**values).train_dataset["length"]
    added = {more - less for more, less in zip(longer, plain, strict=True)}
    assert len(added) == 1 and added.pop() > 100
    with pytest.raises(DataError, match="too long: the text-rich side has"):
        make(**values, max_length=120)
    make("text", max_length=120)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": "model"}, "`teacher: model` needs `teacher_model_name_or_path`"),
        ({"teacher_model_name_or_path": "x"}, "`teacher_model_name_or_path: x` is for another model .* 'live'"),
        ({"teacher": "ema", "teacher_load_in_4bit": True}, "`teacher_load_in_4bit: True` is for another model"),
        ({"teacher_model_revision": "v1"}, "`teacher_model_revision: v1` is for another model as teacher"),
        ({"use_kl": False, "teacher": "model"}, "`teacher: model` does not go with `use_kl: false`"),
        ({"use_kl": False, "teacher_model_name_or_path": "x"}, "`teacher_model_name_or_path: x` is for another"),
        ({"teacher_model_init_kwargs": {"device_map": "auto"}}, "the engine places the weights"),
        ({"teacher_model_init_kwargs": {"revision": "v1"}}, "Revision, quantisation and"),
        ({"teacher_model_init_kwargs": "fast"}, "must map arguments to values"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, values, message):
    if "teacher_model_init_kwargs" in values:
        values = values | {"teacher": "model", "teacher_model_name_or_path": "x"}
    with pytest.raises(ConfigError, match=message):
        PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", **values)


def test_arguments_of_the_teacher(make):
    """Precision and attention of its own; an unknown argument is an error of the user's."""
    init = {"dtype": "bfloat16", "attn_implementation": "eager"}
    trainer = make("text", teacher_model_init_kwargs=init)
    teacher = trainer.teacher.model
    assert teacher.dtype == torch.bfloat16 and teacher.config._attn_implementation == "eager"
    train(trainer)
    with pytest.raises(ModelError, match="cannot be loaded: .*zzz"):
        make("text", teacher_model_init_kwargs={"zzz": 1})
    with pytest.raises(PumaError, match="`padding_free: true` with `attn_implementation: eager`"):
        make("text", padding_free=True, teacher_model_init_kwargs=init)


def test_a_teacher_in_4_bits(make):
    trainer = make("text", teacher_load_in_4bit=True)
    assert trainer.teacher.model.is_loaded_in_4bit
    (log, *_), _ = train(trainer)
    (whole, *_), _ = train(make("text"))
    assert log[2] == pytest.approx(whole[2]) and log[3] != whole[3]  # ce of the student and of the teacher


def test_resuming_with_another_teacher(make, models, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = train(make("text"))
    make("text", **saving, max_steps=3).train()
    (tmp_path / "kept").mkdir()
    checkpoint = str(shutil.move(tmp_path / "out" / "checkpoint-2", tmp_path / "kept" / "checkpoint-2"))
    shutil.rmtree(tmp_path / "out")
    moved = change_folder(models, tmp_path / "moved", lambda folder: None)
    resumed = make(teacher="model", teacher_model_name_or_path=moved, **saving)
    resumed.train(resume_from_checkpoint=checkpoint)
    for name, value in whole[1].items():
        assert torch.equal(dict(resumed.model.named_parameters())[name], value), name
    shutil.rmtree(tmp_path / "out")

    def nudge(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\1")

    other = change_folder(models, tmp_path / "other", nudge)
    with pytest.raises(CheckpointError, match=r"with the teacher \S+/text \(Qwen3ForCausalLM\), and not \S+/o"):
        make(teacher="model", teacher_model_name_or_path=other, **saving).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="`dtype of the teacher: float32 → bfloat16`"):
        make("text", **saving, teacher_model_init_kwargs={"dtype": "bfloat16"}).train(
            resume_from_checkpoint=checkpoint
        )
    with pytest.raises(CheckpointError, match="`teacher: model → frozen`"):
        make(teacher="frozen", **saving).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (1.0, None)),
        ({"logit_scale": 0.5, "final_logit_softcapping": 30.0}, (0.5, 30.0)),
        ({"lm_head_multiplier": 2.0}, (2.0, None)),
        ({"logits_scaling": 8.0}, (0.125, None)),
    ],
)
def test_what_is_behind_a_head(models, values, expected):
    config = AutoConfig.from_pretrained(models / "student")
    for name, value in values.items():
        setattr(config.get_text_config(), name, value)
    assert logit_transform(config) == expected


def test_scale_and_soft_cap_of_the_teacher_are_used(make):
    """The loss with them is the one with its head scaled by hand, and the student's logits stay."""
    trainer = make("text")
    batch = trainer.data_collator(list(trainer.train_dataset))
    plain = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(9.0)).detach()
    folder = Path(trainer.args.teacher_model_name_or_path)
    config = json.loads((folder / "config.json").read_text())
    try:
        (folder / "config.json").write_text(json.dumps(config | {"logit_scale": 3.0}))
        scaled = make("text")
    finally:
        (folder / "config.json").write_text(json.dumps(config))
    loss = scaled.compute_loss(scaled.model, dict(batch), num_items_in_batch=torch.tensor(9.0)).detach()
    with torch.no_grad():
        trainer.teacher.model.get_output_embeddings().weight *= 3
    by_hand = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(9.0)).detach()
    assert_close(loss, by_hand, rtol=1e-5, atol=1e-6)
    assert (loss - plain).abs() > 1e-3


def test_the_revision_of_the_teacher(make, models, monkeypatch):
    """All that is read of the teacher is read of it."""
    asked = []

    def watch(kind):
        original = kind.from_pretrained

        def from_pretrained(*args, **kwargs):
            if args[0] == str(models / "text"):
                asked.append(kwargs.get("revision"))
            return original(*args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)

    processor, _ = build_family("qwen2_vl")
    for kind in (AutoConfig, AutoProcessor, AutoModelForCausalLM):
        watch(kind)
    make("text", teacher_model_revision="v2", processor=processor)
    assert len(asked) >= 3 and set(asked) == {"v2"}  # configuration, tokenizer and weights


def test_operations_of_the_teacher(make):
    """Each side counts by its own model."""
    trainer = make("text")
    costs, totals = Costs(trainer.model, trainer.teacher.model), dict.fromkeys(COUNTS, 0.0)
    head = trainer.teacher.model.get_output_embeddings().weight
    assert costs.count(totals | {"teacher_answers": 1.0}) == 2 * head.numel()
    assert costs.count(totals | {"answers": 1.0}) == Costs(trainer.model).count(totals | {"answers": 1.0})


def test_a_second_model_is_divided_over_the_groups_that_are_there(monkeypatch):
    """Under ZeRO-3 with a copy of the weights on each node (accelerate_configs/zero3_multinode.yaml)."""
    made, group = [], object()
    monkeypatch.setattr(teacher_model, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(groups, "_create_zero_param_parallel_group", made.append)
    monkeypatch.setattr(groups, "_ZERO_PARAM_INTRA_PARALLEL_GROUP", group)
    with loading_another():
        groups._create_zero_param_parallel_group(8)
    assert not made and groups._get_zero_param_intra_parallel_group() is group
    monkeypatch.setattr(groups, "_ZERO_PARAM_INTRA_PARALLEL_GROUP", None)
    with loading_another():
        groups._create_zero_param_parallel_group(8)
    assert made == [8] and groups._create_zero_param_parallel_group == made.append


def test_run_with_a_teacher(folder, main, models, capsys):
    """The script names the teacher and its size, and writes down which it was."""
    teacher = {"teacher": "model", "teacher_model_name_or_path": models / "text"}
    init = {"teacher_model_init_kwargs": '{"dtype": "bfloat16"}'}
    out = main(**teacher, **init, lambda_kl=0.5, padding_free=True, attn_implementation="varlen")
    size = sum(each.numel() for each in AutoModelForCausalLM.from_pretrained(models / "text").parameters())
    table = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Qwen3ForCausalLM from" in table and f"{size:,} parameters" in table
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["teacher"]["name_or_path"] == facts["method"]["teacher_model_name_or_path"] == str(models / "text")


def test_what_cannot_be_a_teacher_of_this_run(make, models, monkeypatch):
    """4 bits are not sharded, and a collator must know of the teacher."""
    processor, _ = build_family("qwen2_vl")
    with pytest.raises(ConfigError, match="`data_collator` has no `teacher`"):
        make("text", collator=DataCollatorForPumaPairs(processor), processor=processor)
    monkeypatch.setattr(teacher_model, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ModelError, match="`teacher_load_in_4bit` does not go with ZeRO-3"):
        make("text", teacher_load_in_4bit=True)
