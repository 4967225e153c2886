"""The model with all its weights, to generate with, under FSDP2 on one process."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard

from puma_trl.step.teacher import find_layers
from puma_trl.train.whole_model import describe_generation, whole_model


@pytest.mark.parametrize("use_peft", [False, True])
def test_before_the_first_step_under_fsdp2(tiny_model, processor, mesh, use_peft):
    """Parts that run first, as in sampling, must not take themselves for the whole model."""
    model = tiny_model()
    if use_peft:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    for module in [*find_layers(model.get_base_model() if use_peft else model), model]:
        fully_shard(module, mesh=mesh)
    args = SimpleNamespace(gradient_checkpointing_kwargs=None)
    trainer = SimpleNamespace(
        model_wrapped=model,
        accelerator=Accelerator(cpu=True),
        processing_class=processor,
        args=args,
        generation_seen=describe_generation(model.generation_config),
    )
    inputs = torch.ones(1, 2, dtype=torch.long)
    with whole_model(trainer) as whole:
        sampled = whole.model.language_model(input_ids=inputs).last_hidden_state
    hidden = model(input_ids=inputs, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(sampled, hidden)
