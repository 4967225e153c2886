"""How far a measured rate may be from the true one."""

import math


Z95 = 1.959963984540054


def wilson(correct: int, total: int) -> tuple[float, float] | None:
    """
    Returns the 95 % interval of a rate by Wilson's score, which stays within 0 and 1 also for few items; `None` where
    nothing was counted.
    """
    if not total:
        return None
    share, square = correct / total, Z95 * Z95
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    return max(0.0, middle - half), min(1.0, middle + half)
