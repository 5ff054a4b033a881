"""Selects the best point of each method, task and size after the first stage, by validation images alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from replora.io import replace_text
from replora.reports.choice import Choice, Ties, choose
from replora.sweeps.plan import Point, StagePlan, Trial
from replora.sweeps.sweep_file import SweepError

Per = Literal["per_size", "per_method"]
RULE_FILE = "selection.json"


@dataclass(frozen=True)
class Rule:
    """How points are selected.

    Attributes:
        ties: Which of equally good points is selected: the one nearest the middle of the grid, or its first.
        choice: Whether each size has its own point, or each method and task one point for all sizes.
    """

    ties: Ties = "middle"
    choice: Per = "per_size"


@dataclass(frozen=True)
class Selection:
    """The selected point of a method for one task and size.

    Attributes:
        point: Point of the method's grid.
        metric: Metric of the selection.
        mode: Whether the largest or the smallest value of the metric is best.
        mean: Mean of the metric over the seeds of the first stage, and over the sizes if they share a point.
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
        return recorded | asdict(self.rule) | {"tied": self.found.tied, "noise": self.found.noise}

    def remarks(self) -> str:
        """What a reader of the selection should know."""
        edge = ", at the edge of the grid" if any(self.found.at_edge.values()) else ""
        tied = f", tied with {self.found.tied} other{'s' if self.found.tied > 1 else ''}" if self.found.tied else ""
        return edge + (tied or (", within one standard error of the next" if self.found.noise else ""))


def selection_rule(home: Path, choice: Per | None = None) -> Rule:
    """The rule of the sweep in `home`, which is written there when it is first asked for.

    A sweep whose final runs began before there was such a file selected the first of equally good points, and goes on
    so.

    Args:
        home: Directory of the sweep.
        choice: Replaces the recorded choice. Default: the recorded one, else one for each size.

    Raises:
        SweepError: The file cannot be read.
    """
    file = home / RULE_FILE
    if file.is_file():
        try:
            rule = Rule(**json.loads(file.read_text(encoding="utf-8")))
            if rule.ties not in get_args(Ties) or rule.choice not in get_args(Per):
                raise ValueError(f"{asdict(rule)} is none that there is")
        except (ValueError, TypeError) as error:
            raise SweepError(f"{file} holds no rule of a selection: {error}. Delete it to select again.") from error
    else:
        rule = Rule("lowest" if any((home / "final").rglob("trial.json")) else "middle")
    rule = Rule(rule.ties, choice or rule.choice)
    replace_text(file, json.dumps(asdict(rule)) + "\n")
    return rule


def select_points(
    stage: StagePlan, results: Iterable[tuple[Trial, Mapping[str, Any] | None]], rule: Rule
) -> dict[tuple[str, str, str], Selection]:
    """Select the point of each cell with the best mean over the seeds, and over the sizes if the rule says so.

    A point qualifies only if all its seeds have a value: a run that diverged or failed excludes its point.

    Args:
        stage: The first stage.
        results: Each trial of the stage with its results; None if it failed.
        rule: The rule of the selection.

    Returns:
        `Trial.cell` -> selection; cells in which no point qualifies are absent.

    Raises:
        SweepError: The metric is not in the results.
    """
    together: dict[tuple[str, ...], dict[tuple[str, str, str], None]] = {}
    points: dict[tuple[str, ...], dict[str, Point]] = {}
    values: dict[tuple[str, ...], dict[str, dict[int, list[float | None]]]] = {}
    examples: dict[tuple[str, ...], set[int | None]] = {}
    for trial, result in results:
        key: tuple[str, ...] = trial.cell if rule.choice == "per_size" else trial.cell[:2]
        together.setdefault(key, {})[trial.cell] = None
        points.setdefault(key, {})[trial.grid.name] = trial.grid
        of_point = values.setdefault(key, {}).setdefault(trial.grid.name, {})
        of_point.setdefault(trial.seed, []).append(_value(stage.metric, result))
        if result is not None:
            examples.setdefault(key, set()).add(_validation_examples(result))
    chosen: dict[tuple[str, str, str], Selection] = {}
    for key, cells in together.items():
        usable = {
            name: [statistics.fmean(v for v in of_seed if v is not None) for of_seed in of_seeds.values()]
            for name, of_seeds in values[key].items()
            if len(of_seeds) == len(stage.seeds)
            and all(len(v) == len(cells) and None not in v for v in of_seeds.values())
        }
        grid = {name: point.options for name, point in points[key].items()}
        (count,) = examples[key] if len(examples.get(key, ())) == 1 else (None,)
        found = choose(usable, grid, stage.metric, stage.mode, rule.ties, count)
        if found is not None:
            means = {name: statistics.fmean(usable[name]) if name in usable else None for name in grid}
            mean = statistics.fmean(usable[found.point])
            point = points[key][found.point]
            selection = Selection(point, stage.metric, stage.mode, mean, means, len(stage.seeds), found, rule)
            chosen |= dict.fromkeys(cells, selection)
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
