"""Accuracy on several multiple-choice tasks, counted over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from replora.evaluation.significance import wilson_interval

Counted = Literal["items", "right", "right_norm", "unparsed"]
COUNTED: tuple[Counted, ...] = ("items", "right", "right_norm", "unparsed")


class ChoiceCounts(Metric):
    """Number of questions of each task, and number of correct answers.

    Args:
        tasks: Names of the tasks, in the order of the results.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.add_state("counts", torch.zeros(len(tasks), len(COUNTED), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, task: str, counted: Mapping[Counted, bool | int]) -> None:
        """Add one or more questions of a task: a number for each of `COUNTED`, 0 if it is absent."""
        row = torch.tensor([int(counted.get(name, 0)) for name in COUNTED], device=self.counts.device)
        self.counts[self.tasks.index(task)] += row

    def compute(self) -> dict[str, dict[str, int]]:
        """Task -> its four counts, for the tasks that had questions."""
        rows = dict(zip(self.tasks, self.counts.tolist(), strict=True))
        return {task: dict(zip(COUNTED, row, strict=True)) for task, row in rows.items() if row[0]}


def accuracies(counts: Mapping[str, Mapping[str, int]], names: Mapping[str, Counted]) -> dict[str, Any]:
    """Fractions of correct answers with their 95 % intervals, and the unweighted mean over the tasks.

    Args:
        counts: Counts of each task, as returned by `ChoiceCounts.compute`.
        names: Name of an accuracy -> the count that it uses, such as `{"acc": "right", "acc_norm": "right_norm"}`.

    Returns:
        `{"tasks": {task: {"items": n, "acc": share, "acc_interval": [low, high], ...}}, "mean": {"acc": share}}`;
        the mean gives every task the same weight.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for task, found in counts.items():
        tasks[task] = {"items": found["items"]}
        for name, counted in names.items():
            low, high = wilson_interval(found[counted], found["items"])
            tasks[task][name] = round(found[counted] / found["items"], 6)
            tasks[task][f"{name}_interval"] = [round(low, 6), round(high, 6)]
    mean = {name: round(sum(row[name] for row in tasks.values()) / len(tasks), 6) for name in names} if tasks else {}
    return {"tasks": tasks, "mean": mean}
