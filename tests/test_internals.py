"""The internals of TRL, transformers and accelerate that the package leans on; a failure here names what moved."""

import inspect

from accelerate.state import GradientState
from bitsandbytes.nn import Linear4bit
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from trl import SFTConfig, SFTTrainer
from trl.experimental.sdft.teacher_sync import SyncTeacherModelCallback
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from trl.trainer.utils import add_fused_lm_head, maybe_gather_lm_head_ctx


def parameters(function):
    return list(inspect.signature(function).parameters)


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
    # the marker must be written after all parts of the checkpoint and before older ones are deleted
    saving = inspect.getsource(Trainer._save_checkpoint)
    assert saving.index("_save_rng_state(") < saving.index("save_to_json(") < saving.index("rotate_checkpoints(")
    assert "self._run_epoch(" in inspect.getsource(Trainer._inner_training_loop)
    assert "self.model_accepts_loss_kwargs" in inspect.getsource(Trainer._get_num_items_in_batch)
    # why `_load_from_checkpoint` is overridden: names are ignored and mismatches pass
    assert "model.load_state_dict(state_dict, False)" in inspect.getsource(Trainer._load_from_checkpoint)


def test_teacher_callback_reads_our_arguments():
    source = inspect.getsource(SyncTeacherModelCallback.on_step_end)
    assert "args.teacher_sync_steps" in source and "args.teacher_update_rate" in source


def test_quantised_layers_read_the_switch_for_inference_on_cpus():
    assert "and self.support_avx512bf16_for_cpu" in inspect.getsource(Linear4bit.forward)


def test_accelerate_tells_of_repeated_rows():
    assert isinstance(GradientState.end_of_dataloader, property)
    assert "active_dataloader" in inspect.getsource(GradientState)


def test_vision_collator_tokenises_both_pieces_alone():
    source = inspect.getsource(DataCollatorForVisionLanguageModeling._collate_prompt_completion)
    assert source.count("add_special_tokens=False") == 2
    assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
