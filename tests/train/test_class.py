"""What the config says holds in Python as under the script, and nothing is taken without effect."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, default_data_collator
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from puma_trl import run
from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.load import load_data
from puma_trl.errors import ConfigError, DataError, PumaError
from puma_trl.models.families import get_family
from puma_trl.models.parts import part_of
from puma_trl.train.trainer import PumaKLTrainer


@pytest.fixture
def rows(tmp_path):
    """Pairs as a user has them: plain texts and paths."""
    rows = []
    for index in range(6):
        Image.new("RGB", (56, 28 * (1 + index % 2)), (40 * index, 0, 0)).save(tmp_path / f"{index}.png")
        answer = f"It is {index}."
        rows.append(
            {"instruction": f"Is {index} it?", "output": answer, "image_url_2": str(tmp_path / f"{index}.png")}
        )
        rows[-1] |= {"instruction_2": "What is it?", "output_2": answer}
    return rows


@pytest.fixture
def make(tmp_path, tiny_model, processor):
    def make(dataset, model=None, **values):
        names = {field.name for field in dataclasses.fields(PumaKLConfig)}
        config = {name: values.pop(name) for name in names & values.keys()}
        config = {"bf16": False, "use_cpu": True, "report_to": "none", "max_steps": 2, "save_strategy": "no"} | config
        config = {"learning_rate": 0.1, "optim": "sgd", "output_dir": str(tmp_path / "out")} | config
        values = {"processing_class": processor} | values
        return PumaKLTrainer(model or tiny_model(), PumaKLConfig(**config), train_dataset=dataset, **values)

    return make


def changed_parts(before, after, family):
    return {part_of(name, family) for name, value in after.items() if not torch.equal(before[name], value)}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["aligner"], {"aligner"}),
        ("aligner, vision_tower_low", {"aligner", "vision_tower_low"}),
        (["language_model"], {"language_model"}),
        (["all"], {"aligner", "language_model", "vision_tower_low"}),
    ],
)
def test_named_parts_train(make, tiny_model, rows, parts, expected):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make(Dataset.from_list(rows), model, trainable_parts=parts).train()
    assert changed_parts(before, model.state_dict(), get_family(model.config)) == expected


def test_without_named_parts_the_users_own_choice_holds(make, tiny_model, rows):
    model = tiny_model().requires_grad_(False)
    model.model.visual.merger.mlp[0].weight.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make(Dataset.from_list(rows), model).train()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]
    assert changed == ["model.visual.merger.mlp.0.weight"]


def test_unknown_part(make, rows):
    with pytest.raises(PumaError, match="aligner"):
        make(Dataset.from_list(rows), trainable_parts=["alginer"])


def test_class_and_script_give_equal_weights(make, tiny_model, processor, rows, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"trainable_parts": "aligner,vision_tower_low", "lambda_kl": 0.3, "seed": 7, "max_steps": 3}
    settings |= {"max_length": 200, "special_tokens": "escape", "lr_scheduler_type": "cosine"}
    flags = {"model_name_or_path": tmp_path / "model", "dataset_name": tmp_path / "pairs.jsonl", "dtype": "float32"}
    flags |= {"bf16": False, "use_cpu": True, "learning_rate": 0.1, "optim": "sgd", "report_to": "none"}
    flags |= {"save_strategy": "no", "output_dir": tmp_path / "script", **settings}
    run.main([str(piece) for name, value in flags.items() for piece in (f"--{name}", value)])
    expected = AutoModelForImageTextToText.from_pretrained(tmp_path / "script").state_dict()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    trainer = make(Dataset.from_list(rows), model, **settings)
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(expected[name], value), name


def test_max_length_holds(make, rows):
    long = rows[:3] + [rows[3] | {"instruction_2": "word " * 300}]
    with pytest.raises(DataError, match="train#4: too long: the vision-rich side has .* `max_length: 128`"):
        make(Dataset.from_list(long), max_length=128)
    trainer = make(Dataset.from_list(long), max_length=128, bad_rows="drop")
    assert len(trainer.train_dataset) == 3
    with pytest.raises(DataError, match="eval#4: too long"):
        make(Dataset.from_list(rows), max_length=128, eval_dataset=Dataset.from_list(long))
    with pytest.raises(DataError, match="eval#4: too long"):
        make(Dataset.from_list(rows), max_length=128).evaluate(Dataset.from_list(long))


def test_settings_stay_where_the_trainer_cannot_be_made(tiny_model, processor, rows, tmp_path):
    """So that the same ones, in a notebook, give what they say at the next try."""
    model = tiny_model()
    model.set_attn_implementation("varlen")
    args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True, report_to=[], padding_free=True)
    optimizer = torch.optim.SGD(model.parameters()), None
    with pytest.raises(RuntimeError, match="optimizer"):
        PumaKLTrainer(
            model,
            args,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            optimizers=optimizer,
            optimizer_cls_and_kwargs=(torch.optim.SGD, {}),
        )
    assert args.padding_free


def test_max_pixels_hold(make, rows, tmp_path):
    Image.new("RGB", (560, 560)).save(tmp_path / "large.png")
    large = [row | {"image_url_2": str(tmp_path / "large.png")} for row in rows]

    def count(**values):
        from puma_trl.mini import build_processor

        trainer = make(Dataset.from_list(large), processing_class=build_processor("qwen2_vl"), **values)
        return next(iter(trainer.get_train_dataloader()))["pixel_values"].shape[0]

    assert count(max_pixels=56 * 56) < count()


def test_other_forms_and_mappings(make, rows):
    messages = [
        {"images": [row["image_url_2"]]}
        | {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": row["output"]}]}
        for row in rows
    ]
    make(Dataset.from_list(messages), use_kl=False).train()
    renamed = [{"photo" if name == "image_url_2" else name: value for name, value in row.items()} for row in rows]
    with pytest.raises(DataError, match="photo"):
        make(Dataset.from_list(renamed))
    make(Dataset.from_list(renamed), columns={"image_url_2": "photo"}).train()


def test_rows_that_would_train_on_text_alone(make, rows):
    blind = Dataset.from_list([{name: value for name, value in row.items() if "image" not in name} for row in rows])
    with pytest.raises(DataError, match="picture"):
        make(blind)
    one_sided = blind.select_columns(["instruction", "output"])
    with pytest.raises(DataError, match="No row of the train dataset has a picture, but aligner, language_model"):
        make(one_sided, use_kl=False)
    make(one_sided, use_kl=False, allow_text_only=True).train()
    make(one_sided, use_kl=False, trainable_parts=["language_model"]).train()


def test_a_model_id_loads_its_processor(make, tiny_model, processor, rows, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    trainer = make(Dataset.from_list(rows), str(tmp_path / "model"), processing_class=None, trainable_parts="aligner")
    trainer.train()
    assert type(trainer.processing_class) is type(processor)
    with pytest.raises(ConfigError, match="`processing_class` is missing"):
        make(Dataset.from_list(rows), processing_class=None)


def test_collator_finds_its_family(processor, rows):
    rows = [row | {"image_url_2": [row["image_url_2"]], "image_url": []} for row in rows]
    batch = DataCollatorForPumaPairs(processor)(rows[:2])
    expected = DataCollatorForPumaPairs(processor, get_family_of("qwen2_vl"))(rows[:2])
    for name, value in expected.items():
        assert torch.equal(batch[name], value) if torch.is_tensor(value) else batch[name] == value, name


def get_family_of(model_type):
    from transformers import AutoConfig

    return get_family(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"])
def test_functions_of_logits_are_refused_with_pairs(make, rows, name):
    with pytest.raises(ConfigError, match=f"`{name}` cannot be used here"):
        make(Dataset.from_list(rows), **{name: lambda *args, **kwargs: None})


def test_formatting_func_is_refused_with_pictures(make, rows):
    with pytest.raises(ConfigError, match="`formatting_func` cannot be used here"):
        make(Dataset.from_list(rows), formatting_func=lambda row: "x")


def test_arguments_of_sft_trainer(make, tiny_model, rows):
    one_sided = Dataset.from_list([{name[:-2]: row[name] for name in row if name.endswith("_2")} for row in rows])
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make(one_sided, model, use_kl=False, optimizers=(optimizer, None)).train()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    trainer = make(one_sided, use_kl=False, optimizer_cls_and_kwargs=(torch.optim.Adagrad, {"lr": 0.01}))
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.Adagrad)
    metrics = make(
        one_sided,
        use_kl=False,
        eval_dataset=one_sided.map(lambda row: {"output": "It is not."}),
        compute_metrics=lambda prediction: {"seen": len(prediction.predictions)},
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    ).evaluate()
    assert metrics["eval_seen"] == len(rows)


def test_other_collators_are_tried_on_a_row(make, tiny_model, rows, processor):
    """TRL's, transformers' and one without the teacher's side are refused; ours in a function is not."""
    dataset, model = Dataset.from_list(rows), tiny_model()
    for collator in (DataCollatorForVisionLanguageModeling(processor), default_data_collator):
        with pytest.raises(ConfigError, match="`data_collator` .* was tried on the first row.*Leave it out"):
            make(dataset, model, data_collator=collator)
    sided = DataCollatorForPumaPairs(processor, use_kl=False)
    with pytest.raises(ConfigError, match="makes no `teacher_input_ids` of it"):
        make(dataset, model, data_collator=lambda rows: sided(rows))
    both = DataCollatorForPumaPairs(processor)
    trainer = make(dataset, model, data_collator=lambda rows: both(rows), max_steps=1)
    trainer.train()
    assert trainer.args.ddp_find_unused_parameters  # by which rows without pictures may come without a blank one


def test_files_are_read_as_the_refusal_says(make, rows, tmp_path, processor):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = PumaKLConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, dataset_num_proc=1)
    dataset = load_data(str(file), args, processor)[0]["train"]
    assert len(make(dataset).train_dataset) == len(rows)
    whole = PumaScriptArguments(dataset_name=[str(file)])
    known = load_data(whole, args, processor, get_family_of("qwen2_vl"))[0]["train"]
    assert dataset.to_list() == known.to_list() == load_data([file], args, processor)[0]["train"].to_list()
    with pytest.raises(DataError, match="`data` is of the type list. Give names of files"):
        load_data(rows, args, processor)


def test_streams_are_refused(make, rows):
    with pytest.raises(ConfigError, match="is a stream"):
        make(IterableDataset.from_generator(lambda: iter(rows)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"args": SFTConfig("out", use_cpu=True, bf16=False)},
            "`args` is of the type SFTConfig. Give",
        ),
        ({"args": {"output_dir": "out"}}, "`args` is of the type dict"),
        ({"model": Path("model")}, "`model` is of the type PosixPath.*its id or folder as text"),
        ({"model": torch.nn.Linear(2, 2)}, "`model` is of the type Linear"),
        ({"model": "/nowhere/at/all"}, "No model configuration was found for `model_name_or_path: /nowhere/at/all`"),
        (
            {"train_dataset": [{"instruction": "a"}]},
            "The train dataset is of the type list. Give a",
        ),
        (
            {"train_dataset": DatasetDict({"train": Dataset.from_list([{"instruction": "a"}])})},
            "The train dataset is of the type DatasetDict. Give .* a split of a `DatasetDict`",
        ),
        (
            {"train_dataset": "rows.jsonl"},
            r"is of the type str.*`load_data\(files, args, processor\)\[0\]",
        ),
        ({"eval_dataset": [{"instruction": "a"}]}, "The eval dataset is of the type list"),
        (
            {"eval_dataset": {"easy": torch.utils.data.TensorDataset()}},
            "The easy dataset is of the type Tensor",
        ),
        ({"eval_dataset": DatasetDict(train=Dataset.from_list([{}]))}, "names a dataset 'train'.*another name"),
    ],
)
def test_arguments_of_another_type(tiny_model, processor, rows, tmp_path, change, message):
    args = PumaKLConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    given = {"model": tiny_model(), "args": args, "train_dataset": Dataset.from_list(rows)}
    with pytest.raises(PumaError, match=message):
        PumaKLTrainer(processing_class=processor, **given | change)


def test_a_model_of_which_nothing_trains(make, tiny_model, rows):
    trainer = make(Dataset.from_list(rows), tiny_model().requires_grad_(False))
    assert "test_loss" in trainer.predict(Dataset.from_list(rows)).metrics
    with pytest.raises(ConfigError, match="No parameter of the model requires a gradient.*`trainable_parts`"):
        trainer.train()


def test_adapters_on_other_parts_than_the_named_ones(make, rows):
    lora = LoraConfig(r=2, target_modules=["q_proj"])  # of the language model
    with pytest.raises(ConfigError, match="the adapters train language_model too"):
        make(Dataset.from_list(rows), trainable_parts=["aligner"], peft_config=lora)
    make(Dataset.from_list(rows), trainable_parts=["language_model"], peft_config=lora)


def test_picture_that_breaks_while_training(make, rows, tmp_path, caplog):
    trainer = make(Dataset.from_list(rows), bad_rows="drop", max_steps=2, per_device_train_batch_size=6)
    (tmp_path / "3.png").write_bytes(b"broken by now")
    trainer.train()
    lines = (tmp_path / "out" / "dropped_rows.jsonl").read_text().splitlines()
    (dropped,) = map(json.loads, lines)  # once, though it was met in two epochs
    assert dropped["row_id"] == "train#4" and "3.png" in dropped["reason"]
    strict = make(Dataset.from_list([row for row in rows if "3.png" not in row["image_url_2"]]))
    (tmp_path / "2.png").write_bytes(b"broken by now")
    with pytest.raises(DataError, match="train#3: .*2.png"):
        strict.train()


@pytest.mark.parametrize("names", [["mine"], ["default", "mine"]])
def test_adapters_by_other_names(make, tiny_model, rows, names):
    """Else a teacher, a checkpoint and the card would be those of other adapters than the ones that train."""
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, model.peft_config["default"])
    model.set_adapter(names[-1])
    with pytest.raises(ConfigError, match="adapters 'mine'.*by the name `default` alone"):
        make(Dataset.from_list(rows), model, teacher="ema").train()
