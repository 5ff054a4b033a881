"""What a sweep consists of: its axes, its methods, its two stages, and the trials that follow from them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["select", "final"]
Options = dict[str, Any]  # as on the command line without the dashes -> value
SEED_OPTIONS = ("seed_everything", "data.subset_seed", "data.shuffle_seed")


@dataclass(frozen=True)
class Point:
    """One value of an axis.

    Attributes:
        name: In reports and directories, such as `train_fraction=0.1`.
        options: What it sets.
    """

    name: str
    options: Options


ONLY = Point("", {})  # the one point of an axis that is absent


@dataclass(frozen=True)
class Method:
    """One of the methods that are compared.

    Attributes:
        name: In reports and directories.
        configs: Configurations laid over the sweep's.
        options: Beyond them.
        grid: The points among which is chosen.
    """

    name: str
    configs: list[str]
    options: Options
    grid: list[Point]


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        seeds: Each is a run of its own.
        options: Of every trial of the stage.
        metric: By which the first stage chooses, as in `results.json`.
        mode: Whether more or less of it is better.
    """

    seeds: list[int]
    options: Options
    metric: str = ""
    mode: Literal["max", "min"] = "max"


@dataclass(frozen=True)
class Trial:
    """One run: `replora-cli fit` with these arguments.

    Attributes:
        stage: `select` or `final`.
        method: Name of its method.
        task: Point of the axis `tasks`.
        size: Point of the axis `sizes`.
        grid: Point of the method's grid.
        seed: Of training images, their order, head, adapter and training.
        arguments: Configurations and options, without the verb and the directory.
        folder: Where below the sweep's directory; the same for the same trial in every process.
    """

    stage: Stage
    method: str
    task: Point
    size: Point
    grid: Point
    seed: int
    arguments: list[str] = field(repr=False)
    folder: str

    @property
    def cell(self) -> tuple[str, str, str]:
        """What the choice is made for: method, task and size."""
        return self.method, self.task.name, self.size.name


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, checked.

    Attributes:
        name: Of the file.
        base: Configurations under every trial.
        options: Options of every trial.
        tasks: `ONLY` where there is no such axis.
        sizes: The same.
        methods: In the file's order.
        select: The first stage, None if there is none.
        final: The second.
        overriding: Options of the command line.
        seconds_per_trial: A guess, None if unknown.
    """

    name: str
    base: list[str]
    options: Options
    tasks: list[Point]
    sizes: list[Point]
    methods: list[Method]
    select: StagePlan | None
    final: StagePlan | None
    overriding: Options
    seconds_per_trial: float | None

    def selection_trials(self) -> list[Trial]:
        """Every method, task and size at every point of its grid; seed after seed, so that early results are even."""
        if self.select is None:
            return []
        return [
            self._trial("select", method, task, size, point, seed)
            for seed in self.select.seeds
            for task, size, method in self._cells()
            for point in method.grid
        ]

    def final_trials(self, chosen: Mapping[tuple[str, str, str], Point]) -> list[Trial]:
        """Every method, task and size that has a chosen point, at that point; seed after seed.

        Args:
            chosen: `Trial.cell` -> point of the grid.
        """
        if self.final is None:
            return []
        trials = [
            self._trial("final", method, task, size, chosen.get((method.name, task.name, size.name), ONLY), seed)
            for seed in self.final.seeds
            for task, size, method in self._cells()
        ]
        return [trial for trial in trials if trial.cell in chosen]

    def planned_final_trials(self) -> list[Trial]:
        """The second stage before anything is chosen: directories are known, points are not (`ONLY` stands there)."""
        return self.final_trials(dict.fromkeys(self.cells(), ONLY))

    def only_trials(self) -> list[Trial]:
        """The second stage of a sweep without a first: each method at its one point."""
        points = {method.name: method.grid[0] for method in self.methods}
        return self.final_trials({cell: points[cell[0]] for cell in self.cells()})

    def cells(self) -> list[tuple[str, str, str]]:
        """All of `Trial.cell`."""
        return [(method.name, task.name, size.name) for task, size, method in self._cells()]

    def _cells(self) -> Iterator[tuple[Point, Point, Method]]:
        return itertools.product(self.tasks, self.sizes, self.methods)

    def _trial(self, stage: Stage, method: Method, task: Point, size: Point, point: Point, seed: int) -> Trial:
        plan = self.select if stage == "select" else self.final
        assert plan is not None
        options: Options = {}
        for part in (self.options, task.options, size.options, method.options, point.options, plan.options):
            options |= part
        options |= self.overriding | dict.fromkeys(SEED_OPTIONS, seed)
        configs = [f"--config={name}" for name in (*self.base, *method.configs)]
        # The point is not in the name of a final run: choosing anew may not leave two runs of one seed behind.
        names = [stage, task.name, method.name, size.name, point.name if stage == "select" else "", f"seed={seed}"]
        return Trial(
            stage,
            method.name,
            task,
            size,
            point,
            seed,
            [*configs, *(f"--{name}={written(value)}" for name, value in options.items())],
            "/".join(_safe(name) for name in names if name),
        )


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _safe(name: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "-", name).strip("-.")
