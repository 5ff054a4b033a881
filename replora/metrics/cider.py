"""CIDEr as coco-caption computes it, which is CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 5).

With g_n the vector of an n-gram's counts times log(N / df) over N images, df the number of images with the n-gram in
one of their references, l the length of a sentence in tokens, and J references r of a candidate c:

    CIDEr-D(c) = 10 / (4 J) sum_n sum_r exp(-(l_c - l_r)^2 / 72) min(g_n(c), g_n(r)) . g_n(r) / |g_n(c)| |g_n(r)|

Like coco-caption it takes l as the number of bigrams, one less than the tokens. Published tables show 100 times this
number. df depends on the split that is evaluated: a part of a split has other scores, and a single image scores 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

N_GRAMS = 4
SIGMA = 6.0

Ngram = tuple[str, ...]


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each candidate, from 0 to about 10. Their mean is the score of a system.

    Args:
        candidates: One tokenized caption per image, with its tokens joined by spaces.
        references: Tokenized references of each image, at least one.
    """
    counted = [[_ngrams(reference) for reference in few] for few in references]
    frequency: Counter[Ngram] = Counter()
    for few in counted:
        frequency.update({ngram for counts in few for ngram in counts})
    log_images = math.log(max(len(counted), 1))
    idf = {ngram: log_images - math.log(count) for ngram, count in frequency.items()}
    scores = []
    for candidate, few in zip(candidates, counted, strict=True):
        own = _Weighted(_ngrams(candidate), idf, log_images)
        similar = [_similarity(own, _Weighted(counts, idf, log_images)) for counts in few]
        scores.append(10 * sum(similar) / len(similar))
    return scores


class _Weighted:
    """A sentence's n-grams with their weights, the norms of the four vectors, and its length."""

    def __init__(self, counts: Counter[Ngram], idf: dict[Ngram, float], unknown: float) -> None:
        # An n-gram in no reference counts as if it were in one image.
        self.weights = {ngram: count * idf.get(ngram, unknown) for ngram, count in counts.items()}
        squares = [0.0] * N_GRAMS
        for ngram, weight in self.weights.items():
            squares[len(ngram) - 1] += weight**2
        self.norms = [math.sqrt(square) for square in squares]
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    dots = [0.0] * N_GRAMS
    for ngram, weight in candidate.weights.items():
        other = reference.weights.get(ngram, 0.0)
        dots[len(ngram) - 1] += min(weight, other) * other
    norms = [a * b for a, b in zip(candidate.norms, reference.norms, strict=True)]
    cosines = [dot / norm if norm else dot for dot, norm in zip(dots, norms, strict=True)]
    difference = candidate.length - reference.length
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * sum(cosines) / N_GRAMS


def _ngrams(sentence: str) -> Counter[Ngram]:
    words = sentence.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, N_GRAMS + 1) for i in range(len(words) - n + 1))
