"""Models that think: what on-policy answers may hold, and teachers whose prompts open answers otherwise."""

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken

from puma_trl.config import PumaKLConfig
from puma_trl.data.tokens import ControlTokens
from puma_trl.errors import ModelError
from puma_trl.mini import build_model, build_processor
from puma_trl.train.on_policy import OnPolicy
from puma_trl.train.teacher_side import prepare_teacher
from puma_trl.train.trainer import PumaKLTrainer

from ..conftest import TINY


GENERATION = "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"


def thinker(opens=True, tags=("<think>", "</think>")):
    processor = build_processor("qwen2_vl")
    processor.tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    processor.chat_template += GENERATION if opens else ""
    return processor


def suppressed(processor, teacher=None):
    side = teacher and SimpleNamespace(processor=teacher)
    sampler = SimpleNamespace(trainer=SimpleNamespace(processing_class=processor, teacher_side=side), ends=[])
    return OnPolicy._find_suppressed(sampler, len(processor.tokenizer))


@pytest.mark.parametrize(
    ("student", "teacher", "written"),
    [
        (thinker(), None, {"</think>"}),
        (thinker(opens=False), None, {"<think>", "</think>"}),
        (thinker(), thinker(), {"</think>"}),
        (thinker(), thinker(tags=()), set()),  # which does not know it
        (thinker(tags=("<tool_call>",)), None, set()),
    ],
)
def test_what_an_answer_may_hold(student, teacher, written):
    """The tags of the thought that its prompt leaves to it, and no other control token."""
    control, never = ControlTokens(student), suppressed(student, teacher)
    assert {token for token in control.tokens if student.tokenizer.get_vocab()[token] not in never} == written


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rows_without_answers_train(tmp_path, pairs, share):
    """Where the prompt opens a thought, which nothing has closed yet."""
    processor = thinker()
    answers = ["", "", "", "<think>\neasy\n</think>\n\n4"]
    rows = pairs(4).remove_columns(["row_id", "num_answer_tokens"])
    rows = rows.map(lambda _, index: dict.fromkeys(("output", "output_2"), answers[index]), with_indices=True)
    model = build_model("qwen2_vl", processor, seed=1, **TINY)
    args = {"bf16": False, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 4, "max_steps": 2}
    args |= {"save_strategy": "no", "gradient_checkpointing": False, "max_completion_length": 4}
    trainer = PumaKLTrainer(
        model,
        PumaKLConfig(str(tmp_path), on_policy_share=share, **args),
        train_dataset=rows,
        processing_class=processor,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    close, open_ = processor.tokenizer.convert_tokens_to_ids(["</think>", "<think>"])
    labels = batch["labels"][batch["labels"] != -100].tolist()
    assert labels.count(close) == 1 and open_ not in labels
    for side in ("", "teacher_"):  # the template has opened it once
        assert ((batch[f"{side}input_ids"] == open_).sum(1) == 1).all()
    allowed = set(range(len(processor.tokenizer))) - set(trainer._on_policy.config.suppress_tokens)
    assert close in allowed and open_ not in allowed
    trainer.train()


def test_a_teacher_that_opens_a_thought(tmp_path, monkeypatch):
    student, teacher = thinker(opens=False), thinker()
    monkeypatch.setattr(
        "puma_trl.train.teacher_side.load_teacher_side", lambda *_: SimpleNamespace(processor=teacher, config=None)
    )
    args = PumaKLConfig(
        str(tmp_path), bf16=False, use_cpu=True, use_kl=True, teacher="model", teacher_model_name_or_path="big"
    )
    with pytest.raises(ModelError, match="opens no thought before an answer, that of the teacher `big` a thought"):
        prepare_teacher(args, student, None)
    student.chat_template = teacher.chat_template
    assert prepare_teacher(args, student, None).processor is teacher
