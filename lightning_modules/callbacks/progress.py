"""What a person sees while a verb runs: a line per epoch, and on a terminal a bar of the batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info

from replora.progress import Advance, is_terminal, progress_bar
from replora.reports.summary import format_metric, format_seconds

MOST_SHOWN = 4  # metrics in a line
LOSS_SHOWN = 20  # batches between two losses that the bar shows


def progress_callbacks(given: Sequence[Callback] | Callback | None, enabled: bool | None) -> list[Callback]:
    """The callbacks that report progress; none beside a progress bar of the user's.

    Args:
        given: `callbacks` of the Trainer's options.
        enabled: `enable_progress_bar` of these; None is its default, true.
    """
    own = [given] if isinstance(given, Callback) else given or []
    if any(isinstance(callback, ProgressBar) for callback in own):
        return []
    # The bar ends before the line is written.
    return [EpochLines()] if enabled is False else [BatchBar(), EpochLines()]


class EpochLines(Callback):
    """Logs one line per epoch: its loss, what the module logs for the progress bar, and its duration."""

    def __init__(self) -> None:
        self.started = 0.0
        self.validated = -1  # epoch of the last validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.started = time.monotonic()  # a fit that is resumed inside an epoch does not start that one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if not trainer.sanity_checking:
            self.validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        metrics = trainer.callback_metrics
        shown = {"loss": metrics.get("train/loss", metrics.get("loss"))}
        for name in trainer.progress_bar_metrics:
            # If there was no validation in this epoch, Lightning still holds the metrics of the previous one.
            if name in metrics and (self.validated == trainer.current_epoch or not name.startswith("val")):
                shown.setdefault(name, metrics[name])
        # Validation comes before training, as it is what one looks for.
        names = sorted(shown, key=lambda name: (name != "loss", not name.startswith("val")))[:MOST_SHOWN]
        values = {name: round(float(value), 6) for name in names if (value := shown[name]) is not None}  # as recorded
        words = [f"{name} {format_metric(name, value)}" for name, value in values.items()]
        seconds = format_seconds(time.monotonic() - self.started)
        rank_zero_info(f"{_epoch(trainer)}: {', '.join([*words, seconds])}")


class BatchBar(ProgressBar):
    """One bar in one line of the terminal: the batches of the loop that runs. It vanishes when the loop ends."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.shown = ExitStack()
        self.name = ""
        self.note = ""
        self.advance: Advance | None = None

    def disable(self) -> None:
        """Lightning calls it in all processes but the first."""
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        _, outputs, _, batch_idx = rest
        # To read it makes the host wait for the device.
        if batch_idx % LOSS_SHOWN == 0 and self.enabled and is_terminal() and isinstance(outputs, dict):
            self.note = f", loss {float(outputs['loss']):.4g}"
        self._step(_epoch(trainer), batch_idx, self.total_train_batches, self.note)

    def on_validation_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluation_step("validation", batches, *rest)

    def on_test_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self._evaluation_step("test", trainer.num_test_batches, *rest)

    def on_predict_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self._evaluation_step("predict", trainer.num_predict_batches, *rest)

    def _evaluation_step(self, name: str, batches: Sequence[float], *rest: Any) -> None:
        _, _, _, batch_idx, *loader = rest  # Lightning gives the number of the loader only if there are several
        place = loader[0] if loader else 0
        name = name if len(batches) == 1 else f"{name} {place + 1}/{len(batches)}"
        self._step(name, batch_idx, batches[place])

    def _step(self, name: str, batch_idx: int, total: float, note: str = "") -> None:
        """Show that a batch is done, in the bar of this name."""
        if self.advance is None or self.name != name:
            self._close()
            known = int(total) if total < float("inf") else None
            bar = progress_bar(name, known, self.enabled, done=batch_idx, transient=True)
            self.advance, self.name = self.shown.enter_context(bar), name
        self.advance(1, f"{name}{note}")

    def _close(self) -> None:
        self.shown.close()
        self.advance = None

    # Before the module and other callbacks log what they measured.

    def on_train_epoch_end(self, *_: Any) -> None:
        self._close()

    def on_validation_epoch_end(self, *_: Any) -> None:
        self._close()

    def on_test_epoch_end(self, *_: Any) -> None:
        self._close()

    def on_predict_epoch_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()


def _epoch(trainer: Trainer) -> str:
    most = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + (f"/{most}" if most is not None and most > 0 else "")
