"""A check, before the first epoch, of the metrics that callbacks monitor."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from replora.errors import RepLoRAError, nearest


class MonitorCheck(Callback):
    """Refuses an `EarlyStopping` or a `ModelCheckpoint` whose metric of the validation does not exist.

    Lightning notices it after an epoch. The metrics of the validation are known after its sanity check; where there is
    none, and for metrics of the training, Lightning's own check remains.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Compare.

        Raises:
            RepLoRAError: A metric does not exist; the message names the nearest ones.
        """
        known = sorted(name for name in trainer.callback_metrics if name.startswith("val"))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith("val") and known and monitor not in known:
                raise RepLoRAError(
                    f"{type(callback).__name__}: monitor is {monitor!r}, and the validation has no such metric. "
                    f"{nearest(monitor, known)}"
                )
