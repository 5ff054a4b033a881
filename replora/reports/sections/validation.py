"""Validation scores of benchmarks whose test answers are not public."""

from __future__ import annotations

from replora.reports.render.document import Block, Heading, Table
from replora.reports.runs import Group
from replora.reports.scores import Scores
from replora.reports.statistics import in_percent

WITHOUT_TEST = ("VideoText",)


def validation_section(group: Group, prefix: str) -> list[Block]:
    """One row per method and size, one column per task and one for their mean; empty for data with a public test."""
    if group.conditions["dataset"] not in WITHOUT_TEST:
        return []
    scores = Scores(group, shots=False, stage="val")
    if not scores.tasks:
        return []
    rows = [
        [
            method,
            scores.name(size),
            *(in_percent(scores.mean(method, size, task)) for task in (*scores.tasks, scores.average)),
        ]
        for size in scores.sizes
        for method in scores.methods
    ]
    caption = "Validation scores, not test scores: the answers of this benchmark's tests are not public"
    note = (
        "Accuracy in %, of captions CIDEr as tables show it, and their plain mean; mean of the seeds ± half the 95 % "
        "interval (n seeds). Options selected by the same scores flatter them."
    )
    columns = ["method", "size", *scores.tasks, scores.average]
    return [Heading(3, "Validation scores"), Table(f"{prefix}validation", caption, columns, rows, note)]
