"""Selects the best point of each method, task and size after the first stage, by validation images alone.

With `source: other_tasks` the runs of the task itself have no say: its point is the one with the least mean regret over
the other tasks, where the regret of a point on a task is the best value of the task's grid minus that of the point. On
a task that best value is the same for all points, so this is the point with the best mean over the other tasks. Values
are not rescaled: a task counts by what there is to lose on it, and one whose values hardly depend on the point hardly
counts. Ranks, or values relative to the range of each task, would give the noise of such a task full weight.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from replora.io import UnreadableFileError, replace_text
from replora.reports.choice import Choice, Ties, choose
from replora.run_directory import files_named
from replora.sweeps.plan import Cell, Options, Point, Source, StagePlan, Sweep, Trial
from replora.sweeps.sweep_file import SweepError
from replora.sweeps.trial import results_there

Per = Literal["per_size", "per_method"]
RULE_FILE = "selection.json"


@dataclass(frozen=True)
class Rule:
    """How points are selected.

    Attributes:
        ties: Which of equally good points is selected: the one nearest the middle of the grid, or its first.
        choice: Whether each size has its own point, or each method and task one point for all sizes.
        source: Whether the point of a task is selected by its own runs, or by those of all other tasks.
    """

    ties: Ties = "middle"
    choice: Per = "per_size"
    source: Source = "own_task"

    def deciding(self, cell: Cell, cells: Collection[Cell]) -> list[Cell]:
        """Those of the cells by whose runs the point of `cell` is selected."""
        method, task, size = cell
        return [
            other
            for other in cells
            if other[0] == method
            and (other[1] == task) == (self.source == "own_task")
            and (other[2] == size or self.choice == "per_method")
        ]

    def elsewhere(self, cell: Cell, sweep: Sweep) -> dict[str, list[Options]]:
        """The tasks and sizes that decide, as results name them, where these are others than those of the cell."""
        deciding = self.deciding(cell, sweep.cells())
        named: dict[str, list[Options]] = {}
        for kind, points, place in (("tasks", sweep.tasks, 1), ("sizes", sweep.sizes, 2)):
            names = {other[place] for other in deciding}
            if names != {cell[place]}:
                named[kind] = [point.options for point in points if point.name in names]
        return named


@dataclass(frozen=True)
class Selection:
    """The selected point of a method for one task and size.

    Attributes:
        point: Point of the method's grid.
        metric: Metric of the selection.
        mode: Whether the largest or the smallest value of the metric is best.
        mean: Mean of the metric over the seeds of the first stage, over the sizes if they share a point, and over the
            other tasks if these select it.
        means: Name of each point -> its mean; None if a run diverged or is missing.
        seeds: Number of seeds of the first stage.
        found: Ties, noise and edges of the selection.
        rule: The rule of the selection.
    """

    point: Point
    metric: str
    mode: str
    mean: float
    means: dict[str, float | None]
    seeds: int
    found: Choice
    rule: Rule

    def describe(self) -> dict[str, Any]:
        """The selection as `results.json` records it."""
        recorded = {"metric": self.metric, "mode": self.mode, "means": self.means, "seeds": self.seeds}
        recorded |= {"point": self.point.options}
        return recorded | asdict(self.rule) | {"tied": self.found.tied, "noise": self.found.noise}

    def remarks(self) -> str:
        """What a reader of the selection should know."""
        edge = ", at the edge of the grid" if any(self.found.at_edge.values()) else ""
        tied = f", tied with {self.found.tied} other{'s' if self.found.tied > 1 else ''}" if self.found.tied else ""
        return edge + (tied or (", within one standard error of the next" if self.found.noise else ""))


def selection_rule(home: Path, choice: Per | None = None, source: Source = "own_task") -> Rule:
    """The rule of the sweep in `home`: that of its file, else the one that its final runs record.

    A sweep whose final runs began before there was a rule for ties selected the first of equally good points, and goes
    on so.

    Args:
        home: Directory of the sweep.
        choice: Replaces the recorded choice. Default: the recorded one, else one for each size.
        source: That of the sweep's file.

    Raises:
        SweepError: The file cannot be read.
        ResultsError: The results of a final run are of a newer format.
    """
    file = home / RULE_FILE
    if file.is_file():
        try:
            rule = Rule(**json.loads(file.read_text(encoding="utf-8")))
            known = rule.ties in get_args(Ties) and rule.choice in get_args(Per) and rule.source in get_args(Source)
            if not known:
                raise ValueError(f"{asdict(rule)} is none that there is")
        except (ValueError, TypeError) as error:
            raise SweepError(f"{file} holds no rule of a selection: {error}. Delete it to select again.") from error
    else:
        rule = _rule_of_final_runs(home)
    return Rule(rule.ties, choice or rule.choice, source)


def write_rule(home: Path, rule: Rule) -> None:
    """Record the rule of the sweep in `home`, if it is another one than before."""
    text = json.dumps(asdict(rule)) + "\n"
    file = home / RULE_FILE
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        replace_text(file, text)


def _rule_of_final_runs(home: Path) -> Rule:
    """The rule that the newest of the final runs names; of runs from before there was one, `lowest`."""
    files = sorted(files_named("results.json", home / "final"), key=lambda file: file.stat().st_mtime, reverse=True)
    former = Rule("lowest" if files or any(files_named("trial.json", home / "final")) else "middle")
    for file in files:
        with suppress(UnreadableFileError):  # its trial runs again
            if named := results_there(file.parent).get("sweep", {}).get("chosen_by"):
                return Rule(named.get("ties", former.ties), named.get("choice", former.choice))
    return former


def select_points(
    stage: StagePlan, results: Iterable[tuple[Trial, Mapping[str, Any] | None]], rule: Rule
) -> dict[Cell, Selection]:
    """Select the point of each cell with the best mean: over the seeds, over the sizes if the rule says so, and over
    the other tasks instead of the own one if it says so.

    A point qualifies only if all runs that decide have a value: one that diverged or failed excludes its point.

    Args:
        stage: The first stage.
        results: Each trial of the stage with its results; None if it failed.
        rule: The rule of the selection.

    Returns:
        `Trial.cell` -> selection; cells in which no point qualifies are absent.

    Raises:
        SweepError: The metric is not in the results.
    """
    points: dict[Cell, dict[str, Point]] = {}
    values: dict[Cell, dict[str, dict[int, float | None]]] = {}
    examples: dict[Cell, set[int | None]] = {}
    for trial, result in results:
        points.setdefault(trial.cell, {})[trial.grid.name] = trial.grid
        values.setdefault(trial.cell, {}).setdefault(trial.grid.name, {})[trial.seed] = _value(stage.metric, result)
        if result is not None:
            examples.setdefault(trial.cell, set()).add(_validation_examples(result))
    chosen: dict[Cell, Selection] = {}
    for cell, of_cell in points.items():
        deciding = rule.deciding(cell, values)
        grid = {name: point.options for name, point in of_cell.items()}
        usable: dict[str, list[float]] = {}
        for name in grid:
            # Seeds repeat a measurement on the own task; of several other tasks each is one measurement.
            units: dict[int | str, list[float | None]] = {}
            for other in deciding:
                for seed in stage.seeds:
                    unit = seed if rule.source == "own_task" else other[1]
                    units.setdefault(unit, []).append(values[other].get(name, {}).get(seed))
            if units and not any(None in unit for unit in units.values()):
                usable[name] = [statistics.fmean(v for v in unit if v is not None) for unit in units.values()]
        counts = set[int | None]().union(*(examples.get(other, ()) for other in deciding))
        (count,) = counts if len(counts) == 1 else (None,)
        found = choose(usable, grid, stage.metric, stage.mode, rule.ties, count)
        if found is not None:
            means = {name: statistics.fmean(usable[name]) if name in usable else None for name in grid}
            mean = statistics.fmean(usable[found.point])
            point = of_cell[found.point]
            chosen[cell] = Selection(point, stage.metric, stage.mode, mean, means, len(stage.seeds), found, rule)
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


def _validation_examples(result: Mapping[str, Any]) -> int | None:
    data = result.get("data", {})
    size: int | None = data.get("split_sizes", {}).get("val", data.get("splits", {}).get("val", {}).get("size"))
    return size
