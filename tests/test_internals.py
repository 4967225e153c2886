"""
The internals of other libraries that the package leans on, where a failure names what moved; and their faults that it
works around, where a failure says that the workaround can go.
"""

import copy
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import DataLoaderShard
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import fsdp_utils
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from deepspeed.utils import groups
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import (
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    SiglipImageProcessor,
    Trainer,
    TrainingArguments,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.integrations.deepspeed import _load_state_dict_into_zero3_model
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.trainer_utils import rotate_checkpoints
from trl import ModelConfig, SFTConfig, SFTTrainer, get_quantization_config
from trl.experimental.sdft.teacher_sync import SyncTeacherModelCallback
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from trl.trainer.utils import add_fused_lm_head, maybe_gather_lm_head_ctx

from puma_trl.mini import build_tokenizer


PACKAGE = Path(__file__).parents[1] / "puma_trl"
WORKAROUND = re.compile(r"Workaround \(([A-Za-z]+) [\d.]+, (?:[\w.-]+/[\w.-]+#\d+|no upstream issue found)\): ")


def parameters(function):
    return list(inspect.signature(function).parameters)


def mended(path):
    assert (PACKAGE / path).exists()
    return f"mended upstream: delete the workaround in puma_trl/{path}"


@pytest.fixture
def make_trainer(tmp_path):
    """Returns a function that makes transformers' own trainer of a model."""

    def make(model, train_dataset=None, **options):
        args = TrainingArguments(tmp_path, use_cpu=True, report_to="none", disable_tqdm=True, **options)
        return Trainer(model, args, train_dataset=train_dataset)

    return make


def test_sft_trainer():
    source = inspect.getsource(SFTTrainer)
    assert "self._metrics[mode]" in source and "self._total_train_tokens" in source
    assert "fused_lm_head=True" in inspect.getsource(SFTTrainer.compute_loss)
    assert "dataset_kwargs" in SFTConfig.__dataclass_fields__
    assert parameters(SFTTrainer._set_signature_columns_if_needed) == ["self"]
    assert parameters(SFTTrainer.prediction_step)[1:4] == ["model", "inputs", "prediction_loss_only"]


def test_fused_head_replaces_the_forward_of_the_instance():
    source = inspect.getsource(add_fused_lm_head)
    assert "model.forward = types.MethodType" in source
    assert "_paper" in dir(SFTTrainer) and parameters(maybe_gather_lm_head_ctx) == ["params"]


def test_trainer():
    assert "self._get_num_items_in_batch(batch_samples, device)" in inspect.getsource(Trainer.get_batch_samples)
    assert parameters(Trainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert parameters(Trainer._load_best_model) == ["self"]
    assert parameters(Trainer._get_train_sampler) == ["self", "train_dataset"]
    assert parameters(Trainer._determine_best_metric) == ["self", "metrics", "trial"]
    assert parameters(Trainer._save_checkpoint) == ["self", "model", "trial"]
    # the marker must be written after all parts of the checkpoint, and before older ones are deleted or it is pushed
    saving = inspect.getsource(Trainer._save_checkpoint)
    order = ["self.save_model(", "_save_rng_state(", "save_to_json(", "_push_from_checkpoint(", "rotate_checkpoints("]
    assert [saving.index(name) for name in order] == sorted(saving.index(name) for name in order)
    assert "save_total_limit=self.args.save_total_limit" in saving  # read after the model is saved
    assert "if save_total_limit is None" in inspect.getsource(rotate_checkpoints)
    assert "self.args.save_total_limit == 1" in inspect.getsource(Trainer._finalize_training)
    assert "self._run_epoch(" in inspect.getsource(Trainer._inner_training_loop)
    loop = ["self", "batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]
    assert parameters(Trainer._inner_training_loop) == loop
    assert parameters(Trainer.train) == ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]
    assert parameters(Trainer._prepare_for_training)[1:] == ["max_steps", "train_dataloader", "resume_from_checkpoint"]
    # what `auto_find_batch_size` goes on with
    assert "self._train_batch_size = state.train_batch_size" in inspect.getsource(Trainer.train)
    assert "self.model_accepts_loss_kwargs" in inspect.getsource(Trainer._get_num_items_in_batch)


def test_teacher_callback_reads_our_arguments():
    source = inspect.getsource(SyncTeacherModelCallback.on_step_end)
    assert "args.teacher_sync_steps" in source and "args.teacher_update_rate" in source


def test_accelerate_tells_of_repeated_rows():
    assert isinstance(GradientState.end_of_dataloader, property)
    assert "active_dataloader" in inspect.getsource(GradientState)


def test_a_prepared_loader_reads_by_the_one_in_it():
    assert "self.base_dataloader.__iter__()" in inspect.getsource(DataLoaderShard.__iter__)


def test_vision_collator_tokenises_both_pieces_alone():
    source = inspect.getsource(DataCollatorForVisionLanguageModeling._collate_prompt_completion)
    assert source.count("add_special_tokens=False") == 2
    assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


# Faults


def test_workarounds_name_library_version_and_issue_and_have_a_test():
    tests = Path(__file__).read_text()
    for path in PACKAGE.rglob("*.py"):
        text = re.sub(r"\n\s*(# )?", " ", path.read_text())
        name = path.relative_to(PACKAGE).as_posix()
        found = WORKAROUND.findall(text)
        assert len(found) == text.count("Workaround"), f"puma_trl/{name}: write `Workaround (LIBRARY 1.2, ISSUE): …`"
        assert tests.count(f'mended("{name}")') >= len(found), f"puma_trl/{name}: each workaround needs a test here"


@pytest.mark.parametrize("model_class", [Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration])
def test_models_deny_that_they_take_the_number_of_tokens(model_class):
    assert model_class.accepts_loss_kwargs is False, mended("train/trainer.py")


def test_zero3_keeps_renamings_that_loading_did_not_use(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    names = set(load_file(file))
    loading = SimpleNamespace(weight_mapping=get_model_conversion_mapping(model))
    _load_state_dict_into_zero3_model(model, load_file(file), loading)
    model.save_pretrained(tmp_path)
    assert set(load_file(file)) != names, mended("train/trainer.py")


def test_folders_with_names_like_those_of_checkpoints_are_deleted(tmp_path):
    for name in ("checkpoint-1.bak", "checkpoint-2", "checkpoint-3"):
        (tmp_path / name).mkdir()
    rotate_checkpoints(str(tmp_path), save_total_limit=2, use_mtime=True)
    assert not (tmp_path / "checkpoint-1.bak").exists(), mended("train/checkpoints.py")


def test_fsdp_is_left_out_on_a_cpu():
    source = inspect.getsource(AcceleratorState.__init__)
    chosen = source[: source.index("self.distributed_type = DistributedType.FSDP")].rpartition("elif")[2]
    assert "MULTI_GPU" in chosen and "MULTI_CPU" not in chosen, mended("train/trainer.py")


class Line(torch.nn.Module):
    """A model of one weight."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x, labels):
        return {"loss": (self.linear(x) - labels).square().mean()}


def test_a_run_resumed_from_its_last_step_takes_another(make_trainer, tmp_path):
    data, options = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 16, {"max_steps": 1, "save_steps": 1}
    make_trainer(Line(), data, **options).train()
    resumed = make_trainer(Line(), data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2, mended("train/checkpoints.py")


def test_a_resumed_run_keeps_the_weights_of_the_base(tiny_model, make_trainer, tmp_path):
    saved, model = tiny_model(seed=1), tiny_model(seed=0)
    saved.save_pretrained(tmp_path)
    make_trainer(model)._load_from_checkpoint(str(tmp_path))
    expected = saved.state_dict()
    same = [torch.equal(value, expected[name]) for name, value in model.state_dict().items()]
    assert not all(same), mended("train/checkpoints.py")


def test_length_grouped_order_hangs_on_the_global_random_state(make_trainer):
    data = Dataset.from_dict({"length": list(range(64))})
    sampler = make_trainer(Line(), data, train_sampling_strategy="group_by_length")._get_train_sampler()
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        orders.append(list(sampler))
    assert orders[0] != orders[1], mended("train/sampling.py")


def test_remainder_is_unknown_where_batches_are_skipped():
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(range(10), batch_size=4))

    def remainders(loader):
        return {accelerator.gradient_state.remainder for _ in loader}

    assert remainders(loader) == {2}
    assert remainders(skip_first_batches(loader, 1)) == {-1}, mended("train/sampling.py")


def test_fsdp_makes_no_fp32_copies_beside_weights_in_4_bits():
    source = inspect.getsource(fsdp_utils.fsdp2_prepare_model)
    condition = 'if accelerator.mixed_precision != "no" and not model_has_params4bit:'
    assert condition in source, mended("train/precision.py")


def test_adapters_on_quantised_weights_become_bf16(tiny_model, processor, tmp_path):
    model = tiny_model()
    model.is_loaded_in_4bit = True
    options = {"max_length": None, "report_to": "none", "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = SFTTrainer(
        model,
        SFTConfig(tmp_path, use_cpu=True, bf16=False, **options),
        train_dataset=Dataset.from_list([{"prompt": "", "completion": "", "images": []}]),
        processing_class=processor,
        peft_config=LoraConfig(target_modules=["q_proj"]),
    )
    dtypes = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.bfloat16}, mended("models/adapters.py")


def test_quantised_layers_stay_packed_for_inference(monkeypatch):
    calls = []

    def kernel(x, weight, out=None, state=None):
        calls.append(x)
        return x.new_zeros(*x.shape[:-1], state.shape[0])

    monkeypatch.setattr("bitsandbytes.functional.gemv_4bit", kernel)
    layer = Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = True  # whatever this machine is
    with torch.no_grad():
        layer.eval()(torch.ones(1, 64))
    assert len(calls) == 1
    layer.train()(torch.ones(1, 64, requires_grad=True))  # by the kernel for inference, which has no backward
    assert len(calls) == 2, mended("models/load.py")


def test_quantisation_takes_auto_for_a_dtype():
    try:
        get_quantization_config(ModelConfig(load_in_4bit=True, dtype="auto"))
    except AttributeError:
        return
    pytest.fail(mended("models/load.py"))


def test_head_of_a_vision_language_model_is_a_unit_of_its_own_under_fsdp2(tiny_model):
    assert fsdp_utils._find_final_norm(tiny_model()) is None, mended("step/forward.py")


def test_fused_head_takes_the_gradient_of_one_rank_under_fsdp2():
    source = inspect.getsource(add_fused_lm_head)
    # the gradients of the ranks are averaged with `grad_placements` alone
    assert "weight = weight.full_tensor()" in source, mended("step/forward.py")


def test_a_copy_with_the_fused_head_runs_the_original(tiny_model):
    model = tiny_model()
    add_fused_lm_head(model)
    copied = copy.deepcopy(model)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert not copied(input_ids=torch.ones(1, 2, dtype=torch.long)).logits.any(), mended("step/teacher.py")


def test_groups_within_nodes_are_made_anew_for_each_model(monkeypatch):
    monkeypatch.setattr(groups.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(groups, "_ZERO_PARAM_INTRA_PARALLEL_GROUP", object())
    try:
        groups._create_zero_param_parallel_group(8)
    except AssertionError:
        return
    pytest.fail(mended("models/teacher_model.py"))


def test_adapters_that_were_not_gathered_are_looked_for(tiny_model, tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["merger"]))
    model.add_adapter("teacher", model.peft_config["default"])
    gathered = {name: value for name, value in model.state_dict().items() if ".default." in name}
    try:
        model.save_pretrained(tmp_path, state_dict=gathered)
    except KeyError:
        return
    pytest.fail(mended("step/teacher.py"))


@pytest.mark.parametrize("message", [mended("run.py"), mended("evaluation/generate.py")])
def test_process_groups_do_not_end_before_the_interpreter(message):
    assert "atexit" not in inspect.getsource(distributed_c10d), message


@pytest.mark.parametrize("message", [mended("models/families/math_puma_qwen2.py"), mended("data/checks.py")])
def test_llava_counts_image_tokens_by_the_crop(message):
    image_processor = SiglipImageProcessor(size={"height": 84, "width": 84})  # which does not crop
    tokenizer = build_tokenizer("math_puma_qwen2")
    processor = LlavaProcessor(image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default")
    try:
        processor._get_num_multimodal_tokens(image_sizes=[(84, 84)])
    except TypeError:
        return
    pytest.fail(message)


def test_pictures_of_16_bits_are_clipped():
    assert Image.new("I;16", (1, 1), 20_000).convert("RGB").getpixel((0, 0)) == (255,) * 3, mended("data/images.py")


def test_sam_looks_its_attention_up_in_a_table():
    from transformers.models.sam import modeling_sam

    source = inspect.getsource(modeling_sam.SamVisionLayer)
    assert "SAM_VISION_ATTENTION_CLASSES[config._attn_implementation]" in source, mended("models/attention.py")


def test_colocated_vllm_gets_prompts_as_they_are():
    from trl.generation.vllm_generation import VLLMGeneration

    source = inspect.getsource(VLLMGeneration.generate)
    assert 'row = {"prompt_token_ids": ids}' in source, mended("train/vllm_sampling.py")


def test_what_vllm_keeps_of_pictures_outlives_new_weights():
    from trl.generation import vllm_client, vllm_generation

    source = inspect.getsource(vllm_generation) + inspect.getsource(vllm_client)
    assert "reset_prefix_cache" in source and "reset_encoder_cache" not in source, mended("train/vllm_sampling.py")


def test_fsdp2_takes_the_first_module_that_runs_for_the_outermost(tiny_model, mesh):
    model = tiny_model()
    for module in (model.model.language_model, model):
        fully_shard(module, mesh=mesh)
    ids = torch.ones(1, 2, dtype=torch.long)
    model.model.language_model(input_ids=ids)
    with pytest.raises(RuntimeError, match="already been lazily initialized"):
        model(input_ids=ids)
        raise AssertionError(mended("train/whole_model.py"))
