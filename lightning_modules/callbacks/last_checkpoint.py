"""`checkpoints/last.ckpt`: written atomically after every epoch and when the run is asked to end."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_modules.callbacks.final_validation import stops_after_this_batch
from lightning_modules.callbacks.temperature_scaling import TemperatureScaling
from replora.datasets.errors import LoaderWorkerError
from replora.errors import RepLoRAError


class CheckpointWriteError(RepLoRAError):
    """A checkpoint could not be written."""


class LastCheckpoint(Checkpoint):
    """Keeps the latest state of a fit in one file, `last.ckpt`.

    It is written after every epoch, and where `max_steps`, `max_time` or a callback ends the training inside one: what
    resumes from it finishes that epoch. On SIGTERM, which clusters send before they take a machine away, and on Ctrl-C,
    every process finishes its batch (of an accumulation: the last one; of an epoch: the validation too), the state is
    written and the run ends with exit status 143 or 130. A second Ctrl-C stops at once. What resumes from the file
    equals the run that was not interrupted. A run that ends by an error writes nothing: the file is the last good
    state.

    Args:
        directory: Folder of `last.ckpt`.

    Raises:
        CheckpointWriteError: The disk is full or not writable; the previous file is unchanged.
    """

    def __init__(self, directory: Path) -> None:
        self.file = directory / "last.ckpt"
        self.asked: signal.Signals | None = None  # the signal that asked this process to end
        self.cut = False  # whether the epoch ends before its last batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        # Lightning's own handler communicates with other processes inside the signal, between any two operations. It
        # restores the previous handlers when the fit ends.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._remember)
            signal.signal(signal.SIGINT, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        if number == signal.SIGINT:  # not by print: the interrupted code may be writing to the same stream
            os.write(2, b"\nCtrl-C: the batch is finished and the state written; Ctrl-C again stops at once.\n")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not accumulated or trainer.is_last_batch:
            return
        # At the end of the epoch Lightning counts it as complete, however few batches it had.
        self.cut = stops_after_this_batch(trainer)
        should_end = self._should_end(trainer)
        if self.cut or should_end:
            self._write(trainer)
        if should_end:
            self._end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if not self.cut:
            self._write(trainer)
        if self._should_end(trainer):
            self._end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        # These change the trained weights at the very end, or put averages in their place; the last state is theirs.
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if averages_weights(trainer) or any(isinstance(callback, TemperatureScaling) for callback in callbacks):
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        # Some clusters send SIGTERM to the loader processes too; the state is then that of the last complete batch.
        if (
            self.asked is not None
            and trainer.training
            and trainer.world_size == 1
            and isinstance(exception, LoaderWorkerError)
        ):
            self._write(trainer)

    def _should_end(self, trainer: Trainer) -> bool:
        """The same answer in every process: whether any of them was asked to end."""
        return trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False)

    def _end(self, trainer: Trainer) -> None:
        interrupted = trainer.strategy.reduce_boolean_decision(self.asked == signal.SIGINT, all=False)
        rank_zero_info(
            f"{'Ctrl-C' if interrupted else 'SIGTERM'}: the state of step {trainer.global_step} is in {self.file}. "
            f"Resume with the same command and --ckpt_path {self.file}."
        )
        raise KeyboardInterrupt if interrupted else SIGTERMException

    def _write(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        temporary = self.file.with_suffix(".tmp")
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                if self.file.is_dir():  # DeepSpeed's checkpoints are folders, which cannot be replaced in one step
                    shutil.rmtree(self.file)
                temporary.replace(self.file)
        except OSError as error:
            if trainer.is_global_zero:
                _discard(temporary)
            kept = f"{self.file} is still whole." if self.file.exists() else "There is no earlier one."
            raise CheckpointWriteError(
                f"The checkpoint after step {trainer.global_step} could not be written to {self.file.parent}: "
                f"{error.strerror or error}. {kept} Free space there (and in {tempfile.gettempdir()}), then "
                f"resume with --ckpt_path {self.file}."
            ) from error
        trainer.strategy.barrier("last.ckpt")


def averages_weights(trainer: Trainer) -> bool:
    """Whether a callback puts an average in the place of the trained weights."""
    averaging = (StochasticWeightAveraging, WeightAveraging)
    return any(isinstance(callback, averaging) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
