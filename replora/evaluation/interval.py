"""How far an accuracy may be off for want of test items."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054  # the standard normal distribution holds 95 % between -z and z


def wilson_interval(right: int, items: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for an accuracy of `right` out of `items`, both ends in [0, 1].

    It says what other test items might have given; another seed of the training varies on top of it.
    """
    if items == 0:
        return 0.0, 1.0
    share = right / items
    centre = share + Z_95**2 / (2 * items)
    spread = Z_95 * math.sqrt(share * (1 - share) / items + Z_95**2 / (4 * items**2))
    scale = 1 + Z_95**2 / items
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
