"""Command lines that end in seconds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from replora.cli.main import main

torch.set_num_threads(1)

# vit_nano with random weights on 20 digits, one epoch of two steps.
QUICK = [
    "--model.pretrained=false",
    "--data.shots=2",
    "--data.batch_size=8",
    "--trainer.max_epochs=1",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.enable_progress_bar=false",
]
DIGITS = ["--config=quickstart.yaml", *QUICK, "--model.adapter.rank=2", "--model.adapter.hidden=8"]
# The line of an epoch, where there is no terminal.
EPOCH = re.compile(r"^epoch (\d+)/(\d+): loss [\d.]+, val/accuracy [\d.]+ %, train/accuracy [\d.]+ %, [\d.]+ s$", re.M)


def fit(run_dir: Path, *options: str) -> Path:
    """Run `fit` on a few digits and return the run's directory."""
    main(["fit", *DIGITS, f"--run_dir={run_dir}", *options])
    return run_dir


class Remember(Callback):
    """Keeps the trainer of the last run, for a test to look at."""

    trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: object, stage: str) -> None:  # noqa: ARG002
        Remember.trainer = trainer


class KillBefore(Callback):
    """Ends the process before an epoch, as the machine would: nothing is cleaned up.

    Args:
        epoch: Which one.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: object) -> None:  # noqa: ARG002
        if trainer.current_epoch == self.epoch:
            os._exit(9)


def refused(capsys, *arguments: str) -> str:
    """The error that a command line ends with."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err
