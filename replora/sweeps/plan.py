"""What a sweep consists of: its axes, its methods, its two stages, and the trials that follow from them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Stage = Literal["select", "final"]
Source = Literal["own_task", "other_tasks"]  # whose validation scores select a point
Points = Literal["selected", "all"]  # at which points of its grid a method has final runs
Cell = tuple[str, str, str]  # method, task, size
Options = dict[str, Any]  # as on the command line without the dashes -> value
SEED_OPTIONS = ("seed_everything", "data.subset_seed", "data.shuffle_seed")


@dataclass(frozen=True)
class Point:
    """One value of an axis.

    Attributes:
        name: Name in reports and directories, such as `train_fraction=0.1`.
        options: Options that it sets.
    """

    name: str
    options: Options


ONLY = Point("", {})  # the only point of an absent axis


@dataclass(frozen=True)
class Method:
    """One of the methods that are compared.

    Attributes:
        name: Name in reports and directories.
        configs: Configurations on top of those of the sweep.
        options: Options on top of the configurations.
        grid: Points from which one is selected.
    """

    name: str
    configs: list[str]
    options: Options
    grid: list[Point]


@dataclass(frozen=True)
class StagePlan:
    """One stage of a sweep.

    Attributes:
        seeds: Random seeds; each is a separate run.
        options: Options of every trial of the stage.
        metric: Metric by which the first stage selects points, as named in `results.json`.
        mode: Whether the largest or the smallest value of the metric is best.
        source: Whether the first stage selects the point of a task by its own runs, or by those of all other tasks.
        points: Whether the second stage runs at the selected point alone, or at every point of the grid.
    """

    seeds: list[int]
    options: Options
    metric: str = ""
    mode: Literal["max", "min"] = "max"
    source: Source = "own_task"
    points: Points = "selected"


@dataclass(frozen=True)
class Trial:
    """One run: `replora-cli fit` with these arguments.

    Attributes:
        stage: `select` or `final`.
        method: Name of the method.
        task: Point of the axis `tasks`.
        size: Point of the axis `sizes`.
        grid: Point of the method's grid.
        seed: Random seed for the choice and order of training images, the head, the adapter and training.
        arguments: Configurations and options, without the verb and the directory.
        folder: Directory of the trial below that of the sweep. It depends only on the trial.
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
    def cell(self) -> Cell:
        """Method, task and size, for which one point is selected."""
        return self.method, self.task.name, self.size.name


@dataclass(frozen=True)
class Sweep:
    """The checked content of a sweep's file.

    Attributes:
        name: Name of the file without its suffix.
        base: Configurations of every trial.
        options: Options of every trial.
        tasks: Points of the axis of tasks; only `ONLY` if there is no such axis.
        sizes: Points of the axis of training set sizes; only `ONLY` if there is no such axis.
        methods: Methods in the order of the file.
        select: The first stage; None if there is none.
        final: The second stage; None if there is none.
        overriding: Options of the command line, which replace those of the file.
        seconds_per_trial: Expected duration of a trial; None if unknown.
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

    def with_select_seeds(self, count: int) -> Sweep:
        """The sweep with this number of seeds in its first stage: those of the file, then the next whole numbers."""
        if self.select is None:
            return self
        seeds = self.select.seeds
        more = (seed for seed in itertools.count() if seed not in seeds)
        seeds = [*seeds, *itertools.islice(more, max(0, count - len(seeds)))][:count]
        return replace(self, select=replace(self.select, seeds=seeds))

    def selection_trials(self) -> list[Trial]:
        """Every method, task and size at every point of its grid, seed after seed: early results are balanced."""
        if self.select is None:
            return []
        return [
            self._trial("select", method, task, size, point, seed)
            for seed in self.select.seeds
            for task, size, method in self._cells()
            for point in method.grid
        ]

    def final_trials(self, selected: Mapping[Cell, Point]) -> list[Trial]:
        """Every method, task and size that has a selected point, at that point or at all, seed after seed.

        Args:
            selected: `Trial.cell` -> point of the grid.
        """
        if self.final is None:
            return []
        every = self.final.points == "all"
        return [
            self._trial("final", method, task, size, point, seed)
            for seed in self.final.seeds
            for task, size, method in self._cells()
            for cell in [(method.name, task.name, size.name)]
            if cell in selected
            for point in (method.grid if every else [selected[cell]])
        ]

    def planned_final_trials(self) -> list[Trial]:
        """The second stage before points are selected: directories are known, and a point to be selected is `ONLY`."""
        return self.final_trials(dict.fromkeys(self.cells(), ONLY))

    def only_trials(self) -> list[Trial]:
        """The second stage of a sweep without a first stage: each method at its only point."""
        points = {method.name: method.grid[0] for method in self.methods}
        return self.final_trials({cell: points[cell[0]] for cell in self.cells()})

    def cells(self) -> list[Cell]:
        """`Trial.cell` of every method, task and size."""
        return [(method.name, task.name, size.name) for task, size, method in self._cells()]

    def _cells(self) -> Iterator[tuple[Point, Point, Method]]:
        return itertools.product(self.tasks, self.sizes, self.methods)

    def layers(
        self, plan: StagePlan, method: Method, task: Point, size: Point, point: Point, seed: int
    ) -> dict[str, Options]:
        """Where the options of a trial are set, as its file says it -> options; later ones win."""
        return {
            "options": self.options,
            "tasks": task.options,
            "sizes": size.options,
            f"methods: {method.name}, options": method.options,
            f"methods: {method.name}, grid": point.options,
            f"{'select' if plan is self.select else 'final'}, options": plan.options,
            "--options": self.overriding,
            "seeds": dict.fromkeys(SEED_OPTIONS, seed),
        }

    def _trial(self, stage: Stage, method: Method, task: Point, size: Point, point: Point, seed: int) -> Trial:
        plan = self.select if stage == "select" else self.final
        assert plan is not None
        options: Options = {}
        for layer in self.layers(plan, method, task, size, point, seed).values():
            options |= layer  # an option stays where it was first: stored trials are compared with this order
        configs = [f"--config={name}" for name in (*self.base, *method.configs)]
        # The name of a run at the selected point has no point: if another one is selected later, two runs of one seed
        # must not remain.
        named = stage == "select" or plan.points == "all"
        names = [stage, task.name, method.name, size.name, point.name if named else "", f"seed={seed}"]
        return Trial(
            stage,
            method.name,
            task,
            size,
            point,
            seed,
            [*configs, *(f"--{name}={written(value)}" for name, value in options.items())],
            "/".join(directory_name(name) for name in names if name),
        )


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def shown(value: Any) -> str:
    """A value as the names of points have it: 0.10 -> `0.1`."""
    return f"{value:g}" if isinstance(value, float) else written(value)


def directory_name(name: str) -> str:
    """A name without what a directory may not have: `width 64, GELU` -> `width-64,-GELU`."""
    return re.sub(r"[^\w.=,+-]+", "-", name).strip("-.")
