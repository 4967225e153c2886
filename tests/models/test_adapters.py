"""Adapters on parts of the model, on whole and on nf4 weights: what trains and is quantised, teachers, resuming."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.evaluation.local_model import load_for_prompts
from puma_trl.models.adapters import build_peft_config
from puma_trl.models.families import Family, get_family
from puma_trl.models.load import load_config, load_model
from puma_trl.models.parts import count_parameters, part_of
from puma_trl.step.forward import SelfTeacher
from puma_trl.step.teacher import pair_adapters
from puma_trl.train.trainer import PumaKLTrainer

from .family_models import build_family


NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True}
STAGE2 = {"trainable_parts": ["aligner", "vision_tower_low", "vision_tower_high"]}


@pytest.fixture
def folder(tiny_model, processor, tmp_path):
    """A checkpoint whose language model is wide enough for blocks of 64 weights."""
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def make(folder, processor, pairs, tmp_path):
    """Returns a function that loads the model as the run script does, and gives the trainer."""

    def make(peft=(), *, dataset=None, **kwargs):
        model_args = ModelConfig(str(folder), use_peft=True, lora_r=4, **dict(peft))
        defaults = {
            "bf16": False,
            "gradient_checkpointing": False,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "max_steps": 3,
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
        }
        args = PumaKLConfig(**defaults | STAGE2 | kwargs)
        config = load_config(model_args, args)
        family = get_family(config)
        model = load_model(model_args, args, config, family)
        return PumaKLTrainer(
            model=model,
            args=args,
            train_dataset=dataset or pairs(6),
            processing_class=processor,
            peft_config=build_peft_config(model, model_args, args.trainable_parts, family),
        )

    return make


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before, model):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize(
    ("family_name", "bits"),
    [
        ("qwen2_vl", 4),
        ("qwen2_vl", 8),
        ("qwen3_vl", 4),
        ("deepseek_vl_hybrid", 4),
        ("math_puma_qwen2", 4),
        ("gemma3", 4),
    ],
)
def test_only_the_language_model_is_quantised(tmp_path, family_name, bits):
    processor, model = build_family(family_name)
    model.save_pretrained(tmp_path)
    model_args = ModelConfig(str(tmp_path), use_peft=True, load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True)
    config = load_config(model_args, args)
    family = get_family(config)
    model = load_model(model_args, args, config, family)
    head = model.get_output_embeddings()
    quantised = {name for name, module in model.named_modules() if type(module).__name__.startswith("Linear")}
    quantised -= {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and part_of(f"{name}.weight", family) == "language_model"
    }
    assert expected and quantised == expected
    for name, parameter in model.named_parameters():
        is_whole = parameter.is_floating_point() and parameter.dtype == torch.float32
        assert is_whole == (name.removesuffix(".weight") not in quantised), name


def test_nf4_with_double_quantisation(make):
    model = make(NF4).model
    weights = [p for n, p in model.named_parameters() if type(p).__name__ == "Params4bit"]
    assert weights
    assert all(p.quant_state.quant_type == "nf4" and p.quant_state.nested for p in weights)
    assert all(p.quant_state.dtype == torch.float32 for p in weights)  # back to the recipe's dtype


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("teacher", ["live", "ema"])
def test_counts_are_those_of_the_whole_model(make, tiny_model, bits, teacher):
    """Neither packed weights nor copies, of modules trained whole and of the teacher's adapters, change them."""
    model = make({bits: True, "lora_modules_to_save": ["aligner"]}, teacher=teacher).model
    family = get_family(model.config)
    counts, plain = count_parameters(model, family), count_parameters(tiny_model(), family)
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name and ".default." in name)
    assert counts == {
        "language_model": (0, plain["language_model"][1]),
        "aligner": plain["aligner"],
        "vision_tower_low": (adapters, plain["vision_tower_low"][1] + adapters),
    }


def test_the_teachers_pass_does_not_repack_nf4_weights(make, monkeypatch):
    """Bitsandbytes does that on CPUs with AVX512-BF16, and no gradient would reach the vision tower."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    trainer = make(NF4)
    before = snapshot(trainer.model)
    trainer.train()
    weights = [p for p in trainer.model.parameters() if type(p).__name__ == "Params4bit"]
    assert weights and all(p.quant_state.nested for p in weights)
    assert any("visual.blocks.0" in name for name in changed(before, trainer.model))


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"lora_target_modules": ["q_proj", "lm_head"]}, "matches `lm_head`.*lora_modules_to_save: \\[lm_head\\]"),
        ({"lora_target_modules": [".*(q_proj|head)"]}, "matches `lm_head`"),
        ({"lora_target_parameters": ["lm_head.weight"], "lora_target_modules": ["fc1"]}, "matches `lm_head`"),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, "no linear layer to adapt"),  # not of stage 2's parts
        ({"lora_modules_to_save": ["mergre"]}, "'mergre'.*aligner"),
        (NF4 | {"lora_modules_to_save": ["q_proj"]}, "'q_proj'.*is quantised"),
        (NF4 | {"lora_modules_to_save": ["language_model"]}, "'language_model'.*is quantised"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_adapters_that_could_not_train_are_refused(make, peft, message):
    with pytest.raises(ValueError, match=message.replace(".*", "(?s:.*)")):
        make(peft)


def test_quantised_weights_without_adapters_are_refused(folder, tmp_path):
    args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True)
    model_args = ModelConfig(str(folder), load_in_4bit=True)
    config = load_config(model_args, args)
    with pytest.raises(ValueError, match="need `use_peft: true`"):
        load_model(model_args, args, config, get_family(config))
    model_args.use_peft = True
    with pytest.raises(ValueError, match="which modules that is is not known"):
        load_model(model_args, args, config, Family(("qwen2_vl",), {}))


@pytest.mark.parametrize("targets", [["gate_proj", "up_proj"], ["gate_proj"]])
def test_targets_alone_are_taken_inside_the_parts(tiny_model, targets):
    model = tiny_model(family_name="qwen2_5_vl")  # both its language model and its tower have a gate_proj
    family = get_family(model.config)
    config = build_peft_config(
        model, ModelConfig(use_peft=True, lora_target_modules=targets), ["vision_tower_low"], family
    )
    assert all(name.startswith("model.visual.blocks.") for name in config.target_modules)
    assert {name.split(".")[-1] for name in config.target_modules} == set(targets)


def test_whole_parts_of_a_family_with_several_aligner_modules(tiny_model):
    _, model = build_family("qwen3_vl")
    args = ModelConfig(use_peft=True, lora_modules_to_save=["aligner"])
    config = build_peft_config(model, args, ["aligner", "vision_tower_low"], get_family(model.config))
    assert config.modules_to_save == [
        "model.visual.merger",
        "model.visual.deepstack_merger_list.0",
        "model.visual.deepstack_merger_list.1",
    ]
    _, model = build_family("llava_next")
    with pytest.raises(ValueError, match="image_newline.*Name the modules instead: model.multi_modal_projector"):
        build_peft_config(model, args, ["aligner", "vision_tower_low"], get_family(model.config))


@pytest.mark.parametrize("peft", [{}, NF4], ids=["lora", "qlora"])
@pytest.mark.parametrize("aligner", ["whole", "adapter"])
@pytest.mark.parametrize("variant", [{}, {"use_dora": True, "use_rslora": True}], ids=["plain", "dora"])
def test_stage_2_changes_adapters_and_aligner_alone(make, peft, aligner, variant):
    saved = {"lora_modules_to_save": ["aligner"]} if aligner == "whole" else {}
    trainer = make(peft | saved | variant)
    before = snapshot(trainer.model)
    adapters = {name for name in before if "lora_" in name}
    whole = {name for name in before if ".modules_to_save." in name}
    assert all(".visual." in name for name in adapters) and bool(whole) == (aligner == "whole")
    assert any("visual.blocks" in name for name in adapters)
    assert any("visual.merger" in name for name in (whole or adapters))
    assert all(before[name].dtype == torch.float32 for name in adapters | whole)
    trainer.train()
    assert changed(before, trainer.model) == adapters | whole
    assert all(torch.isfinite(trainer.model.get_parameter(name)).all() for name in adapters | whole)


@pytest.mark.parametrize("peft", [{}, NF4], ids=["lora", "qlora"])
def test_stage_3_adapts_language_model_and_aligner(make, pairs, peft):
    rows = pairs(6, text_rich_images=lambda index: 1).remove_columns(["image_url_2", "instruction_2", "output_2"])
    trainer = make(peft, dataset=rows, use_kl=False, trainable_parts=["language_model", "aligner"])
    before = snapshot(trainer.model)
    adapters = {name for name in before if "lora_" in name}
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == adapters
    parts = {part_of(name.removeprefix("base_model.model."), get_family(trainer.model.config)) for name in adapters}
    assert parts == {"language_model", "aligner"}
    assert not any("lm_head" in name for name in adapters)


@pytest.mark.parametrize("aligner", [{}, {"lora_modules_to_save": ["aligner"]}], ids=["adapter", "whole"])
def test_frozen_teacher_is_the_base_model(make, folder, pairs, processor, aligner):
    dataset = pairs(4, text_rich_images=lambda index: 1)
    frozen = make(aligner, dataset=dataset, teacher="frozen", per_device_train_batch_size=4, max_steps=4)
    assert isinstance(frozen.teacher, SelfTeacher)  # no second model
    frozen.train()
    teacher_ce = [logs["teacher_ce"] for logs in frozen.state.log_history if "teacher_ce" in logs]
    student_ce = [logs["ce"] for logs in frozen.state.log_history if "ce" in logs]
    assert teacher_ce == pytest.approx([teacher_ce[0]] * 4, rel=1e-6)
    assert abs(student_ce[-1] - student_ce[0]) > 1e-3
    # and training goes on with the adapters on
    assert all(p.requires_grad for n, p in frozen.model.named_parameters() if "lora_" in n)
    base = AutoModelForImageTextToText.from_pretrained(folder)
    batch = next(iter(frozen.get_train_dataloader()))
    inputs = {n: batch[f"teacher_{n}"] for n in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    inputs["mm_token_type_ids"] = batch["teacher_mm_token_type_ids"]
    with torch.no_grad(), frozen.model.disable_adapter():
        assert_close(frozen.model(**inputs).logits, base(**inputs).logits, rtol=0, atol=1e-5)


def test_whole_modules_start_from_the_exact_weights_of_the_base(make, folder):
    """TRL casts what trains to bf16 where the base is quantised."""
    model = make(NF4 | {"lora_modules_to_save": ["aligner"]}).model
    base = AutoModelForImageTextToText.from_pretrained(folder)
    trained = model.base_model.model.model.visual.merger.modules_to_save["default"]
    for name, value in base.model.visual.merger.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name


@pytest.mark.parametrize("peft", [{}, NF4], ids=["lora", "qlora"])
def test_bf16_base_and_autocast(make, peft):
    trainer = make(peft | {"dtype": "bfloat16", "lora_modules_to_save": ["aligner"]}, bf16=True, max_steps=2)
    before = snapshot(trainer.model)
    dtypes = {name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(dtypes.values()) == {torch.float32}
    trainer.train()
    assert changed(before, trainer.model) == set(dtypes)


def test_bf16_base_without_autocast(make):
    """Adapters learn in fp32; what trains whole has the dtype of its neighbours."""
    trainer = make({"dtype": "bfloat16", "lora_modules_to_save": ["aligner"]}, max_steps=1)
    trainer.train()
    dtypes = {name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {"lora_" in name: dtype for name, dtype in dtypes.items()} == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize("peft", [{}, NF4], ids=["lora", "qlora"])
@pytest.mark.parametrize("teacher", ["frozen", "ema"])
def test_resume_equals_an_uninterrupted_run(make, peft, teacher, tmp_path):
    peft = peft | {"lora_modules_to_save": ["aligner"], "use_dora": True}
    kwargs = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "teacher": teacher}
    whole = make(peft, **kwargs)
    whole.train()
    resumed = make(peft, **kwargs, output_dir=str(tmp_path / "rest"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, value in snapshot(whole.model).items():
        assert torch.equal(resumed.model.get_parameter(name), value), name
    for ours, again in zip(whole.state.log_history[:4], resumed.state.log_history[:4], strict=True):
        assert (again["loss"], again["grad_norm"]) == (ours["loss"], ours["grad_norm"])


def test_average_of_adapters_in_half_precision(make):
    """A step of the average is far below the spacing of bfloat16 near 1, 2^-7, and still counts."""

    def make_average():
        trainer = make(teacher="ema", teacher_update_rate=0.05)
        for _, teacher, student in pair_adapters(trainer.model):
            teacher.data = torch.ones_like(teacher, dtype=torch.bfloat16)
            student.data = torch.full_like(student, 1 + 2**-6, dtype=torch.bfloat16)
        return trainer, trainer.teacher.average

    trainer, average = make_average()
    for _ in range(20):
        average.on_step_end(trainer.args, trainer.state, None)
    _, resumed = make_average()
    resumed.restore(average.state())
    for each in (average, resumed):
        assert each.averages
        for name, teacher, _ in pair_adapters(each.model):
            value = 1 + 2**-6 * (1 - 0.95**20)
            assert_close(each.averages[name], torch.full_like(each.averages[name], value))
            assert torch.equal(teacher, each.averages[name].bfloat16())


def test_saved_adapter_gives_the_same_logits(make, folder, tmp_path):
    trainer = make({"lora_modules_to_save": ["aligner"], "use_rslora": True})
    trainer.train()
    trainer.save_model()
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(folder)
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), tmp_path / "out")
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    inputs["mm_token_type_ids"] = batch["mm_token_type_ids"]
    trainer.model.eval()
    with torch.no_grad():
        assert_close(loaded.eval()(**inputs).logits, trainer.model(**inputs).logits, rtol=0, atol=1e-6)


def test_adapters_name_their_base_by_its_whole_path(folder, tmp_path, monkeypatch):
    """Or they would load in one folder only."""
    monkeypatch.chdir(folder.parent)
    model = AutoModelForImageTextToText.from_pretrained("model")
    args = ModelConfig("model", use_peft=True, lora_r=2)
    model = get_peft_model(model, build_peft_config(model, args, ["aligner"], get_family(model.config)))
    model.save_pretrained(tmp_path / "adapters")
    monkeypatch.chdir(tmp_path / "adapters")
    assert PeftConfig.from_pretrained(".").base_model_name_or_path == str(folder)


def test_adapters_are_no_model(make, tmp_path):
    trainer = make(max_steps=1)
    trainer.save_model()
    message = "out holds adapters and no model.*`puma-trl merge .*out .*out-merged`"
    with pytest.raises(ValueError, match=message):
        load_config(ModelConfig(str(tmp_path / "out")), trainer.args)
    with pytest.raises(ValueError, match=message):
        load_for_prompts(str(tmp_path / "out"))
