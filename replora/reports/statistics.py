"""The statistics of reports: intervals over seeds, paired comparisons, the data that one method needs to reach another.

Each function states its assumptions. With few seeds the intervals are wide, as they should be.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

RESAMPLES = 10_000
DATA_RESAMPLES = 2_000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Mean:
    """A mean with its interval.

    Attributes:
        value: Mean of the values.
        low: Lower end of the 95 % interval; None for a single value.
        high: Upper end of the interval; None for a single value.
        count: Number of values.
        deviation: Sample standard deviation (n - 1); None for a single value.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    deviation: float | None


def in_percent(mean: Mean | None, seeds: float = math.inf) -> str:
    """`83.1 ± 1.2 (n=3)`, without the count if all `seeds` have a value; empty without a mean."""
    if mean is None:
        return ""
    half = "" if mean.high is None else f" ± {100 * (mean.high - mean.value):.1f}"
    return f"{100 * mean.value:.1f}{half}" + (f" (n={mean.count})" if mean.count < seeds else "")


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean and its 95 % interval by Student's t: mean ± t(n-1) s / sqrt(n). Assumes runs of independent seeds.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("A mean needs at least one value.")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Mean(mean, None, None, 1, None)
    deviation = statistics.stdev(values)
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Mean(mean, mean - half, mean + half, count, deviation)


@dataclass(frozen=True)
class Comparison:
    """How one method differs from another on the same tasks, sizes and seeds.

    Attributes:
        difference: Mean of first minus second.
        low: Lower end of the 95 % bootstrap interval; None for a single unit.
        high: Upper end of the interval; None for a single unit.
        p_value: Two-sided p value of the sign-flip test: how often a difference of this size or larger arises if both
            methods are equally good.
        least: Smallest possible p value with this number of units: 1 / 2 ** (units - 1), which is 0.0625 for five. For
            many units, whose sign patterns are sampled, it is 1 / `RESAMPLES`.
        units: Number of independent units.
        wins: Number of pairs in which the first is better.
        ties: Number of pairs in which they are equal.
        losses: Number of pairs in which the second is better.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float
    least: float
    units: int
    wins: int
    ties: int
    losses: int


def compare_paired(units: Sequence[Sequence[float]]) -> Comparison:
    """The mean of paired differences, first minus second, with a percentile bootstrap interval and a sign-flip test.

    A unit holds differences that depend on each other: those of one task and seed over the sizes, whose training sets
    are nested. The bootstrap draws units, and the test flips their signs, as a whole. The bootstrap draws `RESAMPLES`
    samples with replacement and a fixed seed, so the same units always give the same interval. With few units the
    interval is too narrow; the p value is not affected.

    Both are written in NumPy instead of calling scipy.stats: published figures depend on this stream of random numbers,
    and `permutation_test` never returns less than 2 / (n + 1) where it samples.

    Args:
        units: Differences of the pairs of each unit.

    Raises:
        ValueError: There is no unit, or a unit without a difference.
    """
    if not units or not all(units):
        raise ValueError("A comparison needs at least one unit, and each at least one difference.")
    means = np.array([statistics.fmean(unit) for unit in units])
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    low = high = None
    if len(means) > 1:
        drawn = means[generator.integers(len(means), size=(RESAMPLES, len(means)))].mean(axis=1)
        low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    pairs = np.array([difference for unit in units for difference in unit])
    return Comparison(
        difference=float(means.mean()),
        low=low,
        high=high,
        p_value=_sign_flips(means, generator),
        least=0.5 ** (len(means) - 1) if 2 ** len(means) <= RESAMPLES else 1 / RESAMPLES,
        units=len(means),
        wins=int((pairs > 0).sum()),
        ties=int((pairs == 0).sum()),
        losses=int((pairs < 0).sum()),
    )


def _sign_flips(means: np.ndarray, generator: np.random.Generator) -> float:
    """Fraction of sign patterns (all, or `RESAMPLES` random ones for many units) whose mean is at least as large."""
    count = len(means)
    if 2**count <= RESAMPLES:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        signs = generator.choice((1.0, -1.0), size=(RESAMPLES, count))
        signs[0] = 1.0  # the observed pattern is one of them
    found = np.abs((signs * means).mean(axis=1))
    return float((found >= abs(means.mean()) - 1e-12).mean())


@dataclass(frozen=True)
class DataNeeded:
    """How much data a method needs to reach an accuracy.

    Attributes:
        size: Interpolated size, or the smallest or largest measured size if `bound` is set.
        bound: Empty for an interpolated size, `at most` if the smallest measured size reaches the accuracy, `more than`
            if no measured size does.
    """

    size: float
    bound: str


def data_needed(curve: Mapping[float, float], accuracy: float) -> DataNeeded:
    """The smallest amount of data at which a curve of mean accuracies reaches `accuracy`.

    Between two measured sizes the curve is a straight line over the logarithm of the size; nothing is extrapolated.

    Args:
        curve: Size (above 0) -> mean accuracy, for at least one size.
        accuracy: The accuracy to be reached.

    Raises:
        ValueError: The curve is empty or a size is not above 0.
    """
    points = sorted(curve.items())
    if not points or points[0][0] <= 0:
        raise ValueError("A curve needs at least one size, and sizes above 0.")
    if points[0][1] >= accuracy:
        return DataNeeded(points[0][0], "at most")
    for (small, below), (large, above) in itertools.pairwise(points):
        if above >= accuracy:
            part = (accuracy - below) / (above - below)
            return DataNeeded(small * (large / small) ** part, "")
    return DataNeeded(points[-1][0], "more than")


def data_needed_interval(
    curve: Mapping[float, Mapping[int, float]], target: Mapping[int, float]
) -> tuple[DataNeeded, DataNeeded] | None:
    """A 95 % percentile bootstrap interval of `data_needed` over seeds, the same for the curve and the target.

    If an end is a bound, the interval may reach beyond the measured sizes. The bootstrap draws `DATA_RESAMPLES` samples
    with a fixed seed. With few seeds the interval is too narrow.

    Args:
        curve: Size -> seed -> accuracy, for the method that needs the data.
        target: Seed -> accuracy of the other method, which is to be reached.

    Returns:
        The ends of the interval; None if a seed is missing at some size, or there is only one seed.
    """
    seeds = sorted(target)
    if len(seeds) < 2 or any(sorted(scores) != seeds for scores in curve.values()):
        return None
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = generator.integers(len(seeds), size=(DATA_RESAMPLES, len(seeds)))
    means = {size: np.array([scores[s] for s in seeds])[drawn].mean(axis=1) for size, scores in curve.items()}
    reached = np.array([target[seed] for seed in seeds])[drawn].mean(axis=1)
    order = {"at most": 0, "": 1, "more than": 2}
    found = [
        data_needed({size: float(mean[i]) for size, mean in means.items()}, float(reached[i]))
        for i in range(DATA_RESAMPLES)
    ]
    found.sort(key=lambda needed: (order[needed.bound], needed.size))
    return found[round(0.025 * (DATA_RESAMPLES - 1))], found[round(0.975 * (DATA_RESAMPLES - 1))]
