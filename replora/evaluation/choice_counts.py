"""Accuracy on several tasks of questions with options, counted over all processes."""

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
    """How many questions of each task there were, and how many were answered rightly.

    Args:
        tasks: Their names, in the order of the results.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.add_state("counts", torch.zeros(len(tasks), len(COUNTED), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, task: str, counted: Mapping[Counted, bool | int]) -> None:
        """Add one question, or several: how many there are of each of `COUNTED`; absent means none."""
        row = torch.tensor([int(counted.get(name, 0)) for name in COUNTED], device=self.counts.device)
        self.counts[self.tasks.index(task)] += row

    def compute(self) -> dict[str, dict[str, int]]:
        """Task -> the four counts, for the tasks that had questions."""
        rows = dict(zip(self.tasks, self.counts.tolist(), strict=True))
        return {task: dict(zip(COUNTED, row, strict=True)) for task, row in rows.items() if row[0]}


def accuracies(counts: Mapping[str, Mapping[str, int]], names: Mapping[str, Counted]) -> dict[str, Any]:
    """Shares of right answers with their 95 % intervals, and the plain mean over the tasks.

    Args:
        counts: As from `ChoiceCounts.compute`.
        names: What an accuracy is called -> what it counts, such as `{"acc": "right", "acc_norm": "right_norm"}`.

    Returns:
        `{"tasks": {task: {"items": n, "acc": share, "acc_interval": [low, high], ...}}, "mean": {"acc": share}}`;
        the mean weighs every task alike, whatever its size.
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
