"""On-policy pairs at their edges: shares that an epoch cuts, impossible tokens, and means over nothing."""

import pytest

from puma_trl.errors import ConfigError
from puma_trl.train.on_policy import is_on_policy


ALWAYS = {"on_policy_share": 1.0, "max_completion_length": 4}
MEANS = {"kl", "ce", "teacher_ce", "mean_token_accuracy", "teacher_mean_token_accuracy", "modality_gap"}


@pytest.mark.parametrize("seed", range(4))
def test_the_share_holds_where_the_last_step_of_an_epoch_is_shorter(train, tiny_model, pairs, seed):
    """Three micro-batches an epoch and four to a step: a count of four would leave out one of them each time."""
    options = {"on_policy_share": 0.25, "max_completion_length": 2, "per_device_train_batch_size": 2}
    trainer = train(
        tiny_model(), pairs(6), gradient_accumulation_steps=4, max_steps=8, seed=seed, run=False, **options
    )
    write, kinds = trainer._on_policy.write_answers, []

    def watched(batches):
        write(batches)
        kinds.extend("completions" in batch for batch in batches)

    trainer._on_policy.write_answers = watched
    trainer.train()
    assert kinds == [is_on_policy(number, 0.25, seed) for number in range(24)] and sum(kinds) == 6


def test_a_share_of_which_no_micro_batch_comes_is_told(train, tiny_model, pairs, accelerate_state, caplog):
    train(tiny_model(), pairs(8), max_steps=2, on_policy_share=1e-9, max_completion_length=4)
    assert "`on_policy_share: 1e-09` is of the 2 micro-batches of this run none" in caplog.text
    caplog.clear()
    train(tiny_model(), pairs(8), max_steps=2, on_policy_share=0.5, max_completion_length=4)
    assert "micro-batches of this run" not in caplog.text


def test_means_over_nothing_are_not_logged(train, tiny_model, pairs):
    """An accuracy of 0 where no row has an answer would look like a collapse of the teacher."""
    rows = pairs(8).map(lambda row: {"output": "", "output_2": ""})
    logs = train(tiny_model(), rows, max_steps=2, on_policy_share=0.5, max_completion_length=4).state.log_history[:2]
    assert not any(MEANS & each.keys() for each in logs) and all(each["num_tokens"] > 0 for each in logs)
    logs = train(tiny_model(), pairs(8), max_steps=2, on_policy_share=0.5, max_completion_length=4).state.log_history
    assert sorted(len(MEANS & each.keys()) for each in logs[:2]) == [0, len(MEANS)]


@pytest.mark.filterwarnings("error:All answers sampled")
def test_answers_of_which_none_counts_are_told_once(train, tiny_model, pairs):
    options = {"on_policy_share": 1.0, "max_completion_length": 2, "max_steps": 3}
    train(tiny_model(), pairs(8), **options)
    with pytest.warns(UserWarning, match="by step 1 .*`max_completion_length: 2`, and `mask_trunc") as told:
        trainer = train(tiny_model(), pairs(8), mask_truncated_completions=True, **options)
    assert len([each for each in told if "All answers sampled" in str(each.message)]) == 1
    assert not any(name.startswith("on_policy/") for logs in trainer.state.log_history for name in logs)


def test_tokens_that_leave_no_answer(train, tiny_model, pairs):
    trainer = train(tiny_model(), pairs(4), run=False, **ALWAYS)
    ends, size = trainer._on_policy.ends, trainer.model.config.get_text_config().vocab_size
    words = sorted(set(range(size)) - set(ends))
    for kwargs, message in (
        ({"suppress_tokens": ends}, "suppresses every token that ends an answer"),
        ({"suppress_tokens": words[:-1], "begin_suppress_tokens": words[-1:]}, "that an answer can begin with"),
        ({"suppress_tokens": [size]}, f"the token {size} in `suppress_tokens`, but the model knows tokens up to"),
        ({"bad_words_ids": [[3, size]]}, f"the token {size} in `bad_words_ids`"),
        ({"sequence_bias": [[[size], 1.0]]}, f"the token {size} in `sequence_bias`"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(tiny_model(), pairs(4), run=False, generation_kwargs=kwargs, **ALWAYS)
    allowed = {"suppress_tokens": words[5:50], "sequence_bias": [[[words[-1]], 1.0]], "bad_words_ids": [[7, 8]]}
    train(tiny_model(), pairs(4), run=False, generation_kwargs=allowed, **ALWAYS)
