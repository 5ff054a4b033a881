"""`partial` and `diverged` stand in every file of predictions and every picture of such a run, and in no other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lightning_modules.callbacks import submission_writer
from lightning_modules.callbacks.answer_writer import AnswerWriter
from lightning_modules.callbacks.prediction_writer import COLUMNS
from replora.adapters.state import read_metadata
from replora.cli.main import main
from replora.plots import run as plots
from replora.results import read_results, status_of, write_json
from replora.runs import status_of_adapter
from tests.cli.helpers import DIGITS

COMPLETE = [option for option in DIGITS if ".limit_" not in option]
LIMITED = "partial: limit_val_batches=1"


@pytest.mark.parametrize(
    ("results", "partial", "status"),
    [
        ({}, [], "complete"),
        ({"fit": {"partial": [], "diverged": False}}, [], "complete"),
        ({"fit": {"partial": ["a"], "diverged": False}}, ["b", "a"], "partial: a; b"),
        ({"fit": {"partial": ["a"], "diverged": True}}, [], "diverged"),
        ({"sweep": {"failed": "nan"}}, [], "diverged"),
        ({"fit": {"metrics": {}}, "test": {}}, ["b"], "partial: b"),
    ],
)
def test_the_words(results: dict[str, Any], partial: list[str], status: str) -> None:
    assert status_of(results, partial) == status


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`complete` and `partial`, runs on digits, each with predictions, and `x.png`."""
    home = tmp_path_factory.mktemp("status")
    for name, options in {"complete": COMPLETE, "partial": [*COMPLETE, "--trainer.limit_val_batches=1"]}.items():
        main(["fit", *options, f"--run_dir={home / name}", "--test_after_fit=false"])
        main(["predict", f"--config={home / name / 'fit.yaml'}"])
    Image.new("RGB", (8, 8)).save(home / "x.png")
    return home


def header_and_statuses(file: Path) -> tuple[list[str], set[str | None]]:
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        statuses = {line.get("status") for line in reader}
        return list(reader.fieldnames or ()), statuses


def test_predictions_of_a_run(home: Path) -> None:
    assert header_and_statuses(home / "complete" / "predictions.csv") == (COLUMNS, {None})
    assert header_and_statuses(home / "partial" / "predictions.csv") == ([*COLUMNS, "status"], {LIMITED})


def titles(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The titles of all figures that a command saves."""
    found: list[str] = []

    def save(figure: Figure, *_: Any, **__: Any) -> None:
        found.append(figure.get_suptitle())

    monkeypatch.setattr(Figure, "savefig", save)
    main(list(arguments))
    return "\n".join(found)


def test_pictures_of_a_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = f"--out={tmp_path}"
    assert titles(monkeypatch, "plot", str(home / "partial"), out).count(LIMITED) == 2, "curves and confusion"
    shown = titles(monkeypatch, "plot", str(home / "complete"), f"--out={tmp_path / 'complete'}")
    assert "partial" not in shown
    assert "complete" not in shown
    content = read_results(home / "complete")
    content["fit"]["diverged"] = True
    (tmp_path / "diverged").mkdir()
    write_json(tmp_path / "diverged" / "results.json", content)
    assert plots._title(tmp_path / "diverged").endswith(", diverged")


@pytest.mark.parametrize("name", ["complete", "partial"])
def test_predictions_of_files(home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of_adapter(read_metadata(home / name / "adapter.safetensors")) in ("complete", LIMITED)
    for top_k in (0, 2):
        for suffix in ("csv", "json"):
            out = f"--out={tmp_path / f'{top_k}.{suffix}'}"
            main(["predict-files", str(home / name), str(home / "x.png"), out, f"--top_k={top_k}", "--progress=false"])
        header, statuses = header_and_statuses(tmp_path / f"{top_k}.csv")
        assert statuses == {LIMITED if name == "partial" else None}
        assert ("status" in header, header[-1] == "status") == (name == "partial",) * 2
        content = json.loads((tmp_path / f"{top_k}.json").read_text("utf-8"))
        assert content.get("status") == (LIMITED if name == "partial" else None)
    sheet = f"--contact_sheet={tmp_path / 'sheet.png'}"
    arguments = [str(home / name), str(home / "x.png"), f"--out={tmp_path / 'p.csv'}", sheet, "--progress=false"]
    shown = titles(monkeypatch, "predict-files", *arguments)
    assert shown == (f"Status of the run: {LIMITED}" if name == "partial" else "")


def stub_trainer(**limits: Any) -> Any:
    options = {"limit_test_batches": 1.0, "limit_predict_batches": 1.0, "limit_val_batches": 1.0} | limits
    return SimpleNamespace(world_size=1, is_global_zero=True, fast_dev_run=False, **options)


def test_answers_of_a_language_model(tmp_path: Path) -> None:
    writer = AnswerWriter(tmp_path)
    writer.answers = {("boolq", 0): {"task": "boolq", "index": 0}}
    written = []
    for trainer in (stub_trainer(), stub_trainer(limit_test_batches=1)):
        writer.on_test_end(trainer, torch.nn.Module())  # type: ignore[arg-type]
        written.append(json.loads((tmp_path / "predictions.jsonl").read_text("utf-8")))
    answer = {"task": "boolq", "index": 0}
    assert written == [answer, answer | {"status": "partial: limit_test_batches=1"}]


@pytest.mark.parametrize(
    ("limits", "diverged", "folder"),
    [
        ({}, False, "predictions"),
        ({"limit_test_batches": 1}, False, "predictions_partial"),
        ({"limit_test_batches": 1}, True, "predictions_diverged"),
    ],
)
def test_submissions_to_a_benchmark(
    limits: dict[str, Any], diverged: bool, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "results.json", {"format": 1, "fit": {"diverged": diverged}})
    found: list[Path] = []
    monkeypatch.setattr(submission_writer, "write_submission", lambda folder, *_: found.append(folder) or folder)
    parts = {"vqa": SimpleNamespace(records=[])}
    trainer = stub_trainer(**limits)
    trainer.datamodule = SimpleNamespace(split_of=lambda verb: verb, parts=lambda _: parts)
    module: Any = SimpleNamespace(answers={})
    submission_writer.SubmissionWriter(tmp_path).on_test_end(trainer, module)
    assert found == [tmp_path / folder]
