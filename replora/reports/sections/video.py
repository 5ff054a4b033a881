"""Tables of the video benchmarks: HMDB51's two numbers, and published rows in tables of their own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from replora.errors import RepLoRAError
from replora.identity import differing_settings
from replora.reports.render.document import Block, Heading, Paragraph, Table
from replora.reports.runs import Group, Run
from replora.reports.sections.published import published_blocks

BENCHMARKS = {"SSv2": "Something-Something-V2", "HMDB51": "HMDB51"}
SPLIT_1, MEAN = "split 1", "mean of three splits"


class SplitsError(RepLoRAError):
    """The results given are not of the three splits of HMDB51 under one setting."""


def video_section(groups: Sequence[Group]) -> list[Block]:
    """HMDB51 over the groups of its splits, then published rows; empty without runs on a video benchmark."""
    of_benchmarks = [group for group in groups if group.conditions["dataset"] in BENCHMARKS]
    if not of_benchmarks:
        return []
    columns = ["parameters", *BENCHMARKS.values()]
    rows = published_blocks("videos", of_benchmarks, columns, _published_cells, "videos_published")
    return [*_hmdb51(groups), Heading(2, "Published rows on videos (not ours)"), *rows]


def _hmdb51(groups: Sequence[Group]) -> list[Block]:
    """One row per method, setting and size. Splits are averaged within a seed, and then seeds are averaged."""
    # row -> seed -> split -> results
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


def _published_cells(row: dict[str, Any]) -> list[str]:
    return [row["parameters"], *(f"{value:.2f}" for value in row["accuracies"])]


def hmdb51_accuracies(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The accuracy on split 1 and, if there are runs on all three splits, their mean: `{"split 1": ..., "mean of ...}`.

    Args:
        results: Name of a run -> content of its `results.json`, whose `test` has the accuracy in [0, 1].

    Raises:
        SplitsError: A run has no test or is of other data, a split is there twice, split 1 or one of the two others is
            missing, or the runs differ in more than their split.
    """
    by_split: dict[int, str] = {}
    for name, content in results.items():
        split = content.get("data", {}).get("official_split")
        if split is None or "test" not in content:
            raise SplitsError(f"{name} is no tested run on HMDB51: its results have no official_split, or no test.")
        if split in by_split:
            raise SplitsError(f"{name} and {by_split[split]} are both of split {split}.")
        by_split[split] = name
    if sorted(by_split) not in ([1], [1, 2, 3]):
        raise SplitsError(
            f"There are results of the splits {', '.join(map(str, sorted(by_split))) or 'none'}. The official number "
            "is the mean over 1, 2 and 3; tables of one split alone are of split 1. Fit the others with --data.split."
        )
    first = results[by_split[1]]
    for name in by_split.values():
        found = differing_settings(results[name], first, "splits", varied=["data.split"], ignored=["harmless"])
        if found:
            raise SplitsError(f"{name} and {by_split[1]} differ in {', '.join(found)}, so they have no mean.")
    accuracy = {split: float(results[name]["test"]["metrics"]["test/accuracy"]) for split, name in by_split.items()}
    columns = {SPLIT_1: accuracy[1]}
    if len(accuracy) == 3:
        columns[MEAN] = sum(accuracy.values()) / 3
    return columns
