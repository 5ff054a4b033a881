"""Validation, test and prediction at the speed of the frozen backbone."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

import replora
from replora.adapters.merge import merges_exactly
from replora.errors import RepLoRAError


class MergedEvaluation(Callback):
    """Merges the update into the frozen weights for an evaluation and restores them bit for bit afterwards.

    `AdaptedModule` adds it. Merging changes outputs by no more than float32 rounding. Where it would change them more,
    or could not be undone exactly, the evaluation runs unmerged: weights in 16 bits, quantized weights, weights that
    are sharded across processes, methods of the `peft` library, and weights that another callback replaces by their
    average. An adapter that is already merged stays merged.

    During the evaluation there is a copy of each adapted matrix: 85 MB for the `qkv` of ViT-B, far less than the
    activations of a training step. Of a language model in float32 that is adapted everywhere it is a second model; one
    of that size has weights in 16 bits, or quantized ones, and is not merged.
    """

    def __init__(self) -> None:
        self._merged: nn.Module | None = None

    def _merge(self, trainer: Trainer, module: LightningModule) -> None:
        averaged = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if not averaged and merges_exactly(model := cast(nn.Module, module.model)):
            try:
                replora.merge(model)
            except RepLoRAError:  # the sum is not finite: a diverged adapter is measured as it is
                return
            self._merged = model

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
