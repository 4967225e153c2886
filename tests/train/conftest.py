import copy

import pytest
from accelerate import PartialState

from puma_trl.config import PumaKLConfig
from puma_trl.models.families import get_family
from puma_trl.models.parts import set_trainable_parts
from puma_trl.train.trainer import PumaKLTrainer

from ..test_run import folder, main  # noqa: F401, fixtures


@pytest.fixture
def accelerate_state():
    """What the loggers of accelerate ask for the rank."""
    return PartialState(cpu=True)


@pytest.fixture
def train(tmp_path, processor):
    """Returns a function that trains three steps, or as told, and returns the trainer."""

    def train(model, dataset, *, resume=None, eval_dataset=None, peft_config=None, parts=("all",), run=True, **kwargs):
        defaults = {
            "bf16": False,
            "gradient_checkpointing": False,
            "learning_rate": 0.1,
            "logging_steps": 1,
            "max_steps": 3,
            "optim": "sgd",  # AdamW's first steps are the signs of gradients, which rounding turns around
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
        }
        if peft_config is None:
            set_trainable_parts(model, list(parts), get_family(model.config))
        trainer = PumaKLTrainer(
            model=model,
            args=PumaKLConfig(**defaults | kwargs),
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            peft_config=copy.deepcopy(peft_config),
        )
        if run:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train
