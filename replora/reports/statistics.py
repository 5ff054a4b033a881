"""The statistics of reports: intervals over seeds or tasks, paired comparisons, data needed.

Each function states its assumptions. All intervals are Student's t intervals, also with few units, where they are wide.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm, t

EXACT_UNITS = 20  # largest number of units of which a test tries all sign patterns
PATTERNS = 10_000  # number of random sign patterns beyond
SIGN_SEED = 0
CURVE_POINTS = 1_000
CONFIDENCE = 0.95


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


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval of the mean over the last axis by Student's t: mean ± t(n-1) s / sqrt(n).

    Assumes independent units with about normal values. There must be at least two units.
    """
    count = values.shape[-1]
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    mean, half = values.mean(axis=-1), quantile * values.std(axis=-1, ddof=1) / math.sqrt(count)
    return mean - half, mean + half


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean and its 95 % interval by Student's t. Assumes runs of independent seeds.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("A mean needs at least one value.")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Mean(mean, None, None, 1, None)
    low, high = t_interval(np.array(values))
    return Mean(mean, float(low), float(high), count, statistics.stdev(values))


def error_over_divisions(values: Sequence[float], division: int) -> float | None:
    """Standard error of the mean of repeated cross-validation, in which every division is of the same examples.

    Within a division of k folds, the values are of different examples. Their s² / k is the variance W of the mean of
    one division: from the choice of the examples, and from the noise of dividing and training. Means of divisions
    differ by that noise alone; their variance is B. The mean of R divisions has the variance W - B + B / R, since more
    divisions reduce the noise and not the share of the examples. With one division it is W.

    Args:
        values: Values of one division after the other; the last one may be incomplete.
        division: Number of values of a division (>= 1).

    Returns:
        None if no division has two values.
    """
    parts = [values[i : i + division] for i in range(0, len(values), division)]
    freedom = sum(len(part) - 1 for part in parts)
    if not freedom:
        return None
    squares = math.fsum(statistics.variance(part) * (len(part) - 1) for part in parts if len(part) > 1)
    within = squares / freedom / min(division, len(values))
    means = [statistics.fmean(part) for part in parts if len(part) == division]
    if len(means) < 2:
        return math.sqrt(within)
    between = statistics.variance(means)
    return math.sqrt(max(0.0, within - between) + between * division / len(values))


def mean_over_divisions(values: Sequence[float], division: int) -> Mean:
    """The mean of repeated cross-validation and its 95 % interval, by `error_over_divisions`.

    Student's t has the degrees of freedom of all divisions, k - 1 in each, by which W is estimated.

    Raises:
        ValueError: There is no value.
    """
    mean, error = mean_over_seeds(values), error_over_divisions(values, division)
    if len(values) <= division or error is None:
        return mean
    freedom = len(values) - math.ceil(len(values) / division)
    half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    return replace(mean, low=mean.value - half, high=mean.value + half)


def proportion_error(accuracy: float, examples: int) -> float:
    """Standard error of an accuracy from the choice of its test examples: that of a binomial proportion.

    For a mean over runs on the same test examples it is an upper bound, reached if all runs err on the same ones.
    """
    return math.sqrt(accuracy * (1 - accuracy) / examples)


def half_widths(low: float, high: float, error: float) -> tuple[float, float, float]:
    """Half the 95 % interval of what its ends contain, of an independent standard error, and of both together."""
    own, other = (high - low) / 2, float(norm.ppf(0.5 + CONFIDENCE / 2)) * error
    return own, other, math.hypot(own, other)


@dataclass(frozen=True)
class Comparison:
    """How one method differs from another on the same tasks, sizes and seeds.

    Attributes:
        difference: Mean of first minus second.
        low: Lower end of the 95 % interval by Student's t over the units; None for a single unit.
        high: Upper end of the interval; None for a single unit.
        p_value: Two-sided p value of the sign-flip test: how often a difference of this size or larger arises if both
            methods are equally good.
        least: Smallest possible p value with this number of units: 1 / 2 ** (units - 1), which is 0.0625 for five. For
            many units, whose sign patterns are sampled, it is 1 / `PATTERNS`.
        units: Number of independent units.
        wins: Number of pairs in which the first is better.
        ties: Number of pairs in which they are equal.
        losses: Number of pairs in which the second is better.
        sampling_error: Standard error of the difference from the choice of test examples, which the interval does not
            contain; None if it is unknown, or in the interval.
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
    sampling_error: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes 0, the rule for a significant difference; 0 if it does not."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return 0
        return 1 if self.low > 0 else -1

    @property
    def total(self) -> tuple[float, float] | None:
        """The interval with the choice of test examples; None if that is unknown, or already in the interval."""
        if self.low is None or self.high is None or self.sampling_error is None:
            return None
        *_, half = half_widths(self.low, self.high, self.sampling_error)
        return self.difference - half, self.difference + half


def compare_paired(units: Sequence[Sequence[float]], sampling_error: float | None = None) -> Comparison:
    """The mean of paired differences, first minus second, with an interval by Student's t and a sign-flip test.

    A unit holds differences that depend on each other: those of one seed over the sizes, whose training sets are
    nested, or those of one task. The interval decides whether a difference is significant: it keeps its level also for
    the few units with which the sign-flip test, which needs no normal differences, cannot fall below 0.05.

    The test is written in NumPy instead of calling scipy.stats: `permutation_test` never returns less than 2 / (n + 1)
    where it samples.

    Args:
        units: Differences of the pairs of each unit.
        sampling_error: As in `Comparison`.

    Raises:
        ValueError: There is no unit, or a unit without a difference.
    """
    if not units or not all(units):
        raise ValueError("A comparison needs at least one unit, and each at least one difference.")
    means = np.array([statistics.fmean(unit) for unit in units])
    low, high = map(float, t_interval(means)) if len(means) > 1 else (None, None)
    pairs = np.array([difference for unit in units for difference in unit])
    return Comparison(
        difference=float(means.mean()),
        low=low,
        high=high,
        p_value=_sign_flips(means),
        least=0.5 ** (len(means) - 1) if len(means) <= EXACT_UNITS else 1 / PATTERNS,
        units=len(means),
        wins=int((pairs > 0).sum()),
        ties=int((pairs == 0).sum()),
        losses=int((pairs < 0).sum()),
        sampling_error=sampling_error,
    )


def _sign_flips(means: np.ndarray) -> float:
    """Fraction of sign patterns (all, or `PATTERNS` random ones for many units) whose sum is at least as large."""
    if len(means) <= EXACT_UNITS:
        sums = means[:1]  # the other sign of the first unit gives the same sizes
        for mean in means[1:]:
            sums = np.concatenate([sums + mean, sums - mean])
    else:
        signs = np.random.default_rng(SIGN_SEED).choice((1.0, -1.0), size=(PATTERNS, len(means)))
        signs[0] = 1.0  # the observed pattern is one of them
        sums = signs @ means
    return float((np.abs(sums) >= abs(means.sum()) - 1e-12 * len(means)).mean())


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
    """A 95 % interval of `data_needed` over seeds, the same for the curve and the target.

    It reaches from the smallest to the largest amount at which the paired difference between curve and target has an
    interval by Student's t that contains 0. If an end is a bound, the interval may reach beyond the measured sizes.

    Args:
        curve: Size -> seed -> accuracy, for the method that needs the data.
        target: Seed -> accuracy of the other method, which is to be reached.

    Returns:
        The ends of the interval; None if a seed is missing at some size, or there is only one seed.
    """
    seeds, sizes = sorted(target), sorted(curve)
    if len(seeds) < 2 or any(sorted(scores) != seeds for scores in curve.values()):
        return None
    amounts = np.union1d(np.geomspace(sizes[0], sizes[-1], CURVE_POINTS)[1:-1], sizes)
    of_seeds = [np.interp(np.log(amounts), np.log(sizes), [curve[size][seed] for size in sizes]) for seed in seeds]
    low, high = t_interval(np.stack(of_seeds, axis=1) - np.array([target[seed] for seed in seeds]))
    possible = amounts[(low <= 0) & (high >= 0)]
    if not len(possible):
        means = {size: statistics.fmean(scores.values()) for size, scores in curve.items()}
        only = data_needed(means, statistics.fmean(target.values()))
        return only, only
    first, last = float(possible[0]), float(possible[-1])
    return (
        DataNeeded(first, "at most" if first == sizes[0] else ""),
        DataNeeded(last, "more than" if last == sizes[-1] else ""),
    )
