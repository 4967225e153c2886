"""Every family: the pair step, its parts, saving and loading, resuming, text-only rows, several images."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor

from puma_trl.config import PumaKLConfig
from puma_trl.data.checks import TokenCounter
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.images import open_image
from puma_trl.data.render import render_prompt
from puma_trl.models.families import get_family
from puma_trl.models.families.family import Family
from puma_trl.models.parts import part_of, select_parts, set_trainable_parts
from puma_trl.train.trainer import PumaKLTrainer

from .family_models import MINI, OTHERS, build_family


STAGE2 = ["aligner", "vision_tower_low", "vision_tower_high"]
TOWERS = {"deepseek_vl_hybrid": {"vision_tower_low", "vision_tower_high"}}


@pytest.fixture(params=[*MINI, *OTHERS])
def name(request):
    return request.param


@pytest.fixture
def data(pairs):
    """Pairs whose text-rich side has an image in every second row, and whose vision-rich side has none, one or two."""
    return pairs(6, text_rich_images=lambda index: index % 2, vision_rich_images=lambda index: index % 3)


@pytest.fixture
def train(tmp_path, data):
    def train(processor, model, *, folder="out", resume=None, parts=("all",), **kwargs):
        set_trainable_parts(model, list(parts), get_family(model.config))
        arguments = {
            "bf16": False,
            "gradient_checkpointing": False,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "max_steps": 2,
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": 3,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
        }
        args = PumaKLConfig(**arguments | kwargs)
        trainer = PumaKLTrainer(model=model, args=args, train_dataset=data, processing_class=processor)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_pair_step_changes_exactly_the_trainable_parts(name, train):
    processor, model = build_family(name)
    family, before = get_family(model.config), state(model)
    trainer = train(processor, model, parts=STAGE2, lambda_kl=0.5, learning_rate=0.1, weight_decay=0.1)
    logs = trainer.state.log_history[0]
    assert logs["kl"] > 0 and logs["teacher_ce"] > 0
    changed = {key for key, value in state(model).items() if not torch.equal(value, before[key])}
    parts = {part_of(key, family) for key in before}
    assert parts == {"language_model", "aligner"} | TOWERS.get(name, {"vision_tower_low"})
    assert {part_of(key, family) for key in changed} == parts - {"language_model"}
    named = {key for key in before if part_of(key, family) != "language_model"}
    # weight decay moves every matrix that has a gradient; what is not used has none
    assert changed <= named
    assert len(changed) > 0.6 * len(named)


def test_save_and_load(name, train, tmp_path, data):
    processor, model = build_family(name)
    names = set(model.state_dict())
    trainer = train(processor, model)
    trainer.save_model()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(model) and set(loaded.state_dict()) == names
    again = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(again) is type(processor)
    batches = []
    for piece in (processor, again):
        batch = DataCollatorForPumaPairs(piece, get_family(model.config), use_kl=False)(
            [{key: row[key] for key in ("row_id", "image_url", "instruction", "output")} for row in data]
        )
        batch.pop("row_id"), batch.pop("blank_tokens", None)
        batches.append(batch)
    assert batches[0].keys() == batches[1].keys()
    for key, value in batches[0].items():
        assert torch.equal(torch.as_tensor(batches[1][key]), torch.as_tensor(value)), key
    with torch.no_grad():
        outputs = [each.eval()(**batches[0]).logits for each in (model, loaded)]
    assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_resume_is_exact(name, train, tmp_path):
    processor, model = build_family(name)
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = train(processor, model, folder="whole", **options)
    processor, model = build_family(name)
    rest = train(processor, model, folder="rest", resume=str(tmp_path / "whole" / "checkpoint-1"), **options)
    losses = [[logs["loss"] for logs in each.state.log_history if "loss" in logs] for each in (whole, rest)]
    assert losses[0] == losses[1]
    for key, value in state(whole.model).items():
        assert torch.equal(rest.model.get_parameter(key), value), key


@pytest.mark.slow
def test_text_only_rows_of_stage_3(name, pairs, train):
    """A batch without a single image still trains: the hidden placeholder image is invisible to the answer."""
    processor, model = build_family(name)
    family = get_family(model.config)
    rows = list(pairs(3, text_rich_images=lambda index: 0, vision_rich_images=lambda index: 0))
    sides = [{key: row[key] for key in ("row_id", "image_url", "instruction", "output")} for row in rows]
    batch = DataCollatorForPumaPairs(processor, family, use_kl=False)(sides)
    batch.pop("row_id"), batch.pop("blank_tokens")
    assert "pixel_values" in batch
    texts = [render_prompt(processor, row["instruction"], 0) + row["output"] for row in rows]
    plain = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model.eval()(**batch).logits
        for index, ids in enumerate(plain):
            alone = model(input_ids=torch.tensor([ids])).logits[0]
            start = int(batch["attention_mask"][index].argmax())
            assert batch["input_ids"][index, start : start + len(ids)].tolist() == ids
            assert_close(logits[index, start : start + len(ids)], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_images", [1, 2])
def test_lengths_are_those_of_the_processor(name, data, num_images):
    processor, model = build_family(name)
    counter = TokenCounter(processor, get_family(model.config))
    images = [open_image(image) for image in data[num_images]["image_url_2"]]
    assert len(images) == num_images
    prompt = render_prompt(processor, "How many?", num_images)
    expanded = processor(images=[images], text=[prompt], add_special_tokens=False)["input_ids"][0]
    counted = counter.count_texts([prompt])[0] + sum(
        counter.count_image((image.height, image.width)) for image in images
    )
    if name == "llava_onevision" and num_images > 1:
        # it does not cut the images of a prompt with several into patches; the count, which takes each image alone,
        # is then an upper bound
        assert counted > len(expanded)
    else:
        assert counted == len(expanded)


def test_a_family_that_is_not_known():
    """Prefixes name what trains, and the error shows the modules to two levels."""
    _, model = build_family("llava")
    family = Family(model_types=("unheard_of",), parts={})
    chosen = select_parts(model, ["model.multi_modal_projector."], family)
    assert set(chosen["model.multi_modal_projector."]) == {
        key for key, _ in model.named_parameters() if key.startswith("model.multi_modal_projector.")
    }
    with pytest.raises(ValueError, match="not a part of this model") as error:
        select_parts(model, ["aligner"], family)
    assert "\nmodel\n  model.vision_tower\n  model.multi_modal_projector\n  model.language_model\nlm_head" in str(
        error.value
    )
