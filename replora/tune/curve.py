"""What each learning rate is worth by all of them: a curve through noisy means, by Bayes' rule.

Accuracy over the logarithm of the learning rate is a smooth curve with one top. A mean of few examples says more about
the rates beside its own than the noise of a single one, so the best of smoothed means is a better choice than the best
mean. `tests/tune/test_curve.py` compares the rules on simulated tasks.

The model, for the mean y of a candidate whose rate lies x factors of two from the configured one:

    y = a + b x + c x^2 + d + noise,    b ~ N(0, SLOPE),  c ~ N(CURVATURE, CURVATURE_SPREAD),  d ~ N(0, DEVIATION)

The four numbers are rounded from `scripts/tune_prior.py`, which fits them to the sweeps of this project. Their
configured rates suit their tasks, which those of other data may not: with the probability ELSEWHERE, the best rate is
far off, and the slope several times as steep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Parts of the examples (an accuracy is in [0, 1]), per factor of two of the rate.
SLOPE = 0.015
CURVATURE, CURVATURE_SPREAD = -0.007, 0.0035
DEVIATION = 0.01
ELSEWHERE, STEEPER = 0.2, 5.0  # a guess; without it, clear measurements of a steep slope count for little
# A rate at which training fails is far below any curve, and would bend it for all others.
FARTHEST = 3.0  # largest distance from the best mean, in standard deviations


def smoothed(octaves: Sequence[float], means: Sequence[float], errors: Sequence[float]) -> list[float]:
    """The expected accuracy at each rate, given the means of all.

    Args:
        octaves: By how many factors of two each rate is above (> 0) or below the one that is expected to be best.
        means: Mean accuracy at each rate, in [0, 1].
        errors: Standard error of each mean (>= 0), without what all have in common, such as difficult examples.

    Returns:
        One value per rate.
    """
    x = np.asarray(octaves, dtype=float)
    y = np.asarray(means, dtype=float)
    variances = np.asarray(errors, dtype=float) ** 2
    y = np.maximum(y, y.max() - FARTHEST * np.sqrt(variances + DEVIATION**2))
    bend = CURVATURE * x**2
    level = y.mean() - bend.mean()
    rest = y - level - bend
    curves, weights = [], []
    for slope, probability in ((SLOPE, 1 - ELSEWHERE), (STEEPER * SLOPE, ELSEWHERE)):
        # Covariance of the curve at the rates; the level a is unknown, so its variance is as good as infinite.
        curve = 1.0 + slope**2 * np.outer(x, x) + CURVATURE_SPREAD**2 * np.outer(x**2, x**2)
        curve += DEVIATION**2 * np.eye(len(x))
        measured = curve + np.diag(variances)
        explained = np.linalg.solve(measured, rest)
        curves.append(level + bend + curve @ explained)
        weights.append(math.log(probability) - (np.linalg.slogdet(measured)[1] + rest @ explained) / 2)
    shares = np.exp(np.array(weights) - max(weights))
    return [float(value) for value in shares @ np.array(curves) / shares.sum()]
