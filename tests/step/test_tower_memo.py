from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model

from puma_trl.config import PumaKLConfig
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.models.families import get_family
from puma_trl.models.parts import set_trainable_parts
from puma_trl.step.forward import SelfTeacher, add_pair_forward
from puma_trl.step.tower_memo import TowerMemo, frozen_vision_modules


@pytest.fixture
def step(tiny_model, processor, pairs, tmp_path):
    """Returns a function that runs a pair step and returns its loss, gradients and number of block calls."""

    def step(parts, same, with_memo, lora_targets=None, teacher="live", checkpointing=False):
        rows = [dict(row) for row in pairs(3, text_rich_images=lambda index: 1)]
        if same:
            rows = [row | {"image_url": row["image_url_2"]} for row in rows]
        model = tiny_model()
        family = get_family(model.config)
        if parts:
            set_trainable_parts(model, parts, family)
        else:
            model.requires_grad_(False)
        weights = nullcontext
        if lora_targets:
            torch.manual_seed(0)
            lora = LoraConfig(target_modules=lora_targets, modules_to_save=["merger"], init_lora_weights=False)
            adapted = get_peft_model(model, lora)
            weights = adapted.disable_adapter if teacher == "frozen" else nullcontext
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        model.train()
        memo = TowerMemo(model, family) if with_memo else None
        calls = []
        for block in model.model.visual.blocks:
            # hooks run whether or not the work is skipped, so look at what is inside
            block.attn.register_forward_hook(lambda *_: calls.append(1))
        args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, lambda_kl=0.5)
        add_pair_forward(model, args, SelfTeacher(weights), memo)
        batch = DataCollatorForPumaPairs(processor, family)(rows)
        batch.pop("row_id")
        assert batch["same_images"] is same
        teacher = {name: batch.pop(name) for name in list(batch) if name.startswith("teacher_")}
        teacher = {name.removeprefix("teacher_"): value for name, value in teacher.items()}
        loss = model(**batch, teacher_inputs=teacher, num_items_in_batch=None).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return loss.item(), gradients, len(calls)

    return step


@pytest.mark.parametrize(
    ("parts", "same", "expected_calls"),
    [
        (["aligner"], True, 2),  # two blocks, once
        (["language_model"], True, 2),
        (["aligner"], False, 4),
        (["aligner", "vision_tower_low"], True, 4),  # the tower trains
        (["model.visual.blocks.0.", "aligner"], True, 4),  # what follows depends on the block that trains
        (["model.visual.blocks.1.", "aligner"], True, 4),
    ],
    ids=["tower-frozen", "vision-frozen", "other-images", "tower-trains", "first-trains", "last-trains"],
)
def test_frozen_modules_run_once_for_the_same_pictures(step, parts, same, expected_calls):
    loss, gradients, calls = step(parts, same, with_memo=True)
    expected_loss, expected_gradients, all_calls = step(parts, same, with_memo=False)
    assert (calls, all_calls) == (expected_calls, 4)
    assert_same(loss, gradients, expected_loss, expected_gradients)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("teacher", ["live", "frozen"])
@pytest.mark.parametrize(
    ("targets", "shared"),
    [(r".*visual\.blocks.*(qkv|fc1)", False), (r".*language_model.*(q|v)_proj", True)],
    ids=["tower-adapted", "tower-frozen"],
)
def test_adapters(step, targets, shared, teacher, checkpointing):
    options = {"lora_targets": targets, "teacher": teacher, "checkpointing": checkpointing}
    loss, gradients, calls = step([], True, with_memo=True, **options)
    expected_loss, expected_gradients, all_calls = step([], True, with_memo=False, **options)
    assert (calls < all_calls) is shared
    assert_same(loss, gradients, expected_loss, expected_gradients)


def assert_same(loss, gradients, expected_loss, expected_gradients):
    assert loss == expected_loss
    assert gradients.keys() == expected_gradients.keys() and gradients
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradients[name], gradient), name


def test_frozen_vision_modules(tiny_model):
    model = tiny_model()
    family = get_family(model.config)
    set_trainable_parts(model, ["aligner"], family)
    visual = model.model.visual
    assert frozen_vision_modules(model, family) == [visual.patch_embed, *visual.blocks]
    set_trainable_parts(model, ["all"], family)
    assert frozen_vision_modules(model, family) == []


def test_a_pass_that_an_error_ended_leaves_nothing_behind(tiny_model):
    """As one without memory, which is tried again with fewer rows, or an interrupted one in a notebook."""
    model = tiny_model()
    family = get_family(model.config)
    set_trainable_parts(model, ["aligner"], family)
    memo, visual = TowerMemo(model, family), model.model.visual
    grid = torch.tensor([[1, 4, 4]])
    lost, pixels = torch.randn(2, 16, visual.patch_embed.proj.weight[0].numel())
    expected = visual(pixels, grid).pooler_output
    with pytest.raises(KeyboardInterrupt), memo.record():
        visual(lost, grid)
        raise KeyboardInterrupt
    for _ in range(2):
        with memo.record():
            visual(pixels, grid)
        with memo.replay():
            assert torch.equal(visual(pixels, grid).pooler_output, expected)
    visual(pixels, grid)
    assert not any(memo._outputs.values())  # of a pass whose pictures are not those of the other
