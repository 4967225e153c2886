"""On-policy pairs: what is sampled, when, by which noise, and what is learned from it."""

import copy
import itertools
import math
import random
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import log_softmax
from torch.testing import assert_close
from transformers import GenerationConfig, LogitsProcessorList

from puma_trl.config import PumaKLConfig
from puma_trl.data.collator import DataCollatorForPumaPairs, split_sides
from puma_trl.data.tokens import ControlTokens
from puma_trl.errors import ConfigError, printable
from puma_trl.train.on_policy import GumbelNoise, OnPolicy, is_on_policy, make_warpers
from puma_trl.train.trainer import PumaKLTrainer

from ..models.family_models import MINI, OTHERS, build_family, write_text_model


LORA = LoraConfig(r=4, lora_dropout=0.0, target_modules=r".*(fc1|fc2|q_proj|v_proj)")
ALWAYS = {"on_policy_share": 1.0, "max_completion_length": 6}


@pytest.fixture
def sampled(monkeypatch):
    """Row → what was sampled for it, in the order of the steps."""
    found = {}
    sample = OnPolicy.sample

    def watched(self, model, batch, step):
        answers = sample(self, model, batch, step)
        for row_id, answer in zip(batch["row_id"], answers, strict=True):
            found.setdefault((step, row_id), answer)
        return answers

    monkeypatch.setattr(OnPolicy, "sample", watched)
    return found


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


# When


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 42])
def test_micro_batches_are_spread_evenly(share, seed):
    for first in (0, 10**17):
        chosen = [is_on_policy(number, share, seed) for number in range(first, first + 200)]
        for length in (1, 7, 20, 200):
            for start in range(200 - length + 1):
                expected = share * length + 1e-9
                assert math.floor(expected) <= sum(chosen[start : start + length]) <= math.ceil(expected - 2e-9)


def test_where_they_begin_depends_on_the_seed():
    firsts = [next(number for number in range(20) if is_on_policy(number, 0.1, seed)) for seed in range(200)]
    assert set(firsts) == set(range(10))


def test_a_share_of_which_nothing_comes_changes_nothing(train, tiny_model, pairs, monkeypatch):
    """Bit for bit: not set, set to 0, and where batches carry what answers could be written with."""
    monkeypatch.setattr("puma_trl.train.on_policy.is_on_policy", lambda *args: False)
    settings = [{}, {"on_policy_share": 0.0}, {"on_policy_share": 0.5}]
    runs, states = [], []
    for each in settings:
        runs.append(train(tiny_model(), pairs(8), lambda_kl=0.3, **each))
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)  # which dropout would draw from
    (plain, *others), (batch, *batches) = ([of(run) for run in runs] for of in (weights, first_batch))
    for other in others:
        assert plain.keys() == other.keys() and all(torch.equal(plain[name], other[name]) for name in plain)
    more = {"prompts", "teacher_prompts"}
    assert [each.keys() - batch.keys() for each in batches] == [set(), more] and not more & batch.keys()
    for other in batches:
        assert all(torch.equal(each, other[name]) for name, each in batch.items() if torch.is_tensor(each))
    logs = [[{key: each[key] for key in ("loss", "kl", "ce")} for each in run.state.log_history[:3]] for run in runs]
    assert logs[0] == logs[1] == logs[2]
    for each in logs[0]:  # and the loss is that of given answers
        assert each["loss"] == pytest.approx(0.3 * each["kl"] + 0.7 * each["ce"], rel=1e-5)


# Sampling


def test_noise_samples_by_the_probabilities():
    scores = torch.tensor([[0.0, 1.0, -1.0, 2.0, float("-inf"), 0.5]])
    noise = GumbelNoise([torch.Generator().manual_seed(0)])
    draws = torch.cat([noise(None, scores).argmax(-1) for _ in range(20_000)])
    expected = scores[0].softmax(-1) * len(draws)
    counts = draws.bincount(minlength=6)
    chi2 = ((counts - expected).square() / expected)[expected > 0].sum()
    assert counts[4] == 0 and chi2 < 20.5  # above in one of a thousand draws of four degrees of freedom


def test_warpers_are_those_of_generate(tmp_path, tiny_model):
    values = {"temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
    more = {"top_h": 0.5, "typical_p": 0.9, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3}
    args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, on_policy_share=1.0, **values, generation_kwargs=more)
    config = GenerationConfig(do_sample=True, **values, **more)
    expected = tiny_model()._get_logits_processor(config, device="cpu")
    found = make_warpers(args, "cpu")
    assert [type(each) for each in found] == [type(each) for each in expected]
    scores = torch.randn(3, 100)
    assert torch.equal(found(None, scores), LogitsProcessorList(expected)(None, scores))
    plain = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, on_policy_share=1.0)
    assert make_warpers(plain, "cpu") == []


def test_rows_do_not_depend_on_the_batch(train, tiny_model, pairs):
    trainer = train(tiny_model(), pairs(6, vision_rich_images=lambda index: index % 3), run=False, **ALWAYS)
    trainer.create_optimizer()
    rows = list(trainer.train_dataset)

    def sample(order, step=0):
        batch = trainer.data_collator([rows[index] for index in order])
        answers = trainer._on_policy.sample(copy.deepcopy(trainer.model).eval(), batch, step)
        return dict(zip(batch["row_id"], answers, strict=True))

    together = sample(range(6))
    assert sample([5, 3, 1]) | sample([0, 2, 4]) == together and sample([4]).items() <= together.items()
    assert sample(range(6), step=1) != together and len(set(map(tuple, together.values()))) == 6


def test_the_seed_decides(train, tiny_model, pairs, sampled):
    runs = []
    for seed in (1, 1, 2):
        train(tiny_model(), pairs(8), seed=seed, data_seed=0, max_steps=2, learning_rate=0.0, **ALWAYS)
        runs.append(dict(sampled))
        sampled.clear()
    assert runs[0] == runs[1] and runs[0].keys() == runs[2].keys() and runs[0] != runs[2]


def test_a_run_that_is_resumed_samples_the_same(train, tiny_model, pairs, sampled, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, **ALWAYS, "on_policy_share": 0.5}
    options |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 4}
    whole = train(tiny_model(), pairs(8), **options | {"output_dir": str(tmp_path / "whole")})
    expected = dict(sampled)
    sampled.clear()
    broken = train(tiny_model(), pairs(8), **options | {"output_dir": str(tmp_path / "parts")}, run=False)
    write = broken._on_policy.write_answers

    def fail_later(batches):
        if broken.state.global_step == 2:
            raise RuntimeError("killed")
        write(batches)

    broken._on_policy.write_answers = fail_later
    with pytest.raises(RuntimeError, match="killed"):
        broken.train()
    resumed = train(tiny_model(), pairs(8), resume=True, **options | {"output_dir": str(tmp_path / "parts")})
    assert sampled == expected and len({step for step, _ in expected}) == 4
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_settings_that_are_changed_later_take_effect(train, tiny_model, pairs):
    """Also what ends an answer, by whoever decides it; what `generate` would otherwise read of the model is told."""
    trainer = train(tiny_model(), pairs(4), run=False, temperature=20.0, **ALWAYS)
    on_policy, batch = trainer._on_policy, first_batch(trainer)

    def lengths():
        on_policy.write_answers([batch])
        return (batch["labels"] != -100).sum(1).tolist(), set(batch["labels"].unique().tolist())

    counts, words = lengths()
    assert max(counts) == 6 and len(words) > 8
    trainer.args.max_completion_length = 2
    assert max(lengths()[0]) == 2
    trainer.args.generation_kwargs = {"suppress_tokens": sorted(words - {-100} - set(on_policy.ends))}
    assert lengths()[1] & words <= {-100, *on_policy.ends}
    trainer.args.max_completion_length = 6
    end = lengths()[1].difference({-100, *on_policy.ends}).pop()
    trainer.model.generation_config.eos_token_id = end
    lengths()
    rows = [row[row != -100].tolist() for row in batch["labels"]]
    assert end in on_policy.ends and any(row[-1] == end for row in rows) and not any(end in row[:-1] for row in rows)
    trainer.args.generation_kwargs = {"suppress_tokens": on_policy.ends}
    for _ in range(2):  # also where it is tried again
        with pytest.raises(ConfigError, match="suppresses every token that ends an answer"):
            lengths()


def test_a_changed_generation_config_is_told_once(train, tiny_model, pairs, accelerate_state, caplog):
    trainer = train(tiny_model(), pairs(4), run=False, **ALWAYS)
    trainer.model.generation_config.temperature = 0.5
    trainer.train()
    assert caplog.text.count("Without effect in training: `temperature: null → 0.5` of `model.generation_conf") == 1
    caplog.clear()
    train(tiny_model(), pairs(4), **ALWAYS)
    assert "Without effect in training" not in caplog.text


def test_control_tokens_and_unknown_ones_are_not_written(train, tiny_model, pairs, sampled):
    model = tiny_model()
    tokenizer_size = model.config.get_text_config().vocab_size
    model.resize_token_embeddings(tokenizer_size + 50)
    trainer = train(model, pairs(8), max_steps=2, temperature=20.0, on_policy_share=1.0, max_completion_length=40)
    control = ControlTokens(trainer.processing_class)
    found = {token for answer in sampled.values() for token in answer}
    ends = set(trainer._on_policy.ends)
    assert len(found) > 100 and max(found) < tokenizer_size
    assert found.isdisjoint(control.ids - ends)
    # without that they would be
    assert len(control.ids - ends) >= 4 and set(trainer._on_policy.config.suppress_tokens) >= control.ids - ends


def test_the_state_of_the_trainer_stays(train, tiny_model, pairs):
    trainer = train(tiny_model(), pairs(4), run=False, **ALWAYS)
    trainer.model.train()
    trainer.model.gradient_checkpointing_enable()
    tokenizer = trainer.processing_class.tokenizer
    tokenizer.padding_side = "right"
    batch, config, state = first_batch(trainer), trainer.model.generation_config, torch.get_rng_state()
    trainer._on_policy.write_answers([batch])
    assert "completions" in batch
    assert torch.equal(torch.get_rng_state(), state) and trainer.model.generation_config is config
    assert trainer.model.training and trainer.model.is_activation_checkpointing and tokenizer.padding_side == "right"
    assert all(each.grad is None for each in trainer.model.parameters())


def test_sampling_has_the_precision_of_the_step(train, tiny_model, pairs, monkeypatch):
    seen, sample = [], OnPolicy.sample

    def watched(self, model, batch, step):
        seen.append(torch.is_autocast_enabled("cpu"))
        return sample(self, model, batch, step)

    monkeypatch.setattr(OnPolicy, "sample", watched)
    for bf16 in (True, False):
        train(tiny_model(), pairs(4), max_steps=1, bf16=bf16, **ALWAYS)
    assert seen == [True, False]


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_families(name, pairs, tmp_path):
    """
    Of rows with and without pictures a family writes what its own forward finds likeliest, and without padding the
    same.
    """
    found, options = [], ALWAYS | {"temperature": 1e-6}
    for padding_free in (False, True) if name != "gemma3" else (False,):
        processor, model = build_family(name)
        model.set_attn_implementation("varlen" if padding_free else "sdpa")
        args = {"bf16": False, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 4}
        args |= {"max_steps": 1, "save_strategy": "no", "trainable_parts": ["all"], "optim": "sgd"}
        trainer = PumaKLTrainer(
            model,
            PumaKLConfig(str(tmp_path), padding_free=padding_free, gradient_checkpointing=False, **args, **options),
            train_dataset=pairs(4, vision_rich_images=lambda index: index % 3),
            processing_class=processor,
        )
        batch = first_batch(trainer)
        trainer._on_policy.write_answers([batch])
        found.append(batch["labels"][batch["labels"] != -100].tolist())
        if not padding_free:
            rows = {row["row_id"]: row for row in trainer.train_dataset}
            for row_id, labels in zip(batch["row_id"], batch["labels"], strict=True):
                answer = labels[labels != -100]
                student, _ = by_hand(model.eval(), rows[row_id], trainer.data_collator, answer.tolist())
                student[:, trainer._on_policy.config.suppress_tokens] = float("-inf")
                assert (student.gather(1, answer[:, None])[:, 0] > student.amax(1) - 1e-5).all()
        trainer.train()
        assert trainer.state.log_history[-1]["train_loss"] > 0
    assert len(found[0]) > 4 and found[0] == found[-1]


# Learning


def by_hand(model, row, collator, answer):
    """Returns log-probabilities (N, V) of an answer from full logits: the student's, and the teacher's."""
    batch = collator([row])
    collator.write_answers(batch, [answer])
    sides = split_sides({name: value for name, value in batch.items() if torch.is_tensor(value)})
    both = []
    for side, with_grad in zip(sides, (True, False), strict=True):
        predicts = side.pop("labels")[:, 1:] != -100
        with torch.set_grad_enabled(with_grad):
            both.append(log_softmax(model(**side).logits[:, :-1][predicts].double(), -1))
    return both


def both_kl(student, teacher):
    """Returns forward and reverse KL of each token (N,)."""
    return (teacher.exp() * (teacher - student)).sum(-1), (student.exp() * (student - teacher)).sum(-1)


@pytest.mark.parametrize("alpha_kl", [1.0, 0.0])
def test_the_mean_gradient_is_that_over_all_answers(train, tiny_model, pairs, alpha_kl):
    """Answers of three tokens at most, of two words and the end, can be listed."""
    row = pairs(1)[0]
    num_samples = 600
    rows = [row | {"row_id": f"copy {index}"} for index in range(num_samples)]
    options = {"on_policy_share": 1.0, "max_completion_length": 3, "alpha_kl": alpha_kl, "temperature": 2.0}
    options["seed"] = 1
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)  # or all words would be as likely
    trainer = train(model, pairs(1), run=False, **options)
    words, end = [20, 30], trainer._on_policy.ends[-1]
    allowed = [*words, end]
    everything = set(range(model.config.get_text_config().vocab_size))
    trainer._on_policy.config.suppress_tokens = sorted(everything - set(allowed))
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}

    def gradient(loss):
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return torch.cat([each.flatten() for each in grads if each is not None]).double()

    answers = [
        [*start, end] if len(start) < 3 else list(start)
        for length in range(4)
        for start in itertools.product(words, repeat=length)
    ]
    assert len(answers) == 15
    collator = DataCollatorForPumaPairs(trainer.processing_class, on_policy=True)
    probabilities, gradients = [], []
    for answer in answers:
        student, teacher = by_hand(model, row, collator, answer)
        forward, reverse = both_kl(student, teacher)
        kl = alpha_kl * forward + (1 - alpha_kl) * reverse
        places = torch.tensor([allowed.index(token) for token in answer])
        log_p = log_softmax(student[:, allowed] / 2.0, -1).gather(-1, places[:, None]).sum()
        probabilities.append(log_p.exp().detach())
        gradients.append(gradient(kl.sum()))
    p, gradients = torch.stack(probabilities), torch.stack(gradients)
    assert p.sum() == pytest.approx(1, abs=1e-6)
    expected = p @ gradients
    variance = (p @ (gradients - expected).square()).sum() / num_samples

    mean = 0
    for start in range(0, num_samples, 300):
        batch = trainer.data_collator(rows[start : start + 300])
        trainer._on_policy.write_answers([batch])
        model.train()
        mean = mean + gradient(trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(num_samples)))
    assert (mean - expected).square().sum() < 9 * variance  # three errors of the mean, in one direction
    # other answers than the student's, or their own gradient besides, would not pass for it
    uniform = gradients.mean(0)
    assert (uniform - expected).square().sum() > 30 * variance


def test_the_loss_is_the_kl_alone(train, tiny_model, pairs):
    """Whatever `lambda_kl` is, per answer token of what was sampled."""
    logs = [
        train(tiny_model(), pairs(8), max_steps=2, lambda_kl=lambda_kl, **ALWAYS).state.log_history
        for lambda_kl in (0.1, 0.9)
    ]
    for one, other in zip(*(each[:2] for each in logs), strict=True):
        assert one["loss"] == other["loss"] == pytest.approx(one["on_policy/kl"], rel=1e-5)


def test_accumulation_is_one_large_batch(train, tiny_model, pairs, sampled):
    found = []
    few = {"suppress_tokens": [*range(7, 385)]}  # so that some answers end early
    for size, accumulation in ((4, 1), (2, 2)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = train(tiny_model(), pairs(8), **ALWAYS, **options, temperature=3.0, generation_kwargs=few)
        found.append((weights(trainer), dict(sampled)))
        sampled.clear()
    (one, answers), (other, others) = found
    assert answers == others and len({len(answer) for answer in answers.values()}) > 2
    for name, value in one.items():
        assert_close(other[name], value, rtol=0, atol=1e-6, msg=name)


def test_both_kinds_in_one_step(train, tiny_model, pairs):
    """Their tokens are counted together, after sampling."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1, "lambda_kl": 0.5}
    trainer = train(tiny_model(), pairs(4), on_policy_share=0.5, max_completion_length=5, **options)
    (logs, _) = trainer.state.log_history
    given, sampled = 0.5 * (logs["kl"] + logs["ce"]), logs["on_policy/kl"]
    num_sampled = 2 * logs["completions/mean_length"]
    share = num_sampled / (num_sampled + given_tokens(trainer))
    assert logs["loss"] == pytest.approx(share * sampled + (1 - share) * given, rel=1e-5)


def given_tokens(trainer):
    """Returns the answer tokens of the micro-batch that kept its answers: the first or the second of the step."""
    kept = 0 if not is_on_policy(0, 0.5, trainer.args.seed) else 1
    batches = list(trainer.get_train_dataloader())
    return int((batches[kept]["labels"] != -100).sum())


@pytest.mark.parametrize("teacher", ["live", "frozen", "ema", "model"])
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_teachers(tmp_path, pairs, teacher, peft_config):
    """Every one of them, with and without padding to the same weights."""
    results = []
    for padding_free in (False, True):
        processor, model = build_family("qwen2_vl")
        model.set_attn_implementation("varlen" if padding_free else "sdpa")
        options = {
            "teacher": teacher,
            "padding_free": padding_free,
            "trainable_parts": None if peft_config else ["all"],
        }
        if teacher == "model":
            write_text_model(tmp_path / "text")
            options["teacher_model_name_or_path"] = str(tmp_path / "text")
        args = {"bf16": False, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 3, "max_steps": 2}
        args |= {"save_strategy": "no", "optim": "sgd", "learning_rate": 0.1, "gradient_checkpointing": True}
        torch.manual_seed(0)
        trainer = PumaKLTrainer(
            model,
            PumaKLConfig(str(tmp_path / "out"), **args, **options, **ALWAYS),
            train_dataset=pairs(6, vision_rich_images=lambda index: index % 3),
            processing_class=processor,
            peft_config=copy.deepcopy(peft_config),
        )
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        assert any(not torch.equal(before[name], after[name]) for name in before)
        results.append(after)
    for name, value in results[0].items():
        assert_close(results[1][name], value, rtol=0, atol=1e-6, msg=name)


def test_answers_that_are_cut_off(train, tiny_model, pairs):
    """Left out of the loss, they may leave a whole step without an answer."""
    options = {"on_policy_share": 1.0, "max_completion_length": 2, "max_steps": 2}
    counted = train(tiny_model(), pairs(8), **options).state.log_history
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    trainer = train(model, pairs(8), mask_truncated_completions=True, **options)
    for logs, other in zip(trainer.state.log_history[:2], counted, strict=False):
        assert logs["completions/clipped_ratio"] == other["completions/clipped_ratio"] == 1
        assert logs["completions/mean_length"] == 2 and logs["loss"] == 0 < other["loss"]
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_answers_that_end_count_beside_those_that_are_cut_off(train, tiny_model, pairs, sampled):
    few = {"suppress_tokens": [*range(7, 385)]}
    options = {"on_policy_share": 1.0, "max_completion_length": 2, "generation_kwargs": few}
    trainer = train(tiny_model(), pairs(8), run=False, mask_truncated_completions=True, **options)
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer._on_policy.write_answers([batch])
    answers = [sampled[0, row] for row in batch["row_id"]]
    expected = [answer if answer[-1] in trainer._on_policy.ends else [] for answer in answers]
    assert [row[row != -100].tolist() for row in batch["labels"]] == expected and [] in expected and any(expected)
    assert [row[row != -100].tolist() for row in batch["teacher_labels"]] == expected


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rows_without_an_answer(train, tiny_model, pairs, share):
    """They are learned from where the student writes the answer, and nowhere else."""
    rows = pairs(8).map(lambda row: {"output": "", "output_2": ""})
    trainer = train(tiny_model(), rows, max_steps=4, on_policy_share=share, max_completion_length=4)
    losses = [logs["loss"] for logs in trainer.state.log_history[:4]]
    chosen = [is_on_policy(step, share, trainer.args.seed) for step in range(4)]
    assert [loss > 0 for loss in losses] == chosen and sum(chosen) == 4 * share


def test_evaluation_is_of_the_given_answers(train, tiny_model, pairs):
    runs = [
        train(tiny_model(), pairs(4), eval_dataset=pairs(5, seed=1), run=False, on_policy_share=share)
        for share in (0.0, 1.0)
    ]
    names = ("loss", "kl", "ce", "teacher_ce", "entropy", "mean_token_accuracy")
    plain, other = (run.evaluate() for run in runs)
    assert [plain[f"eval_{name}"] for name in names] == [other[f"eval_{name}"] for name in names]


def test_what_is_logged(train, tiny_model, pairs, sampled):
    trainer = train(tiny_model(), pairs(8), max_steps=2, on_policy_share=0.5, max_completion_length=6)
    by_kind = [("on_policy/kl" in logs, "kl" in logs) for logs in trainer.state.log_history[:2]]
    assert sorted(by_kind) == [(False, True), (True, False)]
    (logs,) = [logs for logs in trainer.state.log_history if "on_policy/kl" in logs]
    assert not {"ce", "kl", "entropy", "modality_gap", "mean_token_accuracy"} & logs.keys()
    both = [logs["num_tokens"] for logs in trainer.state.log_history[:2]]
    assert 0 < both[0] < both[1]


def test_means_over_sampled_answers(train, tiny_model, pairs, sampled):
    """All of them by hand, from full logits and the answers themselves."""
    few = {"suppress_tokens": [*range(7, 385)], "min_new_tokens": 6}  # so that some end early, and n-grams repeat
    options = {"max_steps": 1, "learning_rate": 0.0, "temperature": 3.0, "generation_kwargs": few}
    options |= {"per_device_train_batch_size": 8, "max_completion_length": 8}
    model = tiny_model()
    with torch.no_grad():  # the likeliest words are among these
        model.get_output_embeddings().weight[385:].mul_(20)
    trainer = train(model, pairs(8), on_policy_share=1.0, **options)
    logs, ends = trainer.state.log_history[0], trainer._on_policy.ends
    answers = {row: answer for (_, row), answer in sampled.items()}
    tokens, ngrams, repeated, clipped = defaultdict(list), 0, 0, 0
    for row in trainer.train_dataset:
        answer = answers[row["row_id"]]
        student, teacher = by_hand(trainer.model.eval(), row, trainer.data_collator, answer)
        forward, reverse = both_kl(student, teacher)
        found = {"forward_kl": forward, "reverse_kl": reverse, "entropy": -(student.exp() * student).sum(-1)}
        for name, side in (("mean_token_accuracy", student), ("teacher_mean_token_accuracy", teacher)):
            found[name] = side.argmax(-1) == torch.tensor(answer)
        for name, values in found.items():
            tokens[name] += values.tolist()
        before = [answer[start : start + 4] for start in range(len(answer) - 3)]
        ngrams += len(before)
        repeated += sum(each in before[:place] for place, each in enumerate(before))
        clipped += answer[-1] not in ends
    assert 0 < sum(tokens["mean_token_accuracy"]) != sum(tokens["teacher_mean_token_accuracy"]) > 0
    for name, values in tokens.items():
        assert logs[f"on_policy/{name}"] == pytest.approx(sum(values) / len(values), rel=1e-4), name
    assert logs["completions/mean_length"] == sum(map(len, answers.values())) / 8
    assert logs["completions/repeated_ngrams"] == repeated / ngrams > 0
    assert logs["completions/clipped_ratio"] == clipped / 8 and 0 < clipped < 8


def test_a_collator_without_prompts_is_refused(train, tiny_model, pairs, processor, tmp_path):
    args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", on_policy_share=0.5)
    with pytest.raises(ConfigError, match="`data_collator` keeps no prompts"):
        PumaKLTrainer(
            tiny_model(),
            args,
            data_collator=DataCollatorForPumaPairs(processor),
            train_dataset=pairs(2),
            processing_class=processor,
        )


class Table:
    def __init__(self, dataframe):
        self.dataframe = dataframe


@pytest.mark.parametrize("count", [None, 1])
def test_log_completions(train, tiny_model, pairs, sampled, monkeypatch, capsys, count):
    """Prompts and answers are printed at each log, and all of the step go to the tracker as a table."""
    logged = []
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(log=logged.append, Table=Table))
    options = {"log_completions": True, "num_completions_to_print": count, "max_steps": 2, **ALWAYS}
    trainer = train(tiny_model(), pairs(8), run=False, **options)
    trainer.args.report_to = ["trackio"]
    state = random.getstate()
    trainer.train()
    assert random.getstate() == state
    printed = capsys.readouterr().out
    assert printed.count("Completion") == 2 and printed.count("Angles") == 2 * (count or 4)
    tables = [each["completions"].dataframe for each in logged]
    tokenizer = trainer.processing_class.tokenizer
    assert len(tables) == 2
    for step, table in enumerate(tables):
        rows = {row["row_id"]: row["instruction_2"] for row in trainer.train_dataset}
        expected = {rows[row]: answer for (at, row), answer in sampled.items() if at == step}
        assert len(table) == 4 and set(table["step"]) == {step + 1}
        for prompt, completion in zip(table["prompt"], table["completion"], strict=True):
            (answer,) = [answer for question, answer in expected.items() if question in prompt]
            assert completion == printable(tokenizer.decode(answer, skip_special_tokens=True))


def test_nothing_is_printed_without_it_or_where_only_errors_are(train, tiny_model, pairs, capsys):
    train(tiny_model(), pairs(4), max_steps=1, **ALWAYS)
    quiet = train(tiny_model(), pairs(4), max_steps=1, log_completions=True, run=False, **ALWAYS)
    quiet.args.log_level = "error"
    quiet.train()
    assert "Completion" not in capsys.readouterr().out
