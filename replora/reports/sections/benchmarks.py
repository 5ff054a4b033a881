"""Tables of the benchmarks in the form of the papers, and separate tables of published results.

Published results come from `published.json`, each with its source and the way in which its options were selected. They
are never in one table with ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from replora.datasets.vtab.dataset import VTAB_TASKS
from replora.reports.render.document import Block, Heading, Paragraph, Table
from replora.reports.runs import Group, Size
from replora.reports.scores import Scores
from replora.reports.sections.published import published, published_blocks
from replora.reports.tasks import BENCHMARKS


def benchmark_section(group: Group, prefix: str) -> list[Block]:
    """One table per size of the training set, and the published tables; empty for other data."""
    benchmark = {"VTAB": "vtab", "FGVC": "fgvc", "Commonsense": "commonsense"}.get(group.conditions["dataset"])
    if benchmark is None or not group.final:
        return []
    columns = _columns(benchmark)
    if not {run.task for run in group.final} & {*columns} and benchmark != "commonsense":
        return []  # a custom task in the layout of the benchmark
    blocks: list[Block] = []
    for shots in (False, True):
        scores = Scores(group, shots)
        for size in reversed(scores.sizes):
            seeds = len({run.seed for run in scores.runs if run.size == size})
            scarce = {run.task for run in scores.scarce if run.size == size}
            rows = []
            for method in scores.methods:
                means, counts = _means(scores, method, size)
                few = {task: count for task, count in counts.items() if count < seeds}
                rows.append([method, *_row(benchmark, columns, means, few, scarce)])
            repeated = f"mean over the seeds ({seeds}, or n)" if seeds > 1 else "one seed"
            measured = f"test {scores.runs[0].metric} in %, {repeated}; blank: no run"
            caption = f"{_name(benchmark)}, {_amount(size)}: {measured}"
            name = f"{prefix}{benchmark}_{'shots' if shots else 'part'}_{size.amount:g}"
            left = ", ".join(task for task in columns if task in scarce)
            note = f"Averages leave out {left}, trained on at most one example per ten classes." if left else ""
            blocks.append(Table(name, caption, ["method", *columns, *_averages(benchmark)], rows, note))
    if benchmark == "vtab":
        blocks.append(
            Paragraph(
                "Two averages are in use: the mean of the three groups' means (most papers) and the plain mean of the "
                "19 tasks. They differ by about two points. An average is blank where a task is missing."
            )
        )
    return [Heading(3, f"{_name(benchmark)}"), *blocks, *_published(benchmark, group, prefix)]


def _published(benchmark: str, group: Group, prefix: str) -> list[Block]:
    columns = _columns(benchmark)

    def cells(row: dict[str, Any]) -> list[str]:
        if "averages" in row:  # no task of it is known for sure
            return [*[""] * len(columns), *(str(row["averages"].get(name, "")) for name in _averages(benchmark))]
        return _row(benchmark, columns, dict(zip(columns, row["accuracies"], strict=True)))

    headings = [*columns, *_averages(benchmark)]
    blocks = published_blocks(benchmark, [group], headings, cells, f"{prefix}{benchmark}_published")
    return [Heading(3, "Published rows (not ours)"), *blocks] if any(isinstance(b, Table) for b in blocks) else blocks


def _means(scores: Scores, method: str, size: Size) -> tuple[dict[str, float], dict[str, int]]:
    """Task -> mean over the seeds in percent, and task -> number of seeds; tasks without a run are absent."""
    found = {task: scores.mean(method, size, task) for task in scores.tasks}
    means = {task: mean for task, mean in found.items() if mean is not None}
    return {t: 100 * mean.value for t, mean in means.items()}, {t: mean.count for t, mean in means.items()}


def _row(
    benchmark: str,
    columns: list[str],
    values: Mapping[str, float],
    fewer: Mapping[str, int] | None = None,
    left_out: Collection[str] = (),
) -> list[str]:
    """The cells of a method: tasks and averages.

    Args:
        benchmark: Name of the benchmark.
        columns: Its tasks.
        values: Task -> accuracy in percent.
        fewer: Task -> number of its seeds, if some are missing.
        left_out: Tasks that are in no average.
    """

    def few(tasks: Iterable[str]) -> str:
        counts = [fewer[task] for task in tasks if fewer and task in fewer]
        return f" (n={min(counts)})" if counts else ""

    cells = [f"{values[task]:.1f}{few([task])}" if task in values else "" for task in columns]
    counted = [task for task in columns if task not in left_out]
    if benchmark != "vtab":
        whole = bool(counted) and all(task in values for task in counted)
        mean = f"{statistics.fmean(values[task] for task in counted):.2f}{few(counted)}" if whole else ""
        return [*cells, mean]
    groups = [[task for task in tasks if task in counted] for tasks in _groups().values()]
    by_group = [
        statistics.fmean(values[task] for task in tasks) if tasks and all(task in values for task in tasks) else None
        for tasks in groups
    ]
    known = [mean for mean in by_group if mean is not None]
    whole = len(known) == len(groups)
    total = statistics.fmean(values[task] for task in counted) if whole else None
    means = [*by_group, statistics.fmean(known) if whole else None, total]
    of = [*groups, counted, counted]
    return [*cells, *("" if mean is None else f"{mean:.2f}{few(t)}" for mean, t in zip(means, of, strict=True))]


def _averages(benchmark: str) -> list[str]:
    if benchmark == "vtab":
        return [*_groups(), "mean of group means", "mean of 19 tasks"]
    return [f"mean of {len(_columns(benchmark))}"]


def _columns(benchmark: str) -> list[str]:
    return BENCHMARKS[benchmark]


def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for task in VTAB_TASKS.values():
        groups.setdefault(str(task.group), []).append(task.name)
    return groups


def _name(benchmark: str) -> str:
    return str(published()[benchmark]["name"])


def _amount(size: Size) -> str:
    if size.shots:
        return f"{size.amount:g} training examples per class"
    return "all training data" if size.amount == 1 else f"{size} of the training data"
