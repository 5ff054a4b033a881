"""Uncertainty of an accuracy, and of the difference between two models, that comes from the choice of test items."""

from __future__ import annotations

# Both functions import scipy.stats only when they are called: it takes long to import, and training does not need it.


def wilson_interval(right: int, items: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for the accuracy of `right` out of `items`; both ends are in [0, 1].

    The interval covers the choice of test items. Training with another seed varies on top of it.
    """
    if items == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(right, items).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def sign_test(gained: int, lost: int) -> float:
    """The two-sided p value of the exact sign test, which is McNemar's (1947) exact test for paired answers.

    Questions that both models answer correctly, or both incorrectly, carry no information. If the models were equally
    good, each would win half of the others: p is the probability of a split at least as uneven as this one.

    Args:
        gained: Number of questions that only the second model answers correctly.
        lost: Number of questions that only the first model answers correctly.
    """
    if gained + lost == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue)
