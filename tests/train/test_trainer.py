import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText

from puma_trl.config import PumaKLConfig
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.errors import DataError
from puma_trl.models.families import get_family
from puma_trl.step.reference import puma_loss
from puma_trl.train.trainer import PumaKLTrainer


LORA = LoraConfig(r=4, lora_dropout=0.1, target_modules=r".*visual\.blocks.*(fc1|fc2|qkv)")


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def answer_logits(model, batch, prefix=""):
    names = [n for n in batch if n.startswith("teacher_") == bool(prefix) and n not in ("row_id", f"{prefix}labels")]
    labels = batch[f"{prefix}labels"][:, 1:]
    logits = model(**{name.removeprefix(prefix): batch[name] for name in names}).logits[:, :-1]
    return logits[labels != -100], labels[labels != -100]


def test_logged_metrics_equal_full_logits(train, tiny_model, processor, pairs):
    dataset, model = pairs(4), tiny_model()
    family = get_family(model.config)
    batch = DataCollatorForPumaPairs(processor, family)(list(dataset))
    with torch.no_grad():
        student, labels = answer_logits(model, batch)
        teacher, _ = answer_logits(model, batch, "teacher_")
    expected = puma_loss(student, teacher, labels, alpha_kl=0.3, lambda_kl=0.6, temp_kl=2.0)
    trainer = train(
        model, dataset, eval_dataset=dataset, max_steps=1, alpha_kl=0.3, lambda_kl=0.6, temp_kl=2.0, learning_rate=0.0
    )
    logs = trainer.state.log_history[0]
    evaluation = trainer.evaluate()
    n = expected.num_tokens
    entropy = -(student.softmax(-1) * student.log_softmax(-1)).sum()
    values = {
        "loss": expected.loss * n,
        "kl": expected.kl,
        "forward_kl": expected.forward_kl,
        "reverse_kl": expected.reverse_kl,
        "ce": expected.ce,
        "teacher_ce": torch.nn.functional.cross_entropy(teacher, labels, reduction="sum"),
        "entropy": entropy,
        "mean_token_accuracy": (student.argmax(-1) == labels).sum(),
        "teacher_mean_token_accuracy": (teacher.argmax(-1) == labels).sum(),
    }
    for name, value in values.items():
        assert logs[name] == pytest.approx(float(value / n), rel=1e-4, abs=1e-7), name
        assert evaluation[f"eval_{name}"] == pytest.approx(float(value / n), rel=1e-4, abs=1e-7), name
    assert logs["num_tokens"] == batch["attention_mask"].sum().item()


def test_lambda_zero_is_sft_on_the_student_side(train, tiny_model, pairs):
    dataset = pairs(8)
    kl = train(tiny_model(), dataset, lambda_kl=0.0)
    sft = train(tiny_model(), dataset, use_kl=False)
    for name, value in weights(sft).items():
        assert_close(weights(kl)[name], value, rtol=0, atol=1e-6, msg=name)
    for ours, theirs in zip(kl.state.log_history[:3], sft.state.log_history[:3], strict=True):
        for name in ("loss", "grad_norm", "mean_token_accuracy", "entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


def test_lambda_one_is_pure_kl(train, tiny_model, pairs):
    logs = train(tiny_model(), pairs(4), lambda_kl=1.0, max_steps=1).state.log_history[0]
    assert logs["loss"] == pytest.approx(logs["kl"], rel=1e-5)
    assert logs["loss"] != pytest.approx(logs["ce"], rel=1e-2)


@pytest.mark.parametrize("use_kl", [True, False])
@pytest.mark.parametrize("family_name", ["qwen2_vl", "qwen2_5_vl"])
def test_accumulation_does_not_change_the_step(train, tiny_model, pairs, use_kl, family_name):
    dataset = pairs(10)  # an uneven last batch within the three steps
    whole = train(tiny_model(family_name=family_name), dataset, use_kl=use_kl)
    parts = train(
        tiny_model(family_name=family_name),
        dataset,
        use_kl=use_kl,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    for name, value in weights(whole).items():
        assert_close(weights(parts)[name], value, rtol=0, atol=1e-6, msg=name)
    # means over answer tokens, and not over micro-batches
    for ours, theirs in zip(parts.state.log_history[:3], whole.state.log_history[:3], strict=True):
        for name in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name


def test_gradient_checkpointing_does_not_change_the_step(train, tiny_model, pairs):
    plain = train(tiny_model(), pairs(8))
    checkpointed = train(tiny_model(), pairs(8), gradient_checkpointing=True)
    for name, value in weights(plain).items():
        assert_close(weights(checkpointed)[name], value, rtol=0, atol=1e-6, msg=name)


def test_length_grouped_batches(train, tiny_model, pairs):
    dataset = pairs(32)
    dataset = dataset.add_column("length", [10 + 7 * index % 32 for index in range(32)])
    lengths = dict(zip(dataset["row_id"], dataset["length"], strict=True))
    spread = {}
    for strategy in ("random", "group_by_length"):
        trainer = train(tiny_model(), dataset, run=False, train_sampling_strategy=strategy)
        batches = [[lengths[row] for row in batch["row_id"]] for batch in trainer.get_train_dataloader()]
        spread[strategy] = sum(max(batch) - min(batch) for batch in batches)
        assert sorted(sum(batches, [])) == sorted(lengths.values())
    assert spread["group_by_length"] < 0.7 * spread["random"]


def test_length_grouped_order_is_the_same_after_resuming_in_a_later_epoch(train, tiny_model, pairs, tmp_path):
    dataset = pairs(16)
    dataset = dataset.add_column("length", list(range(10, 26)))
    kwargs = {"max_steps": 8, "save_steps": 6, "save_strategy": "steps", "train_sampling_strategy": "group_by_length"}
    whole = train(tiny_model(), dataset, **kwargs)
    torch.manual_seed(99)
    kwargs["output_dir"] = str(tmp_path / "rest")
    resumed = train(tiny_model(), dataset, resume=str(tmp_path / "out" / "checkpoint-6"), **kwargs)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    sampler = whole._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    whole.args.data_seed = 7
    assert list(whole._get_train_sampler()) != orders[0]


def test_length_grouped_order_is_that_of_any_number_of_processes(train, tiny_model, pairs, monkeypatch):
    """Else a run that is resumed by another number, with as many rows per step, would read some twice."""
    dataset = pairs(28)
    dataset = dataset.add_column("length", [10 + 7 * index % 28 for index in range(28)])
    orders = []
    for processes in (1, 2):
        values = {"per_device_train_batch_size": 4 // processes, "train_sampling_strategy": "group_by_length"}
        trainer = train(tiny_model(), dataset, run=False, **values)
        monkeypatch.setattr(type(trainer.args), "world_size", processes)
        orders.append(list(trainer._get_train_sampler()))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_side_and_order_do_not_change_the_loss(train, tiny_model, processor, pairs, padding_side):
    dataset = pairs(6)
    reference = train(tiny_model(), dataset, eval_dataset=dataset, run=False).evaluate()
    processor.tokenizer.padding_side = padding_side
    shuffled = dataset.select([4, 0, 5, 2, 1, 3])
    changed = train(tiny_model(), dataset, eval_dataset=shuffled, run=False, per_device_eval_batch_size=3).evaluate()
    for name in ("eval_loss", "eval_kl", "eval_ce", "eval_mean_token_accuracy"):
        assert changed[name] == pytest.approx(reference[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (["aligner"], ("model.visual.merger.",)),
        (["aligner", "vision_tower_low", "vision_tower_high"], ("model.visual.",)),
        (["language_model"], ("model.language_model.", "lm_head.")),
        (["all"], ("",)),
    ],
)
def test_exactly_the_named_parts_change(train, tiny_model, pairs, parts, prefixes):
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, pairs(8), parts=parts)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith(prefixes), name
        assert name.startswith(prefixes) or parameter.grad is None


def test_text_only_rows_with_a_frozen_vision_tower(train, tiny_model, pairs):
    rows = pairs(8).remove_columns(["image_url_2", "instruction_2", "output_2"])
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    train(model, rows, use_kl=False, parts=["language_model"])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any("visual" in name for name in changed)


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_teachers(train, tiny_model, pairs, peft_config):
    """All start alike; then live follows the student, ema lags behind it, and frozen stays."""
    dataset = pairs(4, text_rich_images=lambda index: 1)

    def teacher_ce(teacher):
        adam = {"optim": "adamw_torch", "learning_rate": 1e-2}
        trainer = train(tiny_model(), dataset, teacher=teacher, max_steps=4, peft_config=peft_config, **adam)
        return [logs["teacher_ce"] for logs in trainer.state.log_history if "teacher_ce" in logs]

    live, frozen, ema = (teacher_ce(teacher) for teacher in ("live", "frozen", "ema"))
    assert live[0] == pytest.approx(frozen[0]) == pytest.approx(ema[0])
    assert frozen == pytest.approx([frozen[0]] * 4, rel=1e-6)
    assert abs(live[-1] - live[0]) > 2 * abs(ema[-1] - ema[0]) > 0


def test_data_sets_that_load_data_has_not_read(train, tiny_model, pairs):
    """Single images as paths, bytes or `datasets.Image`, and no row ids: the columns that the README names."""
    rows = pairs(4)
    expected = weights(train(tiny_model(), rows, max_steps=1))
    paths = [row["image_url_2"][0]["path"] for row in rows]
    plain = [{name: row[name] for name in row if name.startswith(("instruction", "output"))} for row in rows]
    for values in (paths, [Path(path).read_bytes() for path in paths]):
        data = [row | {"image_url_2": value} for row, value in zip(plain, values, strict=True)]
        found = weights(train(tiny_model(), Dataset.from_list(data), max_steps=1))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    decoded = Dataset.from_list(data).cast_column("image_url_2", Image())
    found = weights(train(tiny_model(), decoded, max_steps=1))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_weights_without_fp32_copies_are_named(train, tiny_model, pairs):
    with pytest.warns(UserWarning, match="train in torch.bfloat16 without fp32 copies"):
        train(tiny_model().to(torch.bfloat16), pairs(4), max_steps=1)


def test_teacher_has_no_dropout(train, tiny_model, pairs):
    """Text-rich = vision-rich and no dropout in the student: KL is zero only if the teacher has none either."""
    dataset = pairs(4, text_rich_images=lambda index: 0, vision_rich_images=lambda index: 0)
    same = dataset.map(lambda row: {"instruction_2": row["instruction"]})
    lora = LoraConfig(r=4, lora_dropout=0.9, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = train(tiny_model(), same, peft_config=lora, teacher="live", learning_rate=0.0, max_steps=1)
    assert trainer.state.log_history[0]["kl"] > 1e-6  # the student does drop
    assert trainer.evaluate(same)["eval_kl"] == pytest.approx(0.0, abs=1e-7)
    ce = trainer.evaluate(same)["eval_teacher_ce"]
    assert trainer.state.log_history[0]["teacher_ce"] == pytest.approx(ce, rel=1e-5)


@pytest.mark.parametrize(
    ("peft_config", "teacher", "use_kl"),
    [(None, "live", True), (None, "ema", True), (None, "live", False), (LORA, "ema", True), (LORA, "frozen", True)],
    ids=["full", "full-ema", "full-sft", "lora-ema", "lora-frozen"],
)
def test_resume_equals_an_uninterrupted_run(train, tiny_model, pairs, tmp_path, peft_config, teacher, use_kl):
    kwargs = {
        "learning_rate": 1e-2,
        "max_steps": 5,
        "optim": "adamw_torch",  # has a state to resume
        "peft_config": peft_config,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "save_strategy": "steps",
        "teacher": teacher,
        "use_kl": use_kl,
    }
    whole = train(tiny_model(), pairs(6), **kwargs)
    kwargs["output_dir"] = str(tmp_path / "rest")
    resumed = train(tiny_model(), pairs(6), resume=str(tmp_path / "out" / "checkpoint-2"), **kwargs)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    for logs, again in zip(whole.state.log_history[:5], resumed.state.log_history[:5], strict=True):
        assert again["loss"] == logs["loss"]


def test_what_drops_the_last_batch_drops_no_row_of_an_evaluation(train, tiny_model, pairs):
    losses = [
        train(tiny_model(), pairs(8), eval_dataset=pairs(6), dataloader_drop_last=drops, run=False).evaluate()[
            "eval_loss"
        ]
        for drops in (False, True)
    ]
    assert losses[0] == losses[1]


def test_dropping_all_rows_is_refused(train, tiny_model, pairs):
    with pytest.raises(DataError, match="`dataloader_drop_last: true` leaves nothing to train on: .* 3 rows"):
        train(tiny_model(), pairs(3), dataloader_drop_last=True, run=False)


def test_best_model_is_loaded(train, tiny_model, pairs, tmp_path):
    dataset = pairs(8)
    trainer = train(
        tiny_model(),
        dataset,
        eval_dataset=dataset,
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=30.0,  # diverges, so the first checkpoint is the best
        load_best_model_at_end=True,
        save_steps=1,
        save_strategy="steps",
    )
    best = AutoModelForImageTextToText.from_pretrained(trainer.state.best_model_checkpoint)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    for name, value in best.named_parameters():
        assert torch.equal(weights(trainer)[name], value), name


def test_saved_model_loads_with_native_names(train, tiny_model, pairs, tmp_path):
    trainer = train(tiny_model(), pairs(4), max_steps=1)
    trainer.save_model()
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in loaded.named_parameters():
        assert torch.equal(weights(trainer)[name], value), name


def test_loss_that_is_not_finite_stops_the_run(train, tiny_model, processor, pairs, tmp_path):
    dataset = pairs(8).map(
        lambda row, index: {"instruction_2": row["instruction_2"] + "§" * (index == 5)}, with_indices=True
    )
    model = tiny_model()
    token = processor.tokenizer.encode("§")[-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    with pytest.raises(FloatingPointError, match="pairs.jsonl:5") as error:
        train(
            model,
            dataset,
            max_steps=8,
            per_device_train_batch_size=1,
            save_steps=1,
            save_strategy="steps",
            train_sampling_strategy="sequential",
        )
    assert "pairs.jsonl:4" not in str(error.value)
    checkpoints = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert checkpoints == [f"checkpoint-{step}" for step in range(1, 6)]
    last = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "checkpoint-5")
    finite = [torch.isfinite(p).all() for n, p in last.named_parameters() if "embed_tokens" not in n]
    assert all(finite)


def test_part_learning_rates(train, tiny_model, pairs):
    trainer = train(
        tiny_model(), pairs(4), run=False, part_learning_rates={"aligner": 1e-4, "vision_tower": 0.0}, weight_decay=0.1
    )
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            expected = 1e-4 if ".merger." in name else 0.0 if ".visual." in name else 0.1
            assert group["lr"] == expected, name
            assert (group["weight_decay"] == 0.0) == (name.endswith("bias") or "norm" in name or ".ln_q." in name), (
                name
            )
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_part_learning_rates_of_an_unknown_part(train, tiny_model, pairs):
    with pytest.raises(ValueError, match="'visoin'"):
        train(tiny_model(), pairs(4), part_learning_rates={"visoin": 1.0})


def test_packing_is_refused_for_vision_language_models(train, tiny_model, pairs):
    with pytest.raises(ValueError, match="`packing: True` has no effect on a vision-language model"):
        train(tiny_model(), pairs(4), use_kl=False, packing=True)


def test_use_kl_needs_a_processor(tiny_model, processor, pairs, tmp_path):
    args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="use_kl: true` needs the processor"):
        PumaKLTrainer(tiny_model(), args, train_dataset=pairs(2), processing_class=processor.tokenizer)
