"""Temperature scaling (Guo et al. 2017), folded into the classification head."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from replora.datasets.samples import PADDING_LABEL
from replora.errors import RepLoRAError

LOWEST, HIGHEST = 0.05, 20.0  # of a temperature


class TemperatureScaling(Callback):
    """Lets the probabilities of a classifier say how often it is right, at the end of its training.

        replora-cli fit ... --trainer.callbacks+=TemperatureScaling

    The logits are divided by the temperature that gives the labels of the last validation the highest likelihood. The
    predicted classes stay as they are. Weight and bias of the head are divided instead of the logits, so that
    checkpoints, adapter files and exports have it without knowing of it. The record has it as `fit.temperature`. As
    the validation chose it, only a test measures the calibration.

    Raises:
        RepLoRAError: There is no validation (the protocol `final` has none), or the head is not linear.
    """

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not sum(trainer.num_val_batches):
            raise RepLoRAError(
                "TemperatureScaling: the fit has no validation data. Set --data.protocol holdout or tune, and do not "
                "limit the validation to 0 batches."
            )
        _heads(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.logits, self.labels = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        counted = batch["label"] != PADDING_LABEL
        self.logits.append(outputs["logits"][counted].detach().double().cpu())
        self.labels.append(batch["label"][counted].cpu())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logits, labels = torch.cat(self.logits), torch.cat(self.labels)
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, (logits, labels))
            logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        temperature = best_temperature(logits, labels)
        with torch.no_grad():
            for head in _heads(pl_module):
                for parameter in head.parameters():
                    parameter.div_(temperature)
        cast(Any, pl_module).temperature = temperature
        rank_zero_info(f"temperature scaling: the logits are divided by {temperature:.3g} ({len(labels):,} examples)")


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, from 0.05 to 20, by which logits (N, classes) are most likely to give the labels (N,)."""
    from scipy.optimize import minimize_scalar  # slow, and only here

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), labels))

    return math.exp(minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded").x)


def _heads(module: Any) -> list[nn.Module]:
    """The linear layers that give the logits; two for a distilled DeiT, whose logits are their mean.

    Raises:
        RepLoRAError: One is not linear.
    """
    heads = [module.model.get_submodule(name) for name in module.backbone.head_names]
    for head in heads:
        if not isinstance(head, nn.Linear):
            raise RepLoRAError(
                f"TemperatureScaling: the head of {module.backbone.name} is a {type(head).__name__}, not linear."
            )
    return heads
