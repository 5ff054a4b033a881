"""The tables of the benchmarks as papers print them, and published rows in tables of their own.

Published rows come from `published.json`, each with its source and how its options were chosen. They are never in one
table with ours.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from replora.reports.document import Block, Heading, Paragraph, Table
from replora.reports.gather import Group, Size, benchmark_tasks
from replora.reports.scores import Scores


def benchmark_section(group: Group, prefix: str) -> list[Block]:
    """Our table for each size of the training set and the published ones; empty for other data."""
    benchmark = {"VTAB": "vtab", "FGVC": "fgvc", "Commonsense": "commonsense"}.get(group.conditions["dataset"])
    if benchmark is None or not group.final:
        return []
    columns = _columns(benchmark)
    blocks: list[Block] = []
    for shots in (False, True):
        scores = Scores(group, shots)
        for size in reversed(scores.sizes):
            rows = [[m, *_row(benchmark, columns, _means(scores, m, size))] for m in scores.methods]
            seeds = len({run.seed for run in scores.runs if run.size == size})
            measured = f"test {scores.runs[0].metric} in %, mean over the seeds ({seeds}); blank: no run"
            caption = f"{_name(benchmark)}, {_amount(size)}: {measured}"
            name = f"{prefix}{benchmark}_{'shots' if shots else 'part'}_{size.amount:g}"
            blocks.append(Table(name, caption, ["method", *columns, *_averages(benchmark)], rows))
    if benchmark == "vtab":
        blocks.append(
            Paragraph(
                "Two averages are in use: the mean of the three groups' means (most papers) and the plain mean of the "
                "19 tasks. They differ by about two points. An average is blank where a task is missing."
            )
        )
    return [Heading(3, f"{_name(benchmark)}"), *blocks, *_published(benchmark, group, prefix)]


def _published(benchmark: str, group: Group, prefix: str) -> list[Block]:
    track = group.conditions.get("track")
    columns = _columns(benchmark)
    blocks: list[Block] = []
    for table in _data()[benchmark]["tables"]:
        if table.get("track") not in (None, track):
            continue
        rows = [
            [
                row["method"],
                *_row(benchmark, columns, dict(zip(columns, row["accuracies"], strict=True))),
                row["selection"],
                row["source"],
            ]
            for row in table["rows"]
        ]
        headings = ["method", *columns, *_averages(benchmark), "selection", "source"]
        blocks.append(Table(f"{prefix}{benchmark}_published", table["caption"], headings, rows))
    return [Heading(3, "Published rows (not ours)"), *blocks] if blocks else []


def _means(scores: Scores, method: str, size: Size) -> dict[str, float]:
    """Task -> mean over the seeds in percent; tasks without a run are absent."""
    means = {task: scores.mean(method, size, task) for task in scores.tasks}
    return {task: 100 * mean.value for task, mean in means.items() if mean is not None}


def _row(benchmark: str, columns: list[str], values: Mapping[str, float]) -> list[str]:
    cells = [f"{values[task]:.1f}" if task in values else "" for task in columns]
    averages = _averages(benchmark)
    if benchmark != "vtab":
        whole = all(task in values for task in columns)
        return [*cells, f"{statistics.fmean(values[task] for task in columns):.2f}" if whole else ""]
    by_group = []
    for tasks in _groups().values():
        there = [values[task] for task in tasks if task in values]
        by_group.append(statistics.fmean(there) if len(there) == len(tasks) else None)
    known = [mean for mean in by_group if mean is not None]
    whole = len(known) == len(averages) - 2
    total = statistics.fmean(values[task] for task in columns) if whole else None
    means = [*by_group, statistics.fmean(known) if whole else None, total]
    return [*cells, *("" if mean is None else f"{mean:.2f}" for mean in means)]


def _averages(benchmark: str) -> list[str]:
    if benchmark == "vtab":
        return [*_groups(), "mean of group means", "mean of 19 tasks"]
    return [f"mean of {len(_columns(benchmark))}"]


def _columns(benchmark: str) -> list[str]:
    return benchmark_tasks()[benchmark]


def _groups() -> dict[str, list[str]]:
    from replora.datasets.vtab import VTAB_TASKS

    groups: dict[str, list[str]] = {}
    for task in VTAB_TASKS.values():
        groups.setdefault(str(task.group), []).append(task.name)
    return groups


def _name(benchmark: str) -> str:
    return str(_data()[benchmark]["name"])


def _amount(size: Size) -> str:
    if size.shots:
        return f"{size.amount:g} training examples a class"
    return "all training data" if size.amount == 1 else f"{size} of the training data"


@cache
def _data() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return content
