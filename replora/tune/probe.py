"""Starts one run and ends it after a few steps: what the data are, and how long a step takes here."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from replora.errors import RepLoRAError
from replora.sweeps.plan import Trial
from replora.sweeps.step_time import NotMeasuredError, StepTimer, run_timed
from replora.sweeps.trial import output_to


@dataclass(frozen=True)
class Facts:
    """What one run showed.

    Attributes:
        start: Seconds from the command to the first step.
        step: Seconds per step; 0 if none was made.
        steps: Steps of the whole fit.
        sizes: Split -> number of examples in use.
        classes: Number of classes; 1 where there are none.
        given_validation: Whether the validation examples were chosen by hand.
        lists: Split -> hash of its names and labels.
        eval_batch: Examples per batch in evaluations.
        method: Name of the method.
    """

    start: float
    step: float
    steps: float
    sizes: dict[str, int]
    classes: int
    given_validation: bool
    lists: dict[str, str | None]
    eval_batch: int
    method: str

    def seconds(self, steps: float, evaluated: int) -> float:
        """Estimated seconds of a fit of so many steps that ends with a measurement on so many examples.

        A batch of an evaluation is twice as large as one of training, and has no backward pass.
        """
        batches = -(-evaluated // self.eval_batch)
        return self.start + self.step * (steps + batches * 2 / 3)


class ProbeTimer(StepTimer):
    """A `StepTimer` that also writes what the data and the model are.

    Args:
        steps: Number of steps to measure (>= 0).
        file: File to write.
    """

    def __init__(self, steps: int, file: Path) -> None:
        super().__init__(steps)
        self.file = file

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        described = data.describe()
        facts = {
            "reached": time.perf_counter(),
            "sizes": described["split_sizes"],
            "classes": len(described["class_names"] or ["all"]),
            "given_validation": data.given_validation,
            "lists": {split: entry["sha256"] for split, entry in described["splits"].items()},
            "eval_batch": data.eval_batch_size,
            "method": pl_module.describe()["method"],  # type: ignore[operator]
        }
        self.file.write_text(json.dumps(facts), encoding="utf-8")
        super().on_train_start(trainer, pl_module)


def probe(trial: Trial, steps: int) -> Facts:
    """Run a few steps of a trial in a temporary directory.

    Args:
        trial: The trial.
        steps: Number of steps to measure (>= 0).

    Raises:
        RepLoRAError: It cannot be started; the error is that of the run.
    """
    with tempfile.TemporaryDirectory(prefix="replora-probe-") as folder:
        file = Path(folder) / "facts.json"
        begin = time.perf_counter()
        timer = {"class_path": f"{__name__}.ProbeTimer", "init_args": {"steps": steps, "file": str(file)}}
        try:
            with output_to(Path(os.devnull)):
                measured = run_timed(trial, timer)
        except NotMeasuredError as error:
            raise _own_error(error) from error
        facts = json.loads(file.read_text(encoding="utf-8"))
    # The fastest step: others waited for caches, or for other processes, and a budget would be refused without need.
    step = min(measured.seconds, default=0.0)
    return Facts(start=facts.pop("reached") - begin, step=step, steps=measured.batches, **facts)


def _own_error(error: BaseException) -> BaseException:
    """The first error of this package in the chain, with its whole message; else the error of the run."""
    cause = found = error.__cause__ or error
    while cause is not None:
        if isinstance(cause, RepLoRAError):
            return cause
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return found
