"""Temperature scaling at the end of a fit."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.callbacks.temperature_scaling import best_temperature
from replora import load_run
from replora.cli.main import main
from replora.results import read_results
from tests.cli.helpers import DIGITS, fit, refused

SCALED = "--trainer.callbacks+=TemperatureScaling"


def test_the_temperature_has_the_highest_likelihood() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, dtype=torch.float64, generator=generator)
    labels = torch.multinomial((logits / 1.7).softmax(1), 1, generator=generator)[:, 0]
    found = best_temperature(logits, labels)
    assert found == pytest.approx(1.7, rel=0.05)
    losses = [float(F.cross_entropy(logits / (found * factor), labels)) for factor in (0.97, 1.0, 1.03)]
    assert losses[1] == min(losses)


def test_every_format_has_it_and_no_prediction_changes(tmp_path: Path) -> None:
    plain, scaled = (fit(tmp_path / name, *options) for name, options in (("plain", ()), ("scaled", (SCALED,))))
    temperature = read_results(scaled)["fit"]["temperature"]
    assert temperature != 1
    image = torch.randint(256, (1, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    logits = [load_run(run).predict(list(image)).probabilities.log() for run in (plain, scaled)]
    torch.testing.assert_close((logits[0] / temperature).softmax(1), logits[1].softmax(1), rtol=0, atol=1e-5)
    main(["test", f"--config={scaled / 'fit.yaml'}"])  # from the checkpoint
    tests = [e for e in read_results(scaled)["evaluations"] if e["verb"] == "test"]
    assert len({e["metrics"]["test/loss"] for e in tests}) == 1


def test_it_needs_validation_data(tmp_path: Path, capsys) -> None:
    message = refused(capsys, "fit", *DIGITS, f"--run_dir={tmp_path}", SCALED, "--data.protocol=final")
    assert "the fit has no validation data. Set --data.protocol holdout" in message
