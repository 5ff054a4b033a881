"""The line that a sweep prints for each trial that ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replora.sweeps.plan import Sweep, Trial
from replora.sweeps.progress import Progress
from replora.sweeps.sweep import UnfinishedSweepError, run_sweep
from tests.sweeps.instant import planned

RATE = {"LoRA": {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.lr": [0.01]}}}


class Measured:
    """A queue whose trials end at once, all with the same metrics."""

    def __init__(self, fit: dict[str, float], test: dict[str, float]) -> None:
        self.results = {"fit": {"metrics": fit}, "test": {"metrics": test}}

    def run(self, _home: Path, _sweep: str, trials: list[Trial], _rules: list[Any], shown: Progress) -> None:
        for trial in trials:
            shown.ended(trial, self.results)


def lines(sweep: Sweep, home: Path, queue: Measured, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(UnfinishedSweepError, match="was not reached"):  # for nothing is written
        run_sweep(sweep, home, queue)  # type: ignore[arg-type]
    return [line for line in capsys.readouterr().out.splitlines() if "seed=" in line and line.startswith("[")]


@pytest.mark.parametrize("metric", ["accuracy", "acc_norm", "acc"])
def test_without_a_selection_it_shows_what_the_tests_measured(
    metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No metric selects there, and `test/accuracy` is not what every task measures."""
    queue = Measured({"train/loss": 0.3}, {"test/loss": 1.2, f"test/{metric}": 0.612})
    first, second = lines(planned(tmp_path, methods=RATE, select=None), tmp_path / "out", queue, capsys)
    assert first.endswith(f"final/LoRA/shots=1/seed=0  test/{metric} 61.2 %")
    assert second.endswith(f"final/LoRA/shots=1/seed=1  test/{metric} 61.2 %")


def test_with_a_selection_it_shows_the_metric_that_selects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue = Measured({"val/accuracy": 0.7, "val/acc_norm": 0.2}, {})
    (line,) = lines(planned(tmp_path, methods=RATE), tmp_path / "out", queue, capsys)
    assert line.endswith("select/LoRA/shots=1/lr=0.01/seed=0  val/accuracy 70.0 %")
