import pytest
from transformers import GenerationConfig

from puma_trl.best import IS_GREATER_BETTER
from puma_trl.config import PumaKLConfig
from puma_trl.errors import ConfigError
from puma_trl.evaluation.training_gap import METRICS
from puma_trl.on_policy_config import OF_GENERATION_KWARGS, OF_ON_POLICY
from puma_trl.train.metrics import MEANS


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
