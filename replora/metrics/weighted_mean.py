"""A mean over a training epoch that never asks the device for a value."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """The weighted mean of all values, over all batches and processes.

    torchmetrics' `MeanMetric` looks for NaN in every batch, so that the host waits for the device in every step; with
    `nan_strategy="disable"` it ignores the weights. Here a NaN makes the mean NaN.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | float) -> None:
        """Add values.

        Args:
            value: Values of any shape.
            weight: Their weights (>= 0), of a shape that broadcasts to that of `value`.
        """
        self.total += (value * weight).sum()
        self.weight += torch.as_tensor(weight, dtype=self.weight.dtype, device=value.device).expand_as(value).sum()

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN without any weight."""
        return self.total / self.weight
