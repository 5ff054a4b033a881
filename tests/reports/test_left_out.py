"""A report names each run and each measurement that stands in none of its tables, and where it lies."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from replora.reports.report import write_report
from tests.reports.test_settings import OPTIONS, recorded


def page_of(folder: Path, contents: dict[str, dict[str, Any]]) -> str:
    """The report of runs in directories of these names, without line breaks."""
    for name, content in contents.items():
        (folder / "runs" / name).mkdir(parents=True)
        stored = {key: value for key, value in content.items() if key != "test"}
        (folder / "runs" / name / "results.json").write_text(json.dumps(stored), "utf-8")
    write_report([folder / "runs"], folder / "report")
    return " ".join((folder / "report" / "report.md").read_text("utf-8").split())


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "report" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def dated(date: str, run_id: str, seed: int = 0) -> dict[str, Any]:
    content = recorded(OPTIONS | {"seed_everything": seed}, run_id=run_id * 32)
    content["fit"]["date"] = content["test"]["date"] = date
    return content


def test_a_replaced_run_is_named_with_its_directory_and_its_successor(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"new": dated("2026-11-02", "b"), "old": dated("2026-11-01", "a")})
    old, new = tmp_path / "runs" / "old", tmp_path / "runs" / "new"
    assert "left out: 1 older run with the same method, options, data and seed as a newer one" in page
    assert (
        f"{old} (RepLoRAConfig run aaaaaaaa of 2026-11-01), replaced by {new} "
        "(RepLoRAConfig run bbbbbbbb of 2026-11-02)." in page
    )


def test_copies_of_a_run_are_called_copies(tmp_path: Path) -> None:
    content = dated("2026-11-01", "a")
    page = page_of(tmp_path, {"one": content, "two": copy.deepcopy(content)})
    assert "1 run: 1 measured on test data; left out: 1 further copy of runs." in page
    assert f"{tmp_path / 'runs' / 'one'} (RepLoRAConfig run aaaaaaaa of 2026-11-01) is a copy of " in page
    assert f"{tmp_path / 'runs' / 'two'} (" in page
    assert "Older runs" not in page


def test_copies_of_a_run_that_is_replaced_are_called_copies_too(tmp_path: Path) -> None:
    content = dated("2026-11-01", "a")
    page = page_of(tmp_path, {"a": content, "c": copy.deepcopy(content), "new": dated("2026-11-02", "b")})
    old, copied, new = (f"{tmp_path / 'runs' / name} (RepLoRAConfig run " for name in ("a", "c", "new"))
    assert "1 run: 1 measured on test data; left out: 1 older run" in page
    assert f"{old}aaaaaaaa of 2026-11-01), replaced by {new}" in page
    assert f"{copied}aaaaaaaa of 2026-11-01) is a copy of {old}" in page


def test_a_report_made_again_names_the_same_directories(tmp_path: Path) -> None:
    content = dated("2026-11-03", "c")
    contents = {"new": dated("2026-11-02", "b"), "old": dated("2026-11-01", "a"), "one": content, "two": content}
    page_of(tmp_path, contents)
    write_report([tmp_path / "report"], tmp_path / "again")
    assert (tmp_path / "again" / "report.md").read_bytes() == (tmp_path / "report" / "report.md").read_bytes()


def test_a_file_that_is_named_twice_is_no_copy(tmp_path: Path) -> None:
    page_of(tmp_path, {"a": dated("2026-11-01", "a")})
    write_report([tmp_path / "runs", tmp_path / "runs" / "a"], tmp_path / "twice")
    assert (tmp_path / "twice" / "report.md").read_bytes() == (tmp_path / "report" / "report.md").read_bytes()


def test_further_evaluations_are_a_table(tmp_path: Path) -> None:
    content = dated("2026-11-01", "a")
    of_part = {"data": {"split": "test", "size": 3, "sha256": "d" * 64, "seen_in_training": 2}, "partial": ["limit=1"]}
    averaged = {"weights": {"source": "best.ckpt", "sha256": "v", "averaged": True}}
    content["evaluations"] += [content["test"] | of_part, content["test"] | averaged]
    page_of(tmp_path, {"a": content})
    rows = table(tmp_path, "further_evaluations")
    assert [row["examples"] for row in rows] == ["3, list dddddddd", "5, list cccccccc"]
    assert [row["of them seen in training"] for row in rows] == ["2", "0"]
    assert [row["weights"] for row in rows] == ["last epoch", "best.ckpt, averaged"]
    assert [row["status"] for row in rows] == ["partial: limit=1", "complete"]
    assert {row["metrics"] for row in rows} == {"test/accuracy 0.5"}
    assert all(row["run"].startswith(f"{tmp_path / 'runs' / 'a'} (") for row in rows)


def test_the_status_of_a_run_is_a_column_and_in_the_summary(tmp_path: Path) -> None:
    runs = {name: dated("2026-11-01", name, seed) for seed, name in enumerate("abc")}
    runs["b"]["fit"]["partial"] = ["limit_train_batches=2"]
    runs["c"]["fit"] |= {"diverged": True, "partial": ["limit_train_batches=2"]}
    page = page_of(tmp_path, runs)
    found = {row["seed"]: row["status"] for row in table(tmp_path, "runs")}
    assert found == {"0": "complete", "1": "partial: limit_train_batches=2", "2": "diverged"}
    assert "1 diverged; 1 partial, in rows of their own and excluded from the means of complete runs." in page


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[1, 2]",
        json.dumps({"format": 2, "fit": {}, "evaluations": [{}]}),
        json.dumps({"format": 1, "fit": {}}),
        json.dumps({"format": 2, "method": "lora", "fit": "x"}),
        json.dumps({"format": 1, "method": "lora", "fit": {}, "data": []}),
        json.dumps({"format": 1, "method": "lora", "fit": {"metrics": None}, "data": {}}),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_rest_reported(tmp_path: Path, bad: str) -> None:
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "bad" / "results.json").write_text(bad, "utf-8")
    page = page_of(tmp_path, {"good": dated("2026-11-01", "a")})
    assert "1 run: 1 measured on test data" in page
    assert f"Not part of this report: {tmp_path / 'runs' / 'bad' / 'results.json'} is " in page
