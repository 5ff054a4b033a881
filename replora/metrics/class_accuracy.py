"""Mean accuracy over the classes that occur, which is scikit-learn's balanced accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanClassAccuracy(Metric):
    """The recall of each class, averaged over the classes that have at least one example.

    A class without examples says nothing about a model and does not count. torchmetrics' macro average counts such a
    class as 0 as soon as it is predicted once.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of examples that do not count, such as padding.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    examples: Tensor

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("correct", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("examples", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: Scores or logits, float (B, num_classes).
            target: Labels, int64 (B,).
        """
        counted = target != self.ignore_index
        target, predicted = target[counted], preds.argmax(dim=-1)[counted]
        self.examples += torch.bincount(target, minlength=self.num_classes)
        self.correct += torch.bincount(target[predicted == target], minlength=self.num_classes)

    def compute(self) -> Tensor:
        """A scalar in [0, 1]; NaN without any example."""
        occurs = self.examples > 0
        return (self.correct[occurs] / self.examples[occurs]).mean()
