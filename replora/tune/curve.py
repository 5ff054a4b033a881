"""What each learning rate is worth by all of them: a curve through noisy means, by Bayes' rule.

Accuracy over the logarithm of the learning rate is a smooth curve with one top. A mean of few examples says more about
the rates beside its own than the noise of a single one, so the best of smoothed means is a better choice than the best
mean. `tests/tune/test_curve.py` compares the rules on simulated tasks.

The model, for the mean y of a candidate whose rate lies x factors of two from the configured one:

    y = a + b x + c x^2 + d + noise,    b ~ N(0, SLOPE),  c ~ N(CURVATURE, CURVATURE_SPREAD),  d ~ N(0, DEVIATION)

The four numbers are rounded from `scripts/tune_prior.py`, which fits them to the sweeps of this project.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Parts of the examples (an accuracy is in [0, 1]), per factor of two of the rate.
SLOPE = 0.015
CURVATURE, CURVATURE_SPREAD = -0.007, 0.0035
DEVIATION = 0.01
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
    expected = CURVATURE * x**2
    # Covariance of the curve at the rates; the level a is unknown, so its variance is as good as infinite.
    curve = 1.0 + SLOPE**2 * np.outer(x, x) + CURVATURE_SPREAD**2 * np.outer(x**2, x**2)
    curve += DEVIATION**2 * np.eye(len(x))
    level = y.mean() - expected.mean()
    gain = np.linalg.solve(curve + np.diag(variances), y - level - expected)
    return [float(value) for value in level + expected + curve @ gain]
