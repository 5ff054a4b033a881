"""Scores of a group of runs, by method, size, task and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from replora.datasets.vision_language.tasks import VL_TASKS
from replora.reports.runs import Group, Run, Size, ordered
from replora.reports.statistics import Comparison, Mean, compare_paired, mean_over_seeds, proportion_error
from replora.reports.tasks import ordered_tasks


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
        self.reference = group.reference
        self.methods = ordered({run.method for run in self.runs})
        self.sizes = sorted({run.size for run in self.runs})
        self.seeds = sorted({run.seed for run in self.runs})
        self.by_cell: dict[tuple[str, Size, int], dict[str, float]] = {}
        for run in self.runs:
            self.by_cell.setdefault((run.method, run.size, run.seed), {}).update(_per_task(run, stage))
        self.tasks = ordered_tasks({task for found in self.by_cell.values() for task in found})
        self.scarce = [] if group.all_tasks else [run for run in self.runs if run.scarce]
        scarce = {run.task for run in self.scarce}
        # Means are over the same tasks at every size.
        self.averaged = [task for task in self.tasks if task not in scarce] or self.tasks
        self.average = "mean of all tasks"
        if len(self.averaged) < len(self.tasks):
            self.average = f"mean of {len(self.averaged)} of {len(self.tasks)} tasks"
        sources = {run.from_other_tasks for run in group.final or group.selection}
        self.choosing = {
            size: {
                0 if by_others else run.validation_examples
                for by_others in sources
                for run in group.selection
                if run.size == size and not run.diverged
            }
            for size in self.sizes
        }

    def over_seeds(self, method: str, size: Size, task: str) -> dict[int, float]:
        """Seed -> score. The score of `average` is the mean over the averaged tasks, for seeds that have all."""
        found = {seed: self.by_cell.get((method, size, seed), {}) for seed in self.seeds}
        if task == self.average:
            whole = {seed: [scores[t] for t in self.averaged if t in scores] for seed, scores in found.items()}
            return {s: statistics.fmean(v) for s, v in whole.items() if len(v) == len(self.averaged) > 0}
        return {seed: scores[task] for seed, scores in found.items() if task in scores}

    def mean(self, method: str, size: Size, task: str) -> Mean | None:
        """Mean over the seeds; None without a run."""
        values = list(self.over_seeds(method, size, task).values())
        return mean_over_seeds(values) if values else None

    def curve(self, method: str, task: str) -> dict[float, Mean]:
        """Position of each size on the axis -> mean over the seeds."""
        means = {size: self.mean(method, size, task) for size in self.sizes}
        return {self.place(size): mean for size, mean in means.items() if mean is not None}

    def sampling_error(self, methods: Sequence[str], sizes: Sequence[Size], task: str) -> float | None:
        """Standard error from the choice of test examples: of a mean accuracy, or of the difference of two.

        It is an upper bound. Two methods count as if they erred on unrelated examples, sizes as if on the same ones;
        the tests of different tasks are independent. None if a number of test examples is unknown.
        """
        tasks = self.averaged if task == self.average else [task]
        per_task = []
        for each in tasks:
            errors = []
            for size in sizes:
                means = [self.mean(method, size, each) for method in methods]
                counts = {run.test_examples(each) for run in self.runs if run.size == size and run.method in methods}
                (count,) = {n for n in counts if n is not None} if len(counts - {None}) == 1 else {None}
                if count is None or not all(mean is not None and 0 <= mean.value <= 1 for mean in means):
                    return None
                errors.append(math.hypot(*(proportion_error(mean.value, count) for mean in means if mean is not None)))
            per_task.append(statistics.fmean(errors))
        return math.hypot(*per_task) / len(per_task) if per_task and sizes else None

    def compare(self, first: str, second: str, sizes: Sequence[Size]) -> Comparison | None:
        """Compare two methods over tasks, or seeds of the only task, at sizes; None if they have no pair of scores.

        Of several tasks each is a unit, with its mean over seeds and sizes: seeds of one task say nothing about other
        tasks. The interval then contains the choice of test examples as well. Of one task each seed is a unit, because
        the training sets of its sizes are nested. A seed counts only if it has a pair at every size at which any has
        one; otherwise units would be means over different sizes.
        """
        pairs = {task: self._pairs(first, second, sizes, task) for task in self.averaged}
        if len(self.averaged) > 1:
            units = [[d for seed in found.values() for d in seed] for found in pairs.values() if found]
            return compare_paired(units) if units else None
        return self.compare_on(self.averaged[0], first, second, sizes)

    def compare_on(self, task: str, first: str, second: str, sizes: Sequence[Size]) -> Comparison | None:
        """Compare two methods on a task, or on these tasks if it is `average`, with seeds as units."""
        units = self._pairs(first, second, sizes, task)
        if not units:
            return None
        common = self.common_sizes(first, second, sizes)
        return compare_paired(
            [units[seed] for seed in sorted(units)], self.sampling_error((first, second), common, task)
        )

    def _pairs(self, first: str, second: str, sizes: Sequence[Size], task: str) -> dict[int, list[float]]:
        """Seed -> differences at each of the sizes that the two have in common, for seeds that have all of them."""
        units: dict[int, list[float]] = {}
        for size in sizes:
            one, other = (self.over_seeds(method, size, task) for method in (first, second))
            for seed in one.keys() & other.keys():
                units.setdefault(seed, []).append(one[seed] - other[seed])
        most = len(self.common_sizes(first, second, sizes))
        return {seed: found for seed, found in units.items() if len(found) == most}

    def common_sizes(self, first: str, second: str, sizes: Sequence[Size]) -> list[Size]:
        """The sizes at which two methods have a pair of scores."""
        return [
            size
            for size in sizes
            if any(
                self.over_seeds(first, size, t).keys() & self.over_seeds(second, size, t).keys() for t in self.averaged
            )
        ]

    @property
    def panels(self) -> list[str]:
        """Names of the panels: the only task, or the mean of all tasks followed by each task."""
        return self.tasks if len(self.tasks) == 1 else [self.average, *self.tasks]

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
        """Label of the axis of `place`, with the number of further labels by which options were selected."""
        counts = {self.labels(size) for size in self.sizes}
        more = f" (+ {min(counts)} validation labels)" if len(counts) == 1 and counts != {0} else ""
        if self.counted:
            return f"training examples{more}"
        return ("training examples per class" if self.shots else "part of the training data (%)") + more

    def labels(self, size: Size) -> int:
        """Number of validation labels that selected the options of a size; 0 if there are none, or it is not known."""
        counts = self.choosing[size]
        return min(n or 0 for n in counts) if len(counts) == 1 else 0

    def name(self, size: Size) -> str:
        """Name of a size in tables: `10 % (80 + 200)`, with the labels that train and those that select options."""
        labels = [f"{self.place(size):g}"] if self.counted else []
        labels += [str(self.labels(size))] if labels and self.labels(size) else []
        return f"{size} ({' + '.join(labels)})" if labels else str(size)


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
