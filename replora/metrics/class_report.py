"""What one can act on beside an accuracy: how each class fares, and whether the probabilities can be believed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

UNITS = 10**9
BINS = 15  # of equal width, as in Guo et al. (2017), "On Calibration of Modern Neural Networks"


class ClassReport(Metric):
    """Counts by class and by confidence, from which `compute` gives precision, recall, F1 and the calibration error.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of examples that do not count, such as padding.
    """

    full_state_update = False
    right: Tensor
    labeled: Tensor
    predicted: Tensor
    confidence: Tensor

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        for name in ("right", "labeled", "predicted"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        # By bin of the confidence: examples, right ones, and the sum of the confidences in units of 1e-9. Whole
        # numbers keep their type in a module of 16 bits.
        self.add_state("confidence", torch.zeros(3, BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Logits, float (B, num_classes).
            target: Labels, int64 (B,).
        """
        counted = target != self.ignore_index
        probability, predicted = logits[counted].float().softmax(dim=-1).max(dim=-1)
        target = target[counted]
        right = predicted == target
        for counts, classes in ((self.right, target[right]), (self.labeled, target), (self.predicted, predicted)):
            counts += torch.bincount(classes, minlength=self.num_classes)
        probability = probability.nan_to_num()  # of a model that diverged
        bins = (probability * BINS).long().clamp(max=BINS - 1)
        for row, values in enumerate((torch.ones_like(bins), right, (probability.double() * UNITS).round())):
            self.confidence[row].index_add_(0, bins, values.long())

    def compute(self) -> dict[str, Any]:
        """`classes`: for each class its precision, recall, F1 (null without an example), number of examples
        (`support`) and of predictions. `calibration`: the expected calibration error `ece`, in [0, 1], and the mean
        `confidence`; null without an example.
        """
        counts = (self.right.tolist(), self.labeled.tolist(), self.predicted.tolist())
        examples, right, confidence = self.confidence.sum(dim=1).tolist()
        gaps = (self.confidence[1] * UNITS - self.confidence[2]).abs().sum()
        return {
            "classes": [_of_class(*numbers) for numbers in zip(*counts, strict=True)],
            "calibration": {
                "ece": round(float(gaps) / UNITS / examples, 6) if examples else None,
                "confidence": round(confidence / UNITS / examples, 6) if examples else None,
                "accuracy": round(right / examples, 6) if examples else None,
                "bins": BINS,
            },
        }


def _of_class(right: int, labeled: int, predicted: int) -> dict[str, Any]:
    return {
        "precision": round(right / predicted, 6) if predicted else None,
        "recall": round(right / labeled, 6) if labeled else None,
        "f1": round(2 * right / (labeled + predicted), 6) if labeled + predicted else None,
        "support": labeled,
        "predicted": predicted,
    }
