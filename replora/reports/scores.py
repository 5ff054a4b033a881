"""Scores of a group of runs, by method, size, task and seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from replora.datasets.vision_language.tasks import VL_TASKS
from replora.reports.runs import Group, Run, Size, ordered
from replora.reports.statistics import Comparison, Mean, compare_paired, mean_over_seeds
from replora.reports.tasks import ordered_tasks

AVERAGE = "mean of all tasks"


class Scores:
    """Test scores of a group, in [0, 1]. CIDEr is 1/100 of the number in published tables.

    Args:
        group: Runs of one table. Its final runs count; a run that diverged has no score.
        shots: Whether to use the runs whose size is a number of examples per class, or a fraction of the data.
        stage: `val` for the validation scores of a benchmark without a public test. Without a sweep, which would select
            options by them, all runs count.
    """

    def __init__(self, group: Group, shots: bool, stage: Literal["test", "val"] = "test") -> None:
        by_hand = stage == "val" and not group.conditions["sweep"]
        self.runs = [run for run in (group.runs if by_hand else group.final) if run.size.shots == shots]
        self.shots = shots
        self.methods = ordered({run.method for run in self.runs})
        self.sizes = sorted({run.size for run in self.runs})
        self.seeds = sorted({run.seed for run in self.runs})
        self.by_cell: dict[tuple[str, Size, int], dict[str, float]] = {}
        for run in self.runs:
            self.by_cell.setdefault((run.method, run.size, run.seed), {}).update(_per_task(run, stage))
        self.tasks = ordered_tasks({task for found in self.by_cell.values() for task in found})

    def over_seeds(self, method: str, size: Size, task: str) -> dict[int, float]:
        """Seed -> score. The score of `AVERAGE` is the mean over the tasks, for seeds that have all tasks."""
        found = {seed: self.by_cell.get((method, size, seed), {}) for seed in self.seeds}
        if task == AVERAGE:
            whole = {seed: scores for seed, scores in found.items() if len(scores) == len(self.tasks) > 0}
            return {seed: statistics.fmean(scores.values()) for seed, scores in whole.items()}
        return {seed: scores[task] for seed, scores in found.items() if task in scores}

    def mean(self, method: str, size: Size, task: str) -> Mean | None:
        """Mean over the seeds; None without a run."""
        values = list(self.over_seeds(method, size, task).values())
        return mean_over_seeds(values) if values else None

    def curve(self, method: str, task: str) -> dict[float, Mean]:
        """Position of each size on the axis -> mean over the seeds."""
        means = {size: self.mean(method, size, task) for size in self.sizes}
        return {self.place(size): mean for size, mean in means.items() if mean is not None}

    def compare(self, first: str, second: str, sizes: Sequence[Size]) -> Comparison | None:
        """Compare two methods over all tasks and seeds and the given sizes; None if they have no pair of scores.

        One task with one seed is a unit, because the training sets of its sizes are nested. A unit counts only if it
        has a pair at every size at which any unit has one; otherwise units would be means over different sizes.
        """
        units: dict[tuple[str, int], list[float]] = {}
        for size in sizes:
            for task in self.tasks:
                one, other = (self.over_seeds(method, size, task) for method in (first, second))
                for seed in one.keys() & other.keys():
                    units.setdefault((task, seed), []).append(one[seed] - other[seed])
        most = len(self.common_sizes(first, second, sizes))
        whole = [units[unit] for unit in sorted(units) if len(units[unit]) == most]
        return compare_paired(whole) if whole else None

    def common_sizes(self, first: str, second: str, sizes: Sequence[Size]) -> list[Size]:
        """The sizes at which two methods have a pair of scores."""
        return [
            size
            for size in sizes
            if any(self.over_seeds(first, size, t).keys() & self.over_seeds(second, size, t).keys() for t in self.tasks)
        ]

    @property
    def panels(self) -> list[str]:
        """Names of the panels: the only task, or the mean of all tasks followed by each task."""
        return self.tasks if len(self.tasks) == 1 else [AVERAGE, *self.tasks]

    @property
    def counted(self) -> bool:
        """Whether each size means the same number of examples in all its runs, so that an axis can show that number."""
        known = {size: {run.examples for run in self.runs if run.size == size} for size in self.sizes}
        return not self.shots and all(len(counts) == 1 and None not in counts for counts in known.values())

    def place(self, size: Size) -> float:
        """Position of a size on the axis: training examples if `counted`, otherwise percent or examples per class."""
        if self.counted:
            return float(next(run.examples for run in self.runs if run.size == size) or 0)
        return size.amount if size.shots else 100 * size.amount

    @property
    def axis(self) -> str:
        """Label of the axis of `place`."""
        if self.counted:
            return "training examples"
        return "training examples per class" if self.shots else "part of the training data (%)"

    def name(self, size: Size) -> str:
        """Name of a size in tables: `10 % (80)`."""
        return f"{size} ({self.place(size):g})" if self.counted else str(size)


def _per_task(run: Run, stage: str) -> dict[str, float]:
    """Task -> score; several for a run that is measured on several tasks.

    If the metric is `score`, the mean over tasks with different metrics, each task has the metric of its publication.
    """
    measured = run.metrics("test") if stage == "test" else run.metrics("validate") or run.metrics("fit")
    if run.metric == "score":
        several = {
            task: measured.get(f"{stage}/{VL_TASKS[task].metric}/{task}") for task in run.results["data"]["tasks"]
        }
    else:
        prefix = f"{stage}/{run.metric}/"
        several = {name.removeprefix(prefix): v for name, v in measured.items() if name.startswith(prefix)}
    found = several or {run.task: measured.get(f"{stage}/{run.metric}")}
    return {task: score for task, score in found.items() if score is not None}
