"""Stage 1 on a text model alone, through TRL's text path; then assembled, then trained on pairs."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from puma_trl import run
from puma_trl.checkpoints.assemble import assemble
from puma_trl.config import PumaKLConfig
from puma_trl.mini import write_data
from puma_trl.train.sampling import mask_repeated_rows
from puma_trl.train.trainer import PumaKLTrainer

from ..checkpoints.test_assemble import write_language_model, write_tower


FLAGS = [
    "--bf16=false", "--gradient_checkpointing=false", "--logging_steps=1", "--report_to=none", "--save_strategy=no",
    "--use_cpu=true", "--per_device_train_batch_size=4",
]  # fmt: skip


def losses(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [logs["loss"] for logs in log if "loss" in logs]


@pytest.mark.parametrize("packing", ["false", "true"])
def test_text_model_then_assembled_then_pairs(tmp_path, packing):
    write_data(tmp_path / "data", num_rows=40, num_heldout=4, seed=0, num_proc=1)
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    run.main(
        [
            f"--model_name_or_path={text}",
            f"--dataset_name={tmp_path / 'data' / 'stage1.jsonl'}",
            f"--output_dir={tmp_path / 'stage1'}",
            "--use_kl=false",
            "--trainable_parts=language_model",
            f"--packing={packing}",
            "--max_length=256",
            "--max_steps=6",
            "--learning_rate=1e-2",
            *FLAGS,
        ]
    )
    stage1 = losses(tmp_path / "stage1")
    assert stage1[-1] < 0.8 * stage1[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stage1")
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert AutoTokenizer.from_pretrained(tmp_path / "stage1").chat_template is not None

    assemble(str(tmp_path / "stage1"), tower, "gated_mlp", tmp_path / "assembled")
    run.main(
        [
            f"--model_name_or_path={tmp_path / 'assembled'}",
            f"--dataset_name={tmp_path / 'data' / 'stage2.jsonl'}",
            f"--output_dir={tmp_path / 'stage2'}",
            "--trainable_parts=aligner,vision_tower_low",
            "--max_steps=2",
            *FLAGS,
        ]
    )
    assert len(losses(tmp_path / "stage2")) == 2
    assert torch.isfinite(torch.tensor(losses(tmp_path / "stage2"))).all()


def test_padding_free_with_the_attention_of_the_recipes(tmp_path):
    """TRL refuses `max_length` beside `padding_free`, but no row that was checked is longer."""
    folder = write_language_model(tmp_path / "text")
    rows = Dataset.from_list(
        [{"instruction": "one " * (1 + 3 * (i % 3)), "output": "so " * (i % 4) + "two"} for i in range(4)]
    )
    losses = {}
    for padding_free, attention in ((False, "sdpa"), (True, "varlen")):
        args = PumaKLConfig(
            str(tmp_path / attention),
            bf16=False,
            gradient_checkpointing=False,
            max_length=64,
            model_init_kwargs={"attn_implementation": attention, "dtype": "float32"},
            padding_free=padding_free,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            use_kl=False,
        )
        trainer = PumaKLTrainer(str(folder), args, train_dataset=rows)
        batch = next(iter(trainer.get_train_dataloader()))
        assert (trainer.args.max_length, trainer.args.padding_free) == (64, padding_free)
        assert len(batch["input_ids"]) == (1 if padding_free else 4)
        losses[attention] = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(9.0))
    torch.testing.assert_close(losses["varlen"], losses["sdpa"])
    with pytest.raises(ValueError, match="`max_length` is not enforced"):  # by rows that TRL reads
        PumaKLTrainer(str(folder), args, train_dataset=Dataset.from_list([{"text": "one two"}]))


def test_pairs_need_a_vision_language_model(tmp_path):
    write_data(tmp_path / "data", num_rows=20, num_heldout=2, seed=0, num_proc=1)
    text = write_language_model(tmp_path / "text")
    flags = [f"--model_name_or_path={text}", f"--dataset_name={tmp_path / 'data' / 'stage2.jsonl'}"]
    with pytest.raises(ValueError, match="`use_kl: true` needs the processor of a vision-language model"):
        run.main([*flags, f"--output_dir={tmp_path / 'out'}", *FLAGS])


@pytest.mark.parametrize("packing", [False, True])
def test_last_batch_of_two_processes(tmp_path, monkeypatch, packing):
    """Of 7 rows in batches of 2, the second process has the last one and a repeated one; packed, both are one row."""
    write_data(tmp_path / "data", num_rows=20, num_heldout=2, seed=0, num_proc=1)
    trainers = []
    monkeypatch.setattr(PumaKLTrainer, "train", lambda self, **kwargs: trainers.append(self))
    text = write_language_model(tmp_path / "text")
    flags = [f"--model_name_or_path={text}", f"--dataset_name={tmp_path / 'data' / 'stage1.jsonl'}"]
    flags += [f"--output_dir={tmp_path / 'out'}", "--use_kl=false", f"--packing={packing}", "--max_length=256"]
    run.main([*flags, *FLAGS])
    (trainer,) = trainers
    loader = SimpleNamespace(dataset=range(7))
    state = SimpleNamespace(end_of_dataloader=True, active_dataloader=loader)
    trainer.accelerator = SimpleNamespace(gradient_state=state, num_processes=2, process_index=1)
    batch = {"labels": torch.ones((1, 10) if packing else (2, 5))}
    mask_repeated_rows(batch, trainer.accelerator, trainer.args.dataloader_drop_last, trainer.padding_free)
    assert (batch["labels"] == 1).sum() == (10 if packing else 5)
