"""A validation at the end of the last epoch, whatever the interval between validations."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


def stops_after_this_batch(trainer: Trainer) -> bool:
    """Whether the training stops after the current batch, wherever in an epoch: by steps, time or a callback."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return True
    return trainer.should_stop and trainer.fit_loop._can_stop_early


class FinalValidation(Callback):
    """Makes a fit end with a validation.

    With `check_val_every_n_epoch: 4` a fit of six epochs would otherwise end with the metrics of the fourth, and one
    that `max_steps`, `max_time` or another callback ends inside an epoch with those of an epoch before. Nothing else
    changes.
    """

    def __init__(self) -> None:
        self.given: tuple[Any, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Come after the callbacks that may stop the training, and before those that save it."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in callbacks if callback is not self]
        first = next((i for i, callback in enumerate(others) if isinstance(callback, Checkpoint)), len(others))
        trainer.callbacks = [*others[:first], self, *others[first:]]  # type: ignore[attr-defined]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Lightning decides after this hook whether it validates."""
        if self.given is None and self._is_last(trainer):
            self.given = (trainer.check_val_every_n_epoch, trainer.val_check_batch)
            trainer.check_val_every_n_epoch = 1
            trainer.val_check_batch = batch_idx + 1  # divides the number of this batch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if self.given is not None:
            trainer.check_val_every_n_epoch, trainer.val_check_batch = self.given
            self.given = None

    def _is_last(self, trainer: Trainer) -> bool:
        if stops_after_this_batch(trainer):
            return True
        last_of_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        most = trainer.max_epochs
        return last_of_epoch and most is not None and 0 <= most <= trainer.current_epoch + 1
