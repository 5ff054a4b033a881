"""A finished run that is measured or resumed again: its number in tables stays that of its own conditions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from replora.cli.main import main
from replora.results import read_results
from tests.cli.helpers import fit, refused

STOPPED_EARLY = [
    "--trainer.max_epochs=9",
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=val/loss",
    "--trainer.callbacks.min_delta=9",
    "--trainer.callbacks.patience=1",
]
SWA = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "option",
    [
        "--data.normalization=imagenet",
        "--data.interpolation=bilinear",
        "--data.framing=crop",
        "--trainer.precision=bf16-true",
    ],
)
def test_a_test_under_other_conditions_is_a_further_evaluation(option: str, run: Path) -> None:
    before = read_results(run)
    main(["test", f"--config={run / 'fit.yaml'}", option])
    after = read_results(run)
    assert after["test"] == before["test"]
    assert len(after["evaluations"]) == len(before["evaluations"]) + 1
    main(["report", str(run), f"--out={run.parent / 'report'}"])
    name, _, value = option.rpartition(".")[2].partition("=")
    report = (run.parent / "report" / "report.md").read_text(encoding="utf-8")
    assert f"test with {name} {value}" in report.replace("{'name': 'imagenet'", "imagenet")


def test_a_test_under_the_same_conditions_replaces_its_entry(run: Path) -> None:
    before = read_results(run)
    main(["test", f"--config={run / 'fit.yaml'}"])
    after = read_results(run)
    assert after["test"]["metrics"] == before["test"]["metrics"]
    assert len(after["evaluations"]) == len(before["evaluations"])


@pytest.mark.parametrize("ended_by", [["--trainer.max_epochs=9", "--trainer.max_steps=3"], STOPPED_EARLY])
def test_a_run_that_ended_before_its_epochs_is_finished(ended_by: list[str], tmp_path: Path) -> None:
    run = fit(tmp_path / "run", *ended_by)
    before = (run / "results.json").read_bytes()
    main(["fit", f"--config={run / 'fit.yaml'}", "--ckpt_path=last"])
    assert (run / "results.json").read_bytes() == before


def test_averaging_cannot_begin_in_a_resumed_fit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = ["fit", f"--config={run / 'fit.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=2"]
    assert "averaged weights: False in the checkpoint, True here" in refused(capsys, *resume, *SWA)
