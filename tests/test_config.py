import pytest

from puma_trl.best import IS_GREATER_BETTER
from puma_trl.config import PumaKLConfig
from puma_trl.evaluation.training_gap import METRICS
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
