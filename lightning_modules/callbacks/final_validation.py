"""A validation at the end of the last epoch, whatever the interval between validations."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class FinalValidation(Callback):
    """Makes the last epoch end with a validation.

    With `check_val_every_n_epoch: 4` a fit of six epochs would otherwise end with the metrics of the fourth. Runs that
    validate after every epoch are not changed.
    """

    def __init__(self) -> None:
        self.interval: int | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        interval = trainer.check_val_every_n_epoch
        if interval not in (None, 1) and self._is_last(trainer):
            self.interval = interval
            trainer.check_val_every_n_epoch = trainer.current_epoch + 1  # divides the number of this epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if self.interval is not None:
            trainer.check_val_every_n_epoch = self.interval
            self.interval = None

    def _is_last(self, trainer: Trainer) -> bool:
        most = trainer.max_epochs
        if most is not None and 0 <= most <= trainer.current_epoch + 1:
            return True
        left = trainer.max_steps - trainer.global_step
        return trainer.max_steps >= 0 and left * trainer.accumulate_grad_batches <= trainer.num_training_batches
