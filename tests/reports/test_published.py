"""Published rows stand beside runs of their setting alone, whatever the benchmark, or a line says why not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from replora.reports.report import write_report
from replora.reports.sections.published import SETTINGS, published
from tests.reports.test_settings import OPTIONS, recorded

# Benchmark -> data, backbone and number of test examples of a run that compares.
COMPARABLE: dict[str, tuple[dict[str, Any], str, int]] = {
    "vtab": ({"dataset": "VTAB", "task": "dtd", "track": "archive"}, "vit_base_patch16_224.orig_in21k", 1_880),
    "fgvc": ({"dataset": "FGVC", "task": "cub_200_2011", "track": None}, "vit_base_patch16_224.orig_in21k", 5_794),
    "commonsense": (
        {
            "dataset": "Commonsense",
            "task": "commonsense",
            "track": None,
            "preset": "llm_adapters",
            "test_tasks": ["boolq", "piqa"],
        },
        "yahma/llama-7b-hf",
        5_108,
    ),
    "SSv2": ({"dataset": "SSv2", "task": "ssv2", "track": None}, "swin3d_b", 24_777),
    "HMDB51": ({"dataset": "HMDB51", "task": "hmdb51", "track": None, "official_split": 1}, "swin3d_b", 1_530),
}


def run_on(benchmark: str, **changes: Any) -> dict[str, Any]:
    data, backbone, size = COMPARABLE[benchmark]
    content = recorded(OPTIONS)
    content["backbone"]["name"] = backbone
    content["data"] |= data
    content["test"]["data"]["size"] = size
    content["data"]["splits"]["test"]["size"] = size
    for name, value in changes.items():
        part, _, key = name.partition("__")
        content[part][key] = value
    return content


def report_of(folder: Path, content: dict[str, Any]) -> tuple[str, bool]:
    """The page, and whether there are published tables."""
    (folder / "run").mkdir()
    stored = {key: value for key, value in content.items() if key != "test"}
    (folder / "run" / "results.json").write_text(json.dumps(stored), "utf-8")
    write_report([folder / "run"], folder / "report")
    page = (folder / "report" / "report.md").read_text("utf-8")
    return page, bool(list((folder / "report").glob("*published*.csv")))


@pytest.mark.parametrize("benchmark", COMPARABLE)
def test_rows_stand_beside_runs_of_their_setting(benchmark: str, tmp_path: Path) -> None:
    _, shown = report_of(tmp_path, run_on(benchmark))
    assert shown


@pytest.mark.parametrize(
    ("benchmark", "column", "average"), [("vtab", "mean of group means", "77.6"), ("fgvc", "mean of 5", "90.7")]
)
def test_a_row_of_an_average_alone(benchmark: str, column: str, average: str, tmp_path: Path) -> None:
    """No copy of Adapter+'s table could be checked: its tasks are blank."""
    report_of(tmp_path, run_on(benchmark, data__track="clean" if benchmark == "vtab" else None))
    (file,) = (tmp_path / "report").glob("*published*.csv")
    with file.open(newline="", encoding="utf-8") as stream:
        (row,) = (row for row in csv.DictReader(stream) if row["method"] == "Adapter+")
    filled = {name: cell for name, cell in row.items() if cell and name not in ("method", "selection", "source")}
    assert filled == {column: average}


@pytest.mark.parametrize("benchmark", COMPARABLE)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone__name": "vit_nano"}, "these runs of vit_nano"),
        ({"data__train_fraction": 0.3}, "they are of all training data, these runs of parts of it"),
        ({"data__train_fraction": None, "data__shots": 5}, "they are of all training data, these runs of parts of it"),
        ({"fit__partial": ["limit_train_batches=2"]}, "these runs are partial or diverged"),
        ({"test__partial": ["limit_test_batches=2"]}, "these runs are partial or diverged"),
        ({"test__data": {"split": "test", "size": 7, "sha256": "c" * 64}}, "these runs of 7 of another list"),
    ],
)
def test_rows_are_left_out_beside_other_runs(
    benchmark: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    page, shown = report_of(tmp_path, run_on(benchmark, **change))
    assert not shown
    assert "Published rows are left out: " in page
    assert reason in page


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data__preset": "cloze"}, "these runs of yahma/llama-7b-hf with the preset cloze"),
        ({"data__task": "boolq"}, "these runs of parts of it"),
    ],
)
def test_commonsense_rows_are_of_generated_answers_after_the_union(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    page, shown = report_of(tmp_path, run_on("commonsense", **change))
    assert not shown
    assert reason in page


def test_every_published_table_has_one_setting() -> None:
    for benchmark in ("vtab", "fgvc", "commonsense", "videos"):
        for table in published()[benchmark]["tables"]:
            assert sum(setting.caption in table["caption"] for setting in SETTINGS) == 1
