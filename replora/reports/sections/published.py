"""Published results, and whether runs may stand beside them: one rule for all benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from replora.datasets.image.fgvc import FGVC_TASKS
from replora.datasets.text.commonsense import COMMONSENSE_TASKS
from replora.datasets.video.hmdb51 import CLASSES, PER_CLASS
from replora.datasets.video.ssv2 import SIZES
from replora.datasets.vtab.dataset import VTAB_TASKS
from replora.reports.render.document import Block, Paragraph, Table
from replora.reports.runs import Group, Run, Size


@dataclass(frozen=True)
class Setting:
    """What a published table was measured with.

    Attributes:
        caption: Words of its caption, by which it is found.
        words: The same in a report.
        backbone: Pattern of the names that its backbones have here.
        condition: Name of a condition of a group, its value, and a format for it; a group without it has that value.
    """

    caption: str
    words: str
    backbone: str
    condition: tuple[str, Any, str] | None = None


SETTINGS = (
    Setting("ViT-B/16", "ViT-B/16 at 224 pixels", "vit_base_patch16_224", ("image_size", 224, " at {}")),
    Setting(
        "LLM-Adapters",
        "LLaMA models that generate their answers",
        r"(.*/)?(meta-)?llama-?(7b|13b|2-7b|3-8b)\b",
        ("preset", "llm_adapters", " with the preset {}"),
    ),
    Setting("Video Swin-B", "Video Swin-B", r"swin3d_b$"),
    Setting("VideoMAE", "VideoMAE ViT-B", r".*videomae-base"),
)


@cache
def published() -> dict[str, Any]:
    """The content of `published.json`: benchmark -> its tables."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return content


def published_blocks(
    benchmark: str,
    groups: Sequence[Group],
    columns: Sequence[str],
    cells: Callable[[dict[str, Any]], Sequence[str]],
    name: str,
) -> list[Block]:
    """The published tables of a benchmark beside which runs may stand, and the reasons why others are left out.

    Args:
        benchmark: Key of `published.json`.
        groups: Groups of runs on the benchmark; one that compares is enough.
        columns: Headings between the method and the origin of a row.
        cells: The cells of a row below them.
        name: Name of the CSV files, which is numbered where the benchmark has several tables.
    """
    blocks: list[Block] = []
    tables = [table for table in published()[benchmark]["tables"] if _of_track(table, groups)]
    for number, table in enumerate(tables, start=1):
        reasons = [other_setting(table, group) for group in groups]
        if all(reasons):
            blocks += [Paragraph(f"Published rows are left out: {reason}.") for reason in dict.fromkeys(reasons)]
            continue
        rows = [[row["method"], *cells(row), row["selection"], row["source"]] for row in table["rows"]]
        columns_of = ["method", *columns, "selection", "source"]
        blocks.append(Table(f"{name}_{number}" if len(tables) > 1 else name, table["caption"], columns_of, rows))
    return blocks


def other_setting(table: Mapping[str, Any], group: Group) -> str:
    """Why no run of a group can stand beside the rows of a published table; empty if one can."""
    setting = next(setting for setting in SETTINGS if setting.caption in table["caption"])
    backbone = str(group.conditions.get("backbone"))
    name, wanted, words = setting.condition or ("", None, "")
    found = group.conditions.get(name, wanted)
    if not re.match(setting.backbone, backbone, re.IGNORECASE) or found != wanted:
        return f"they are of {setting.words}, these runs of {backbone}{words.format(found)}"
    complete = [run for run in group.final if run.status == "complete"]
    if not complete:
        return "they are of complete runs, these runs are partial or diverged"
    on_all = [run for run in complete if _trained_on_all(run)]
    if not on_all:
        return "they are of all training data, these runs of parts of it"
    for run in on_all:
        measured, official = _test_sizes(run)
        if measured in (None, official):
            return ""
    return f"they are of the {official} test examples of {run.task}, these runs of {measured} of another list"


def _of_track(table: Mapping[str, Any], groups: Sequence[Group]) -> bool:
    """Whether a table has no track, or that of the runs."""
    return table.get("track") in (None, *(group.conditions.get("track") for group in groups))


def _trained_on_all(run: Run) -> bool:
    """Whether a run was trained on all data of its benchmark; the commonsense rows are of the union of its tasks."""
    whole = run.results["data"].get("dataset") != "Commonsense" or run.task == "commonsense"
    return whole and run.size == Size(shots=False, amount=1.0)


def _test_sizes(run: Run) -> tuple[int | None, int | None]:
    """The number of test examples of a run that were measured, None if unknown, and that of its benchmark."""
    data, dataset = run.results["data"], run.results["data"].get("dataset")
    measured = run.results.get("test", {}).get("data", {}).get("size", data.get("split_sizes", {}).get("test"))
    if measured is not None:  # a video that cannot be decoded is in no accuracy
        measured -= int(run.metrics("test").get("test/skipped") or 0)
    if dataset == "Commonsense":
        tasks = data.get("test_tasks", list(COMMONSENSE_TASKS))
        return measured, sum(COMMONSENSE_TASKS[task].test_size for task in tasks)
    if dataset in ("VTAB", "FGVC"):
        known: Mapping[str, Any] = VTAB_TASKS if dataset == "VTAB" else FGVC_TASKS
        return measured, known[run.task].test_size if run.task in known else None
    return measured, {"SSv2": SIZES["validation"], "HMDB51": CLASSES * PER_CLASS["test"]}.get(str(dataset))
