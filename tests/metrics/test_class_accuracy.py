"""Mean class accuracy against scikit-learn's balanced accuracy."""

from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from replora.metrics.class_accuracy import MeanClassAccuracy


@pytest.mark.parametrize("seed", range(20))
def test_equals_balanced_accuracy_also_where_classes_are_absent(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = 7
    occurring = torch.randperm(classes, generator=generator)[: 2 + seed % 5]
    target = occurring[torch.randint(len(occurring), (40,), generator=generator)]
    logits = torch.randn(40, classes, generator=generator)  # predicts absent classes too
    metric = MeanClassAccuracy(classes, ignore_index=-1)
    for start in (0, 15, 30):
        metric.update(logits[start : start + 15], target[start : start + 15])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted classes that do not occur
        expected = balanced_accuracy_score(target.numpy(), logits.argmax(1).numpy())
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_an_absent_class_that_is_predicted_does_not_count() -> None:
    metric = MeanClassAccuracy(3, ignore_index=-1)
    logits = torch.eye(3)[[0, 0, 1, 2]]
    metric.update(logits, torch.tensor([0, 0, 1, 1]))
    assert metric.compute().item() == 0.75


def test_padding_does_not_count() -> None:
    metric = MeanClassAccuracy(2, ignore_index=-1)
    metric.update(torch.eye(2)[[0, 1, 1]], torch.tensor([0, -1, 1]))
    assert metric.compute().item() == 1
    assert metric.examples.tolist() == [1, 1]
