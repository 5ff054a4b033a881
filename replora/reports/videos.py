"""Tables of the video benchmarks: HMDB51's two numbers, and published rows in tables of their own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from replora.reports.document import Block, Heading, Paragraph, Table
from replora.reports.gather import Group, Run
from replora.reports.hmdb51 import MEAN, SPLIT_1, SplitsError, hmdb51_accuracies
from replora.reports.published import published

BENCHMARKS = {"SSv2": "Something-Something-V2", "HMDB51": "HMDB51"}


def video_section(groups: Sequence[Group]) -> list[Block]:
    """HMDB51 over the groups of its splits, then published rows; empty without runs on a video benchmark."""
    if not {group.conditions["dataset"] for group in groups} & set(BENCHMARKS):
        return []
    tables = [
        Table(
            f"videos_published_{number}",
            table["caption"],
            ["method", "parameters", *BENCHMARKS.values(), "selection", "source"],
            [
                [row["method"], row["parameters"], *(f"{value:.2f}" for value in row["accuracies"]), *_origin(row)]
                for row in table["rows"]
            ],
        )
        for number, table in enumerate(published()["videos"]["tables"], start=1)
    ]
    return [*_hmdb51(groups), Heading(2, "Published rows on videos (not ours)"), *tables]


def _hmdb51(groups: Sequence[Group]) -> list[Block]:
    """A line for each method, setting and size; seeds are averaged, splits only within a seed."""
    # Line -> seed -> split -> results
    lines: dict[tuple[str, ...], dict[int, dict[str, dict[str, Any]]]] = {}
    for group in groups:
        for run in group.final if group.conditions["dataset"] == "HMDB51" else []:
            if run.score is not None:
                split = f"split {group.conditions.get('official_split')}"
                lines.setdefault(_line(group, run), {}).setdefault(run.seed, {})[split] = run.results
    rows, notes = [], []
    for line, seeds in lines.items():
        found = []
        for seed, results in sorted(seeds.items()):
            try:
                found.append(hmdb51_accuracies(results))
            except SplitsError as error:
                notes.append(Paragraph(f"{', '.join(filter(None, line))}, seed {seed}: {error}"))
        rows.append([*line, str(len(found)), *(_mean(found, column) for column in (SPLIT_1, MEAN))])
    if not rows:
        return []
    caption = "HMDB51, test accuracy in %, mean over the seeds; blank: not all of its splits, or under other settings"
    columns = ["method", "training data", "backbone", "recipe", "seeds", SPLIT_1, MEAN]
    return [Heading(2, "HMDB51 over its splits"), Table("hmdb51", caption, columns, rows), *notes]


def _line(group: Group, run: Run) -> tuple[str, ...]:
    described = (group.conditions["sweep"], group.conditions["backbone"])
    return run.method, str(run.size), ", ".join(filter(None, described)), str(run.results["data"].get("recipe", ""))


def _mean(found: list[dict[str, float]], column: str) -> str:
    values = [columns[column] for columns in found if column in columns]
    return f"{100 * statistics.fmean(values):.2f}" if values and len(values) == len(found) else ""


def _origin(row: dict[str, Any]) -> tuple[str, str]:
    return row["selection"], row["source"]
