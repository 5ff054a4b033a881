"""Whether two models that answered the same questions differ by more than chance."""

from __future__ import annotations

from math import comb


def sign_test(gained: int, lost: int) -> float:
    """The two-sided p of the exact sign test, which is McNemar's (1947) exact test for paired answers.

    Questions that both models answer rightly, or both wrongly, say nothing. Of the others each model should win half
    if they were equally good: p is the probability of a split at least as uneven as this one.

    Args:
        gained: Questions that the second model alone answers rightly.
        lost: Questions that the first model alone answers rightly.
    """
    splits: int = 2 ** (gained + lost)
    tail = sum(comb(gained + lost, wins) for wins in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / splits)
