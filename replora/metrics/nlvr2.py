"""NLVR2's consistency (Suhr et al. 2019, arXiv 1811.00491), as in its official script."""

from __future__ import annotations

from collections.abc import Mapping


def nlvr2_consistency(right: Mapping[str, bool]) -> float:
    """Fraction of sentences that are judged correctly for all of their image pairs, in [0, 1].

    Args:
        right: Identifier -> whether the prediction is correct. `dev-850-2-0` is pair 2 of sentence 0 of set 850; the
            identifiers of one sentence differ only in the pair (github.com/lil-lab/nlvr, nlvr2/eval/metrics.py).
    """
    sentences: dict[tuple[str, ...], bool] = {}
    for identifier, holds in right.items():
        parts = identifier.split("-")
        sentence = (*parts[:2], *parts[3:])
        sentences[sentence] = sentences.get(sentence, True) and holds
    return sum(sentences.values()) / len(sentences)
