"""Two classifiers on the same examples: how often each is right where the other is not, and what that says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from replora.evaluation.significance import sign_test


@dataclass(frozen=True)
class Paired:
    """Counts of the examples that both classifiers were asked.

    Attributes:
        both, first, second, neither: Examples that both, only the first, only the second, or neither got right.
    """

    both: int
    first: int
    second: int
    neither: int

    @property
    def examples(self) -> int:
        return self.both + self.first + self.second + self.neither

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test: the probability of so uneven a split if both were equally good."""
        return sign_test(self.second, self.first)

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first, in [-1, 1]."""
        return (self.second - self.first) / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, from the choice of test examples.

        Wald's with half an example added to each count (Agresti and Min 2005, "Simple improved confidence intervals for
        comparing matched proportions"), which keeps its coverage for few examples.
        """
        n, first, second = self.examples + 2, self.first + 0.5, self.second + 0.5
        middle = (second - first) / n
        half = 1.959964 * math.sqrt(first + second - (second - first) ** 2 / n) / n
        return max(middle - half, -1.0), min(middle + half, 1.0)


def paired(first: list[bool], second: list[bool]) -> Paired:
    """Count, of two lists of whether each example was answered right."""
    pairs = list(zip(first, second, strict=True))
    return Paired(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))
