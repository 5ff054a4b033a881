"""Which point of a grid is selected, and how sure that is: one rule for sweeps and for reports."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from replora.reports.statistics import error_over_divisions, proportion_error

Ties = Literal["middle", "lowest"]  # which of equally good points is selected; `lowest` is the first of the grid
PROPORTIONS = ("accuracy", "acc", "acc_norm")  # metrics that are the correct part of the examples


@dataclass(frozen=True)
class Choice:
    """The selected point of a grid.

    Attributes:
        point: Its name.
        tied: Number of other points that are equally good.
        noise: Whether the next best point lies within one standard error of it; None if the error is not known.
        at_edge: Option of the grid -> whether the selected value is the lowest or highest of several; never for a tie.
    """

    point: str
    tied: int
    noise: bool | None
    at_edge: dict[str, bool]


def choose(
    values: Mapping[str, Sequence[float]],
    grid: Mapping[str, Mapping[str, Any]],
    metric: str,
    mode: str,
    ties: Ties,
    examples: int | None,
) -> Choice | None:
    """Select the point with the best mean over the seeds; None if there is no point.

    Args:
        values: Name of a point -> its values, one per seed in the same order. Points without all seeds are absent.
        grid: Name of each point of the grid, in its order -> its options.
        metric: Name of the values, such as `val/accuracy`.
        mode: `max` or `min`.
        ties: Which of equally good points is selected.
        examples: Number of validation examples; None if it is not known.
    """
    sign = -1 if mode == "min" else 1
    # Rounded, because sums of equal scores in another order differ in the last bit.
    means = {name: round(sign * statistics.fmean(values[name]), 12) for name in grid if name in values}
    if not means:
        return None
    best = [name for name, mean in means.items() if mean == max(means.values())]
    point = min(best, key=lambda name: _off_center(grid[name], grid)) if ties == "middle" else best[0]
    others = sorted((name for name in means if name != point), key=lambda name: -means[name])
    examples = examples if is_proportion(metric) else None
    noise = within_error(values[point], values[others[0]], examples) if others else False
    edges = {option: edge and len(best) == 1 for option, edge in edges_of(grid[point], list(grid.values())).items()}
    return Choice(point, len(best) - 1, noise, edges)


def edges_of(point: Mapping[str, Any], grid: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Option of a point -> whether its value is the lowest or highest of several numbers."""
    edges = {}
    for option, value in point.items():
        others = _values_of(option, grid)
        if len(others) > 1 and all(isinstance(other, int | float) for other in others):
            edges[option] = value in (min(others), max(others))
    return edges


def _off_center(point: Mapping[str, Any], grid: Mapping[str, Mapping[str, Any]]) -> float:
    """Distance from the middle of the grid in steps, over all of its options."""
    distance = 0.0
    for option, value in point.items():
        axis = _values_of(option, grid.values())
        if all(isinstance(other, int | float) for other in axis):
            axis.sort()
        distance += abs(axis.index(value) - (len(axis) - 1) / 2)
    return distance


def _values_of(option: str, grid: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The different values of an option in a grid, in its order; a list or a mapping is one value."""
    found: list[Any] = []
    for point in grid:
        if option in point and point[option] not in found:
            found.append(point[option])
    return found


def is_proportion(metric: str) -> bool:
    """Whether a metric, such as `val/accuracy`, is the correct part of the examples."""
    return metric.rpartition("/")[2] in PROPORTIONS


def errors_behind(best: Sequence[float], other: Sequence[float], examples: int | None, division: int) -> float:
    """By how many standard errors (`error_behind`) the mean of `other` is off that of the best, where both have one."""
    error, behind = error_behind(best, other, examples, division), _distance(best, other)
    if not behind:
        return 0.0
    return behind / error if error else math.inf


def mean_behind(best: Sequence[float], other: Sequence[float]) -> float:
    """By how much the mean of `other` is lower than that of the best, on the measurements that both have."""
    return statistics.fmean(one - two for one, two in zip(best, other, strict=False))


def _distance(best: Sequence[float], other: Sequence[float]) -> float:
    return round(abs(mean_behind(best, other)), 12)


def error_behind(best: Sequence[float], other: Sequence[float], examples: int | None, division: int) -> float:
    """Standard error of the difference of two means, on the measurements that both have.

    It is that of paired measurements (`error_over_divisions`), but of proportions it has a least value. In the
    first division, which has few measurements, that is the error of the best proportion of all examples. With more
    divisions it is the error if each example on which the two differ were in favor of the same one: a difference of d
    in n examples cannot have a smaller one than sqrt(d (1 - d) / n), so less than one example is within one error.

    Args:
        best: Values, one per measurement.
        other: Values of the same measurements, or of the first of them.
        examples: Number of examples of one measurement, if the values are proportions of them.
        division: How many measurements in a row are of different examples; those that follow are of the same again.
    """
    pairs = list(zip(best, other, strict=False))
    differences = [one - two for one, two in pairs]
    behind = _distance(best, other)
    errors = [error_over_divisions(differences, division) or 0.0]
    if examples:
        repeated = len(pairs) >= 2 * division
        proportion = behind if repeated else statistics.fmean(one for one, _ in pairs)
        errors.append(proportion_error(proportion, examples * min(division, len(pairs))))
    return max(errors)


def _paired_error(differences: Sequence[float]) -> float:
    return statistics.stdev(differences) / math.sqrt(len(differences))


def within_error(best: Sequence[float], other: Sequence[float], examples: int | None) -> bool | None:
    """Whether two means differ by at most a standard error: that of paired seeds, or of a proportion for one seed."""
    differences = [one - two for one, two in zip(best, other, strict=True)]
    if len(differences) > 1:
        error = _paired_error(differences)
    elif examples:
        error = proportion_error(best[0], examples)
    else:
        return True if differences == [0] else None
    return abs(statistics.fmean(differences)) <= error + 1e-12
