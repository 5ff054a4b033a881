"""The selected point of a grid: as the final runs record it, or computed from the first stage as a sweep does."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replora.reports.runs import Group, Run, Size

Point = tuple[float | None, float | None]  # learning rate, weight decay


@dataclass(frozen=True)
class Selected:
    """The selected point of one method, task and size.

    Attributes:
        rate: Learning rate.
        decay: Weight decay; None if the runs do not record it.
        value: Mean of the metric over the seeds of the first stage.
        metric: Metric of the selection, such as `val/accuracy`.
        recorded: Whether the final runs record the selection.
    """

    rate: float
    decay: float | None
    value: float
    metric: str
    recorded: bool


def find_selected(group: Group, method: str, task: str, size: Size) -> Selected | None:
    """The selected point of one method, task and size; None if no point qualifies."""
    finals = [run for run in _of(group.final, method, task, size) if _rule(run).get("means")]
    if finals:
        newest = max(finals, key=lambda run: str(run.results.get("fit", {}).get("date", "")))
        rule = _rule(newest)
        best = min if rule.get("mode") == "min" else max
        known = [mean for mean in rule["means"].values() if mean is not None]
        if known and newest.rate is not None:
            return Selected(newest.rate, newest.decay, best(known), rule["metric"], recorded=True)
    there = _of(group.selection, method, task, size)
    if not there:
        return None
    rule = next((rule for run in group.runs if (rule := _rule(run))), {})
    metric = str(rule.get("metric", f"val/{there[0].metric}"))
    sign = -1 if rule.get("mode") == "min" else 1
    seeds = {run.seed for run in group.selection}
    means = {point: _mean(there, point, metric, seeds) for point in dict.fromkeys(map(_point, there))}
    usable = {point: mean for point, mean in means.items() if mean is not None and point[0] is not None}
    if not usable:
        return None
    best_point = max(sorted(usable, key=_ascending), key=lambda point: sign * usable[point])
    rate, decay = best_point
    assert rate is not None
    return Selected(rate, decay, usable[best_point], metric, recorded=False)


def _of(runs: Sequence[Run], method: str, task: str, size: Size) -> list[Run]:
    return [run for run in runs if (run.method, run.task, run.size) == (method, task, size)]


def _rule(run: Run) -> dict[str, Any]:
    """Rule of the selection: {metric, mode}, and for a final run the mean of each point."""
    rule: dict[str, Any] = run.results.get("sweep", {}).get("chosen_by", {})
    return rule


def _point(run: Run) -> Point:
    return run.rate, run.decay


def _mean(runs: Sequence[Run], point: Point, metric: str, seeds: set[int]) -> float | None:
    """Mean of a point over the seeds; None if a run diverged or a seed is missing."""
    values = {run.seed: run.metrics("fit").get(metric) for run in runs if _point(run) == point}
    known = [value for value in values.values() if value is not None]
    return statistics.fmean(known) if len(known) == len(seeds) else None


def _ascending(point: Point) -> tuple[float, float]:
    rate, decay = point
    return rate or 0.0, -1.0 if decay is None else decay
