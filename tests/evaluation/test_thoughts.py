"""Replies and gold answers of models that think: no thought is an answer."""

import pytest
import torch
from tokenizers import AddedToken

from puma_trl.evaluation.answers import final_answer, gold_answer, is_prose
from puma_trl.evaluation.gap_answers import same_answer
from puma_trl.evaluation.local_model import Generator, Prompt
from puma_trl.mini import build_model, build_processor
from puma_trl.pairs.answer.choice import without_thoughts
from puma_trl.pairs.answer.sampling import Sampler

from ..conftest import TINY


def make(kind, special, opens, said):
    """A generator whose model says a text."""
    processor = build_processor("qwen2_vl")
    processor.tokenizer.add_tokens(
        [AddedToken(tag, normalized=False, special=special) for tag in ("<think>", "</think>")]
    )
    if opens:
        processor.chat_template += "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    generator = kind(build_model("qwen2_vl", processor, **TINY), processor, max_new_tokens=50)
    answer = processor.tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"]
    generator.model.generate = lambda input_ids, **_: torch.cat([input_ids, answer], 1)
    return generator


SAID = [
    # opened by the prompt, said, its answer
    (True, "a is 3? no</think>\n\nIt is 4<|im_end|>", "4"),
    (True, "a is 3 or 5<|im_end|>", None),
    (True, "a is 3", None),  # cut off
    (False, "<think>a is 3</think>It is 4<|im_end|>", "4"),
    (False, "<think>a is 3", None),
    (False, "It is 4<|im_end|>", "4"),
]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("opens", "said", "answer"), SAID)
def test_thoughts_are_no_answers_of_replies(special, opens, said, answer):
    """Also where the prompt opens them, so that a reply does not say so, and where their tags are special tokens."""
    (reply,) = make(Generator, special, opens, said).answer([Prompt("a?")])
    assert final_answer(reply, "text") == answer and "<|im_end|>" not in reply
    assert reply.is_cut is ("<|im_end|>" not in said)
    (reply,) = make(Sampler, special, opens, said).sample([Prompt("a?")], ["seed"])
    assert without_thoughts(reply) == (answer and f"It is {answer}")


THOUGHT = "<think>\nAll 3 sides? No, 5. Is it so?\n</think>\n\n"


@pytest.mark.parametrize(
    "gold",
    ["It is 4 cm.", "B", "Yes", "No, it is not.", "All 4 sides are equal", "parallel lines", "x = 3", "Answer: 79"],
)
def test_gold_answers_behind_thoughts(gold):
    """They are what they are without; the thought of a reply does not matter either."""
    assert gold_answer(THOUGHT + gold) == gold_answer(gold) and is_prose(THOUGHT + gold) == is_prose(gold)
    for reply in (gold, f"<think>Hm, 17.</think>{gold}", f"Hm, 17.</think>{gold}"):
        assert same_answer(reply, THOUGHT + gold) and same_answer(reply, gold)
    for reply in ("<think>17</think>", f"<think>{gold}", "So it is 17"):
        assert not same_answer(reply, THOUGHT + gold) and not same_answer(reply, gold)
