"""The summary that ends a verb: counts and intervals of shares of items alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from replora.reports.summary import format_metric, format_seconds, next_command, summarize
from replora.results import write_json

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("val/accuracy", 0.3529411852359772, "35.3 %"),
        ("test/acc_norm/boolq", 0.5, "50.0 %"),
        ("test/unparsed", 0.0, "0.0 %"),
        ("val/loss", 0.8096773028373718, "0.8097"),
        ("train/loss/coco", 12.3456789, "12.35"),
        ("val/cider/coco", 1.12345678, "112.3"),
        ("val/score", 0.7123456, "71.2"),
        ("test/skipped", 3.0, "3"),
        ("val/f1", 0.123456789, "0.1235"),
        ("val/accuracy/dataloader_idx_1", 0.25, "25.0 %"),
        ("loss", 1e-9, "1e-09"),
        ("val/loss", None, "not finite"),
        ("val/accuracy", float("nan"), "not finite"),
    ],
)
def test_metrics(name: str, value: float | None, shown: str) -> None:
    assert format_metric(name, value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0.0 s"), (8.349, "8.3 s"), (59.99, "1 min 0 s"), (200, "3 min 20 s"), (7500.4, "2 h 5 min")],
)
def test_seconds(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def summary_of(folder: Path, metrics: dict[str, float | None], **entry: Any) -> str:
    """The summary of a test that measured this."""
    evaluation = {
        "verb": "test",
        "metrics": metrics,
        "data": {"split": "test", "size": 17},
        "weights": {"source": "last epoch", "sha256": "0"},
        "partial": [],
        "seconds": 1.0,
        **entry,
    }
    content = {
        "format": 2,
        "method": "replora",
        "backbone": {"name": "tiny"},
        "data": {"task": "t"},
        "evaluations": [evaluation],
    }
    write_json(folder / "results.json", content)
    return summarize(folder, "test")


def test_a_share_of_images_has_its_count_and_interval(tmp_path: Path) -> None:
    assert "test/accuracy  35.3 %, 6 of 17  17.3 to 58.7 %\n" in summary_of(tmp_path, {"test/accuracy": 0.352941})


def test_skipped_items_are_not_counted(tmp_path: Path) -> None:
    assert "50.0 %, 7 of 14" in summary_of(tmp_path, {"test/accuracy": 0.5, "test/skipped": 3.0})


@pytest.mark.parametrize(
    ("metrics", "entry"),
    [
        ({"test/accuracy": 0.352941}, {"partial": ["limit_test_batches=1"]}),
        ({"test/accuracy": 0.4}, {}),  # no number of 17
        ({"test/accuracy": 0.352941}, {"data": {}}),
        ({"test/mean_class_accuracy": 0.352941}, {}),
        ({"test/f1": 0.352941}, {}),
        ({"test/accuracy": None}, {}),
        ({"test/accuracy/vqa": 0.352941, "test/cider/coco": 1.1}, {"answers": {"vqa": 17, "coco": 17}}),
        ({"test/score": 0.352941}, {"answers": {"gqa": 17}}),
        ({"test/acc": 0.352941}, {"tasks": {"boolq": {"items": 17}}}),  # the mean over tasks
        ({"test/accuracy/dataloader_idx_0": 0.352941}, {}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_no_other_number_has_a_count(metrics: dict[str, float | None], entry: dict[str, Any], tmp_path: Path) -> None:
    shown = summary_of(tmp_path, metrics, **entry)
    assert " of 17" not in shown
    assert " to " not in shown


def test_tasks_have_their_own_counts(tmp_path: Path) -> None:
    tasks = {"boolq": {"items": 13}, "openbookqa": {"items": 4}}
    shown = summary_of(tmp_path, {"test/acc/boolq": 0.461538, "test/unparsed/openbookqa": 0.25}, tasks=tasks)
    assert "46.2 %, 6 of 13" in shown
    assert "25.0 %, 1 of 4" in shown
    shown = summary_of(
        tmp_path, {"test/accuracy/nlvr2": 0.75, "test/accuracy/gqa": 0.25}, answers={"nlvr2": 8, "gqa": 4}
    )
    assert "75.0 %, 6 of 8" in shown
    assert "25.0 %, 1 of 4" in shown


RECORDS = [*(ROOT / "results").glob("*/*.json"), *(ROOT / "results").glob("*/*/results.json")]


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_records_of_earlier_releases(verb: str, tmp_path: Path) -> None:
    count = 0
    for file in RECORDS:
        content = json.loads(file.read_text(encoding="utf-8"))
        if "method" in content:
            count += 1
            shutil.copy(file, tmp_path / "results.json")
            shown = summarize(tmp_path, verb)
            assert shown.startswith(f"{content['method']} on ")
            assert not re.search(r"\d\.\d{7,}|None", shown)
            table, _, facts = shown.partition("\n\n")[2].rpartition("\n\n")
            assert all(len(line) <= 80 for line in table.splitlines())
            assert facts.splitlines()[-1].startswith("next     replora-cli ")
    assert count > 10


RUN = Path("my runs/a$b")


@pytest.mark.parametrize(
    ("results", "verb", "command"),
    [
        ({"data": {"protocol": "tune", "num_classes": 2}}, "fit", "fit --config C --data.protocol final --run_dir F"),
        (
            {"data": {"protocol": "tune", "num_classes": 2}},
            "validate",
            "fit --config C --data.protocol final --run_dir F",
        ),
        ({"data": {"protocol": "holdout", "num_classes": 2}}, "fit", "test --config C"),
        ({"data": {"protocol": "final", "num_classes": 2}, "test": {}}, "fit", "predict --config C"),
        ({"data": {"protocol": "final"}, "test": {}}, "fit", "export R"),
        ({"data": {"protocol": "final"}, "test": {}, "fit": {"answers": {}}}, "test", "merge R"),
    ],
)
def test_the_next_command(results: dict[str, Any], verb: str, command: str, tmp_path: Path) -> None:
    run = tmp_path / RUN
    run.mkdir(parents=True)
    (run / "fit.yaml").touch()
    names = {"C": run / "fit.yaml", "F": run.with_name("a$b-final"), "R": run}
    shown = next_command({"fit": {}, **results}, run, verb)
    assert shlex.split(shown) == ["replora-cli", *(str(names.get(word, word)) for word in command.split())]


def test_a_run_without_a_fit_is_reported() -> None:
    assert next_command({"data": {}}, Path("runs/x"), "test") == "replora-cli report runs/x --out runs/x/report"
