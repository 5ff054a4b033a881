"""Selects the best point of each method, task and size after the first stage, by validation images alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from replora.sweeps.plan import Point, StagePlan, Trial
from replora.sweeps.sweep_file import SweepError


@dataclass(frozen=True)
class Selection:
    """The selected point of a method for one task and size.

    Attributes:
        point: Point of the method's grid.
        metric: Metric of the selection.
        mode: Whether the largest or the smallest value of the metric is best.
        mean: Mean of the metric over the seeds of the first stage.
        means: Name of each point -> its mean; None if a run diverged or is missing.
        at_edge: Option of the grid -> whether the selected value is the lowest or highest of several.
    """

    point: Point
    metric: str
    mode: str
    mean: float
    means: dict[str, float | None]
    at_edge: dict[str, bool]

    def describe(self) -> dict[str, Any]:
        """The selection as `results.json` records it."""
        return {"metric": self.metric, "mode": self.mode, "means": self.means}


def select_points(
    stage: StagePlan, results: Iterable[tuple[Trial, Mapping[str, Any] | None]]
) -> dict[tuple[str, str, str], Selection]:
    """Select the point of each cell with the best mean over the seeds; among equal points, the first of the grid.

    A point qualifies only if all its seeds have a value: a run that diverged or failed excludes its point.

    Args:
        stage: The first stage.
        results: Each trial of the stage with its results; None if it failed.

    Returns:
        `Trial.cell` -> selection; cells in which no point qualifies are absent.

    Raises:
        SweepError: The metric is not in the results.
    """
    cells: dict[tuple[str, str, str], dict[str, tuple[Point, list[float | None]]]] = {}
    for trial, result in results:
        of_cell = cells.setdefault(trial.cell, {})
        of_cell.setdefault(trial.grid.name, (trial.grid, []))[1].append(_value(stage.metric, result))
    chosen = {}
    sign = 1 if stage.mode == "max" else -1
    for cell, of_cell in cells.items():
        means = {name: _mean(values, len(stage.seeds)) for name, (_, values) in of_cell.items()}
        usable = {name: mean for name, mean in means.items() if mean is not None}
        if usable:
            best = max(usable, key=lambda name: sign * usable[name])
            point = of_cell[best][0]
            edges = _edges(point, [other for other, _ in of_cell.values()])
            chosen[cell] = Selection(point, stage.metric, stage.mode, usable[best], means, edges)
    return chosen


def _value(metric: str, result: Mapping[str, Any] | None) -> float | None:
    if result is None or "failed" in result.get("sweep", {}):
        return None
    measured: dict[str, float | None] = result["fit"]["metrics"]
    if metric not in measured:
        raise SweepError(
            f"select, metric: {metric} is not in the results of the first stage, which have {', '.join(measured)}. "
            "Validation needs data.protocol=tune or holdout, and an epoch in which it is made."
        )
    return measured[metric]


def _mean(values: list[float | None], seeds: int) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) == seeds else None


def _edges(point: Point, grid: list[Point]) -> dict[str, bool]:
    edges = {}
    for option, value in point.options.items():
        others = {other.options[option] for other in grid if option in other.options}
        if len(others) > 1 and all(isinstance(other, int | float) for other in others):
            edges[option] = value in (min(others), max(others))
    return edges
