"""How far a measured share may be from the true one."""

import math


Z = 1.96  # 95 %


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """
    Returns the 95 % interval of a share by Wilson's score, which stays within 0 and 1 also for few items.

    Args:
        correct (`int`):
            How many of the items.
        total (`int`):
            Number of items, at least one.
    """
    share, weight = correct / total, Z * Z / total
    center = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(center - half, 0.0), min(center + half, 1.0)
