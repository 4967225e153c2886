"""Every form on the page on data is trained on, and the model reads what its row says."""

import json

import pytest
import yaml
from PIL import Image

from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.load import load_data
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.train.trainer import PumaKLTrainer

from .test_docs import BLOCKS, words


@pytest.mark.parametrize("paired", [False, True])
def test_every_form_is_trained_on(paired, tmp_path, processor, tiny_model):
    Image.new("RGB", (56, 56), "red").save(tmp_path / "triangle.png")
    rows = {name: text for (kind, name), text in BLOCKS.items() if kind == "form" and ("_2" in text) == paired}
    columns = {}
    for number, (name, text) in enumerate(rows.items()):
        (tmp_path / f"{number}.jsonl").write_text(text + "\n", encoding="utf-8")
        columns |= yaml.safe_load(BLOCKS.get(("columns of", name), "columns: {}"))["columns"]
    args = PumaKLConfig(
        str(tmp_path / "out"),
        use_kl=paired,
        columns=columns,
        max_length=None,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
    )
    names = [str(tmp_path / f"{number}.jsonl") for number in range(len(rows))]
    dataset, reports = load_data(PumaScriptArguments(dataset_name=names), args, processor, QWEN_VL)
    trainer = PumaKLTrainer(model=tiny_model(), args=args, train_dataset=dataset["train"], processing_class=processor)
    for text, row in zip(rows.values(), dataset["train"], strict=True):
        batch = trainer.data_collator([row])
        read = [processor.decode(batch[key][0]) for key in ("teacher_input_ids", "input_ids") if key in batch]
        for said in words(json.loads(text), reports["train"].unread):
            pieces = str(said).split("<image>") if said != "triangle.png" else ()
            assert all(piece.strip() in "".join(read) for piece in pieces)
        answer = processor.decode(batch["input_ids"][batch["labels"] != -100])
        assert answer == f"{row['output_2' if paired else 'output']}<|im_end|>"
        assert text.count("triangle.png") * 4 <= "".join(read).count("<|image_pad|>")
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == len(rows) >= 4 and all(loss > 0 for loss in losses)
