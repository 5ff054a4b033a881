"""`checkpoints/last.ckpt`: written atomically after every epoch and when the run is asked to end."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from replora.datasets.errors import LoaderWorkerError
from replora.errors import RepLoRAError


class CheckpointWriteError(RepLoRAError):
    """A checkpoint could not be written."""


class LastCheckpoint(Checkpoint):
    """Keeps the latest state of a fit in one file, `last.ckpt`.

    The file is written after every epoch. On SIGTERM, which clusters send before they reclaim a machine, every process
    finishes its batch (the last one of an accumulation; in the last batch of an epoch, the validation too), the state
    is written, and the run ends with exit status 143. A resumed run equals an uninterrupted one. A run that ends with
    an error writes nothing, so the file holds the last good state.

    Args:
        directory: Folder of `last.ckpt`.

    Raises:
        CheckpointWriteError: The disk is full or not writable; the previous file is unchanged.
    """

    def __init__(self, directory: Path) -> None:
        self.file = directory / "last.ckpt"
        self.terminated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        # Lightning's own handler communicates with other processes inside the signal, between any two operations. It
        # restores the previous handlers when the fit ends.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.terminated = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if accumulated and not trainer.is_last_batch and self._should_end(trainer):
            self._write(trainer)
            self._end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._write(trainer)
        if self._should_end(trainer):
            self._end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        # Some clusters send SIGTERM to the loader processes too; the state is then that of the last complete batch.
        if (
            self.terminated
            and trainer.training
            and trainer.world_size == 1
            and isinstance(exception, LoaderWorkerError)
        ):
            self._write(trainer)

    def _should_end(self, trainer: Trainer) -> bool:
        """Whether any process was asked to end; the same answer in all of them."""
        return trainer.strategy.reduce_boolean_decision(self.terminated, all=False)

    def _end(self, trainer: Trainer) -> None:
        rank_zero_info(
            f"SIGTERM: the state of step {trainer.global_step} is in {self.file}. Resume with the same command and "
            f"--ckpt_path {self.file}."
        )
        raise SIGTERMException

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


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
