from dataclasses import fields

import pytest
from transformers import GenerationConfig
from trl import DistillationConfig

from puma_trl.best import IS_GREATER_BETTER
from puma_trl.config import PumaKLConfig
from puma_trl.errors import ConfigError
from puma_trl.evaluation.training_gap import METRICS
from puma_trl.on_policy_config import OF_GENERATION_KWARGS, OF_ON_POLICY
from puma_trl.train.metrics import MEANS
from puma_trl.vllm_config import OF_SAMPLING_PARAMS, OF_VLLM, VLLMConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha_kl", 1.5),
        ("alpha_kl", -0.1),
        ("lambda_kl", 2.0),
        ("lambda_kl", None),
        ("temp_kl", 0.0),
        ("temp_kl", None),
        ("temp_kl", float("nan")),
        ("teacher", "alive"),
        ("teacher_update_rate", 0.0),
        ("teacher_sync_steps", 0),
        ("trainable_parts", []),
        ("packing", True),
        ("part_learning_rates", {"aligner": "fast"}),
        ("part_learning_rates", 1e-4),
        ("on_policy_share", 1.1),
        ("max_completion_length", 0),
        ("temperature", 0.0),
        ("top_p", 0.0),
        ("top_k", -1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("num_completions_to_print", 0),
    ],
)
def test_values_out_of_range(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, **{field: value})


@pytest.mark.parametrize(("field", "value"), [("label_smoothing_factor", 0.1), ("loss_type", "dft")])
def test_settings_of_another_loss(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"^`{field}: {value}` would change TRL's own loss"):
        PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, **{field: value})


def test_noise_that_depends_on_the_length_of_a_batch(tmp_path):
    arguments = {"bf16": False, "use_cpu": True, "neftune_noise_alpha": 5.0}
    PumaKLConfig(str(tmp_path), **arguments)
    with pytest.raises(ValueError, match="`neftune_noise_alpha` does not go with `padding_free: true`"):
        PumaKLConfig(str(tmp_path), padding_free=True, **arguments)


OTHER_SAMPLING = {
    "max_completion_length": 9, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1,
    "generation_kwargs": {"no_repeat_ngram_size": 3}, "mask_truncated_completions": True, "log_completions": True,
    "num_completions_to_print": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ON_POLICY)
def test_settings_of_sampling_need_a_share(tmp_path, name):
    values = {"bf16": False, "use_cpu": True, name: OTHER_SAMPLING[name]}
    with pytest.raises(ConfigError, match=rf"^`{name}: .*` is for answers that the student writes itself, but"):
        PumaKLConfig(str(tmp_path), **values)
    assert getattr(PumaKLConfig(str(tmp_path), on_policy_share=0.5, **values), name) == OTHER_SAMPLING[name]


def test_sampled_answers_need_a_teacher(tmp_path):
    with pytest.raises(ConfigError, match="`on_policy_share: 0.5` does not go with `use_kl: false`"):
        PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, use_kl=False, on_policy_share=0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("typical_p", "must map fields of `GenerationConfig` to values"),
        ({"temperature": 0.5}, "`generation_kwargs` has `temperature`. Set `temperature` instead"),
        ({"max_new_tokens": 5}, "`generation_kwargs` has `max_new_tokens`. Set `max_completion_length` instead"),
        ({"num_beams": 4}, "`generation_kwargs` has `num_beams`, which is decided elsewhere or is not of sampling"),
        ({"typical_p": 1.5}, "`generation_kwargs` has `typical_p: 1.5`, but it must be a number between 0 and 1"),
        ({"suppress_tokens": "end"}, "`generation_kwargs` has `suppress_tokens: end`, but it must be a list of ids"),
        ({"begin_suppress_tokens": [-1]}, r"has `begin_suppress_tokens: \[-1\]`, but it must be a list of ids"),
        (
            {"min_new_tokens": 512},
            "has `min_new_tokens: 512`, but it must be a whole number from 1 to below",
        ),
        ({"no_repeat_ngram_size": -1}, "`generation_kwargs: .*` cannot be used: .*ngram_size"),
        ({"bad_words_ids": "word"}, "`generation_kwargs: .*` cannot be used: .*bad_words_ids"),
        ({"sequence_bias": [[5, 1.0]]}, "`generation_kwargs: .*` cannot be used: "),
        ({"exponential_decay_length_penalty": 3}, "`generation_kwargs: .*` cannot be used: "),
        ({"cache_implementation": "quantized"}, "has `cache_implementation: quantized`, which needs settings that it"),
        ({"cache_implementation": "fast"}, "(?s)`generation_kwargs: .*` cannot be used: .*cache_implementation"),
    ],
)
def test_generation_kwargs_that_cannot_be_used(tmp_path, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, on_policy_share=1, generation_kwargs=kwargs)


def test_generation_kwargs_are_of_transformers(tmp_path):
    assert all(hasattr(GenerationConfig(), name) for name in OF_GENERATION_KWARGS)
    kwargs = {"typical_p": 0.9, "no_repeat_ngram_size": 3}
    args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, on_policy_share=1, generation_kwargs=kwargs)
    assert args.generation_kwargs == kwargs


OTHER_VLLM = {
    "use_vllm": True, "vllm_mode": "server", "vllm_model_impl": "transformers", "vllm_enable_sleep_mode": True,
    "vllm_server_base_url": "http://here", "vllm_server_host": "here", "vllm_server_port": 80,
    "vllm_server_timeout": 1.0, "vllm_group_port": 90, "vllm_gpu_memory_utilization": 0.5,
    "vllm_max_model_length": 99, "vllm_tensor_parallel_size": 2,
}  # fmt: skip


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """Returns a function that makes a config for sampling by a server; vLLM seems installed."""
    monkeypatch.setattr("puma_trl.vllm_config.is_vllm_available", lambda: True)
    values = {"bf16": False, "use_cpu": True, "on_policy_share": 1, "use_vllm": True, "vllm_mode": "server"}
    return lambda **others: PumaKLConfig(str(tmp_path), **values | others)


def test_settings_of_vllm_are_those_of_trl():
    theirs = {field.name: field.default for field in fields(DistillationConfig)}
    assert {field.name: field.default for field in fields(VLLMConfig)} == {name: theirs[name] for name in OF_VLLM}
    left_out = {"vllm_structured_outputs_regex"}
    assert {*OF_VLLM} == {name for name in theirs if "vllm" in name} - left_out


@pytest.mark.parametrize("name", OF_VLLM)
def test_settings_of_vllm_need_it_and_a_share(vllm, name):
    other = {"use_vllm": False, "vllm_mode": "colocate", name: OTHER_VLLM[name]}
    if name != "use_vllm":
        with pytest.raises(ConfigError, match=rf"^`{name}: .*` is for sampling through vLLM, but `use_vllm` is false"):
            vllm(**other)
    with pytest.raises(ConfigError, match="^`use_vllm: true` is for answers .*`on_policy_share` is 0"):
        vllm(on_policy_share=0)
    assert getattr(vllm(**{name: OTHER_VLLM[name]}), name) == OTHER_VLLM[name]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vllm_mode": "colocate"}, "^`vllm_mode: colocate` needs a GPU"),
        ({"vllm_mode": "local"}, "^`vllm_mode` is 'local', but it must be one of server, colocate"),
        ({"vllm_gpu_memory_utilization": 1.5}, "^`vllm_gpu_memory_utilization` is 1.5, but it must be above 0"),
        ({"temperature": 3.0}, "^`temperature` is 3.0, but vLLM takes at most 2"),
        ({"generation_kwargs": {"no_repeat_ngram_size": 3}}, "^`generation_kwargs` has `no_repeat_ngram_size`, which"),
        ({"generation_kwargs": {"max_tokens": 3}}, "Set `max_completion_length` instead"),
        ({"generation_kwargs": {"temperature": 1}}, "Set `temperature` instead"),
        ({"generation_kwargs": {"seed": 1}}, "^`generation_kwargs` has `seed`, which is decided elsewhere"),
        ({"generation_kwargs": {"bad_words": "so"}}, "`bad_words: 'so'`, but it must be a list of at most 64 words"),
        ({"generation_kwargs": {"min_tokens": 0.5}}, "`min_tokens: 0.5`, but it must be a whole number between 0 and"),
        ({"generation_kwargs": {"presence_penalty": 3}}, "it must be a number between -2 and 2"),
    ],
)
def test_what_vllm_cannot_use(vllm, values, message):
    with pytest.raises(ConfigError, match=message):
        vllm(**values)


def test_what_vllm_takes_of_generation_kwargs(vllm):
    kwargs = {"bad_words": ["so"], "min_tokens": 2, "presence_penalty": 0.5, "frequency_penalty": -1}
    assert vllm(generation_kwargs=kwargs).generation_kwargs == kwargs
    assert kwargs.keys() == {*OF_SAMPLING_PARAMS}


def test_vllm_that_is_not_installed(vllm, monkeypatch):
    monkeypatch.setattr("puma_trl.vllm_config.is_vllm_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"^`use_vllm: true` needs vLLM, .* Run `pip install trl\[vllm\]`, and then .*--no-deps"
    ):
        vllm()


def test_packing_is_allowed_without_kl(tmp_path):
    assert PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, use_kl=False, packing=True).packing


def test_every_metric_has_its_direction():
    assert IS_GREATER_BETTER.keys() == {*MEANS, "modality_gap", *METRICS}


@pytest.mark.parametrize(
    ("metric", "is_greater_better"),
    [
        ("loss", False),
        ("kl", False),
        ("eval_forward_kl", False),
        ("eval_geometry_teacher_ce", False),
        ("modality_gap", False),
        ("eval_gap", False),
        ("mean_token_accuracy", True),
        ("vision_rich_accuracy", True),
        ("bleu", True),  # as transformers has it for what is not ours
    ],
)
def test_the_better_model(tmp_path, metric, is_greater_better):
    def make(**values):
        flags = {"bf16": False, "use_cpu": True, "eval_strategy": "steps", "eval_steps": 1}
        return PumaKLConfig(str(tmp_path), metric_for_best_model=metric, **flags, **values)

    plateau = "reduce_lr_on_plateau"
    args = make(lr_scheduler_type=plateau, lr_scheduler_kwargs={"patience": 3})
    mode = "max" if is_greater_better else "min"
    assert args.greater_is_better is is_greater_better
    assert args.lr_scheduler_kwargs == {"mode": mode, "patience": 3}
    assert make(greater_is_better=is_greater_better).greater_is_better is is_greater_better
    other = "min" if is_greater_better else "max"
    with pytest.raises(ValueError, match=f"needs {mode}"):
        make(lr_scheduler_type=plateau, lr_scheduler_kwargs={"mode": other})
    if metric != "bleu":
        word = str(is_greater_better).lower()
        with pytest.raises(ValueError, match=f"contradicts `metric_for_best_model: {metric}`.*better: {word}`"):
            make(greater_is_better=not is_greater_better)


def test_a_metric_that_does_not_say_which_model_is_better(tmp_path):
    values = {"bf16": False, "use_cpu": True, "metric_for_best_model": "eval_entropy"}
    with pytest.raises(ValueError, match="Set `greater_is_better`"):
        PumaKLConfig(str(tmp_path), **values)
    assert PumaKLConfig(str(tmp_path), greater_is_better=False, **values).greater_is_better is False
