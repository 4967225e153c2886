import pytest

from puma_trl.record.intervals import wilson


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(20, 40, 0.352, 0.648), (83, 200, 0.349, 0.484), (0, 5, 0.0, 0.434), (5, 5, 0.566, 1.0)],
)
def test_published_values(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-4)


def test_nothing_counted():
    assert wilson(0, 0) is None
