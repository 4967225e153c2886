import pytest

from puma_trl.config import PumaKLConfig


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
        ("label_smoothing_factor", 0.1),
        ("loss_type", "dft"),
        ("part_learning_rates", {"aligner": "fast"}),
        ("part_learning_rates", 1e-4),
    ],
)
def test_values_out_of_range(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, **{field: value})


def test_packing_is_allowed_without_kl(tmp_path):
    assert PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, use_kl=False, packing=True).packing
