"""The selected point of a grid: as the final runs record it, or computed from the first stage as a sweep does."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replora.reports.choice import Choice, choose, edges_of
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
        seeds: Number of seeds of the first stage; None if it is not known.
        examples: Number of validation examples of the task that select; None if it is not known.
        tied: Number of other points that are equally good.
        noise: Whether the next best point lies within one standard error; None if the error is not known.
        points: Number of points of the grid.
        edge: `lowest` or `highest` if the learning rate is at an edge of its grid and no other point is equally good.
        shared: Whether all sizes share the point.
        elsewhere: Number of validation examples of other tasks that select instead; None if the task itself selects.
    """

    rate: float
    decay: float | None
    value: float
    metric: str
    recorded: bool
    seeds: int | None
    examples: int | None
    tied: int
    noise: bool | None
    points: int
    edge: str
    shared: bool = False
    elsewhere: int | None = None


def find_selected(group: Group, method: str, task: str, size: Size) -> Selected | None:
    """The selected point of one method, task and size; None if no point qualifies."""
    there = _of(group.selection, method, task, size)
    finals = [run for run in _of(group.final, method, task, size) if run.chosen_by.get("means")]
    by_others = any(run.from_other_tasks for run in finals or there)
    newest = max(finals, key=lambda run: str(run.results.get("fit", {}).get("date", "")), default=None)
    named = next((run.chosen_by for run in (newest, *there) if run), {})
    elsewhere = _other_tasks(group, method, task, size, named) if by_others else None
    if elsewhere is None:
        counts = {run.validation_examples for run in there or finals if not run.diverged}
        (examples,) = counts if len(counts) == 1 else (None,)
        labels = None
    else:
        of_tasks = [max(run.validation_examples or 0 for run in runs) for runs in elsewhere.values()]
        examples, labels = 0, sum(of_tasks)
    # Other tasks have the same grid.
    tried = there or [run for runs in (elsewhere or {}).values() for run in runs]
    grid = {_name(point): _options(point) for point in sorted(set(map(_point, tried)), key=_ascending)}
    if newest:
        rule = newest.chosen_by
        known = {name: [mean] for name, mean in rule["means"].items() if mean is not None}
        best = choose(known, {name: {} for name in known}, rule["metric"], rule.get("mode", "max"), "lowest", examples)
        if best is not None and newest.rate is not None:
            seeds = rule.get("seeds") or len({run.seed for run in there}) or None
            if seeds == 1 or rule.get("noise") is not None or not there:
                noise, tied = rule.get("noise", best.noise), rule.get("tied", best.tied)
            else:
                again = _choose(there, grid, rule, {run.seed for run in there}, examples)
                noise, tied = (again.noise, again.tied) if again else (None, best.tied)
            edge = "" if tied else _edge(newest.rate, newest.decay, grid)
            value, shared = known[best.point][0], rule.get("choice") == "per_method"
            metric, decay = rule["metric"], newest.decay
            return Selected(
                newest.rate, decay, value, metric, True, seeds, examples, tied, noise, len(grid), edge, shared, labels
            )
    if not there:
        return None
    rule = next((run.chosen_by for run in group.runs if run.chosen_by), {})
    rule = {"metric": f"val/{there[0].metric}", **rule}
    all_seeds = {run.seed for run in group.selection}
    if elsewhere is None:
        values = _values(there, rule["metric"])
        found = _choose(there, grid, rule, all_seeds, examples)
    else:
        of_size = ([run for run in runs if run.size == size] for runs in elsewhere.values())
        values = _over_tasks([_values(runs, rule["metric"]) for runs in of_size if runs], all_seeds)
        usable = {name: list(of_tasks.values()) for name, of_tasks in values.items() if name in grid}
        found = choose(usable, grid, rule["metric"], rule.get("mode", "max"), rule.get("ties", "middle"), None)
    if found is None:
        return None
    rate, decay = next(point for point in map(_point, there) if _name(point) == found.point)
    assert rate is not None
    value, edge = statistics.fmean(values[found.point].values()), "" if found.tied else _edge(rate, decay, grid)
    seeds, metric, tied, noise = len(all_seeds), rule["metric"], found.tied, found.noise
    return Selected(rate, decay, value, metric, False, seeds, examples, tied, noise, len(grid), edge, False, labels)


def _other_tasks(group: Group, method: str, task: str, size: Size, rule: Mapping[str, Any]) -> dict[str, list[Run]]:
    """Each other task -> its runs of the first stage that did not diverge.

    They are of the tasks and sizes that the rule names; where it names none, of all other tasks and the same size.
    """
    others: dict[str, list[Run]] = {}
    for run in group.selection:
        label = run.results.get("sweep", {})
        of_tasks = label.get("task") in rule["tasks"] if "tasks" in rule else run.task != task
        of_sizes = label.get("size") in rule["sizes"] if "sizes" in rule else run.size == size
        if run.method == method and of_tasks and of_sizes and not run.diverged:
            others.setdefault(run.task, []).append(run)
    return others


def _over_tasks(of_tasks: Sequence[dict[str, dict[int, float]]], seeds: set[int]) -> dict[str, dict[int, float]]:
    """Name of a point -> number of a task -> mean over the seeds; only points that have all seeds on all tasks."""
    return {
        name: {number: statistics.fmean(values[name].values()) for number, values in enumerate(of_tasks)}
        for name in (of_tasks[0] if of_tasks else ())
        if all(values.get(name, {}).keys() == seeds for values in of_tasks)
    }


def _choose(
    runs: Sequence[Run],
    grid: dict[str, dict[str, float]],
    rule: dict[str, Any],
    seeds: set[int],
    examples: int | None,
) -> Choice | None:
    """The choice among the points that have all seeds; a run that diverged has no value."""
    values = _values(runs, rule["metric"])
    usable = {n: [v[s] for s in sorted(v)] for n, v in values.items() if v.keys() == seeds and "lr" in grid[n]}
    return choose(usable, grid, rule["metric"], rule.get("mode", "max"), rule.get("ties", "middle"), examples)


def _values(runs: Sequence[Run], metric: str) -> dict[str, dict[int, float]]:
    """Name of a point -> seed -> value."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        value = run.metrics("fit").get(metric)
        if value is not None:
            found.setdefault(_name(_point(run)), {})[run.seed] = value
    return found


def _edge(rate: float, decay: float | None, grid: dict[str, dict[str, float]]) -> str:
    if not edges_of(_options((rate, decay)), list(grid.values())).get("lr"):
        return ""
    return "lowest" if rate == min(point["lr"] for point in grid.values() if "lr" in point) else "highest"


def _of(runs: Sequence[Run], method: str, task: str, size: Size) -> list[Run]:
    return [run for run in runs if (run.method, run.task, run.size) == (method, task, size)]


def _point(run: Run) -> Point:
    return run.rate, run.decay


def _name(point: Point) -> str:
    return str(point)


def _options(point: Point) -> dict[str, float]:
    return {name: value for name, value in zip(("lr", "decay"), point, strict=True) if value is not None}


def _ascending(point: Point) -> tuple[float, float]:
    rate, decay = point
    return rate or 0.0, -1.0 if decay is None else decay
