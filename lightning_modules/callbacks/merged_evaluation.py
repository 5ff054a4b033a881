"""Validation, test and prediction at the frozen backbone's own speed."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

import replora
from replora.adapters.merge import merges_exactly


class MergedEvaluation(Callback):
    """Merges the update into the frozen weights when an evaluation starts and restores them bit for bit when it ends.

    `AdaptedModule` brings it along. Merging changes an output by no more than float32 rounding does; where it would
    change it by more, or could not be undone exactly, the evaluation runs unmerged: weights in 16 bits or quantised,
    weights that are shared out among processes, methods of the `peft` library, and weights that another callback
    exchanges for their average. An adapter that was merged already stays so.

    While it lasts there is a copy of each adapted matrix: 85 MB for the `qkv` of ViT-B, and far less than the
    activations of a training step.
    """

    def __init__(self) -> None:
        self._merged: nn.Module | None = None

    def _merge(self, trainer: Trainer, module: LightningModule) -> None:
        averaged = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if not averaged and merges_exactly(model := cast(nn.Module, module.model)):
            self._merged = model
            replora.merge(model)

    def _unmerge(self) -> None:
        if self._merged is not None:
            replora.unmerge(self._merged)
            self._merged = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._merge(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._merge(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._merge(trainer, pl_module)

    def on_validation_end(self, *_: Any) -> None:
        self._unmerge()

    def on_test_end(self, *_: Any) -> None:
        self._unmerge()

    def on_predict_end(self, *_: Any) -> None:
        self._unmerge()

    def on_exception(self, *_: Any) -> None:
        self._unmerge()
