"""Estimates the duration of trials from a few steps of training that are measured on this machine."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from replora.errors import RepLoRAError
from replora.launch import launch
from replora.sweeps.plan import Trial

TIMER = f"{__name__}.StepTimer"
STEPS = 4  # the first of them, which warms caches up, is not counted


class NotMeasuredError(RepLoRAError):
    """A step cannot be measured here: the data, the GPU or a package is missing."""


class MeasuredError(Exception):
    """Ends a fit in which enough was measured."""

    def __init__(self, batches: float, seconds: list[float]) -> None:
        self.batches, self.seconds = batches, seconds


class StepTimer(Callback):
    """Ends a fit after a few steps, or before the first one if only their number is asked for.

    Args:
        steps: Number of steps to measure (>= 0).
    """

    def __init__(self, steps: int = STEPS) -> None:
        self.steps = steps
        self.seconds: list[float] = []
        self.begin = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._end_if_measured(trainer)

    def on_train_batch_start(self, *_: object) -> None:
        _wait_for_gpu()
        self.begin = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        _wait_for_gpu()
        self.seconds.append(time.perf_counter() - self.begin)
        self._end_if_measured(trainer)

    def _end_if_measured(self, trainer: Trainer) -> None:
        batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        if len(self.seconds) >= min(self.steps, batches):
            raise MeasuredError(batches, self.seconds)


def measure_steps(trials: Sequence[Trial]) -> tuple[list[float], str]:
    """Measure a few steps of the first trial, and count those of one trial of each stage, task and size.

    Args:
        trials: Trials whose durations are wanted; at least one.

    Returns:
        Seconds of each trial, and a description of the measurement.

    Raises:
        NotMeasuredError: A trial cannot be started on this machine.
    """
    first = trials[0]
    found = run_timed(first, {"class_path": TIMER, "init_args": {"steps": STEPS}})
    step = statistics.fmean(found.seconds[1:] or found.seconds)
    batches = {_kind(first): found.batches}
    for trial in trials:
        if _kind(trial) not in batches:
            batches[_kind(trial)] = run_timed(trial, {"class_path": TIMER, "init_args": {"steps": 0}}).batches
    source = f"from {step:.3g} seconds per step of {first.folder}, measured here; without validation, test and start"
    return [batches[_kind(trial)] * step for trial in trials], source


def _kind(trial: Trial) -> tuple[str, str, str]:
    return trial.stage, trial.task.name, trial.size.name


def run_timed(trial: Trial, timer: dict[str, Any]) -> MeasuredError:
    """Run a trial in a temporary directory until its timer ends it.

    Args:
        trial: The trial.
        timer: Class path and arguments of a `StepTimer`.

    Raises:
        NotMeasuredError: The trial cannot be started on this machine.
    """
    silent = io.StringIO()
    with (
        tempfile.TemporaryDirectory(prefix="replora-step-") as folder,
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        options = ["logger=false", "num_sanity_val_steps=0", "enable_progress_bar=false"]
        arguments = [f"--run_dir={Path(folder) / 'run'}", *(f"--trainer.{option}" for option in options)]
        try:
            launch(["fit", *trial.arguments, *arguments, f"--trainer.callbacks+={json.dumps(timer)}"])
        except MeasuredError as measured:
            return measured
        except Exception as error:
            raise NotMeasuredError(_reason(error)) from error
        raise NotMeasuredError(f"{trial.folder} trains no step.")


def _reason(error: BaseException) -> str:
    """The message of the first error of this package in the chain, which the parser wraps; else of the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RepLoRAError):
        cause = cause.__cause__ or cause.__context__
    return (str(cause or error).strip() or type(error).__name__).splitlines()[0]


def _wait_for_gpu() -> None:
    import torch  # loaded by now

    if torch.cuda.is_available():
        torch.cuda.synchronize()
