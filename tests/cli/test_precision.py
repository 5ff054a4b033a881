"""`--trainer.precision auto` is what the hardware does well, and a run records what it was."""

import pytest
import torch
import yaml
from jsonargparse import Namespace

from replora.cli.main import main
from replora.trainer.precision import resolve_auto
from tests.cli.helpers import fit


def test_on_a_cpu_it_is_full_precision(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = fit(tmp_path / "run", "--trainer.precision=auto")
    assert yaml.safe_load((run / "fit.yaml").read_text())["trainer"]["precision"] == "32-true"
    main(["test", f"--config={run / 'fit.yaml'}", "--trainer.precision=auto"])


@pytest.mark.parametrize(
    ("accelerator", "capability", "expected"),
    [
        ("auto", (9, 0), "bf16-mixed"),
        ("gpu", (8, 0), "bf16-mixed"),
        ("cuda", (7, 5), "16-mixed"),
        ("cpu", (9, 0), "32-true"),
        ("mps", (9, 0), "32-true"),
    ],
)
def test_on_a_gpu(monkeypatch, accelerator, capability, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    options = Namespace(precision="auto", accelerator=accelerator)
    resolve_auto(options)
    assert options.precision == expected
    given = Namespace(precision="64-true", accelerator=accelerator)
    resolve_auto(given)
    assert given.precision == "64-true"
