from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replora.datasets.common.subsample import places_within, stratified_order, subsample_indices
from replora.datasets.errors import SubsetError

labels_lists = st.lists(st.integers(0, 6), min_size=1, max_size=80)
fractions = st.floats(0, 1, exclude_min=True, allow_subnormal=False)
seeds = st.integers(-3, 10**6)

IMBALANCED = [0] * 70 + [1] * 20 + [2] * 9 + [3]


@given(labels_lists, fractions, fractions, seeds)
def test_fractions_are_nested(labels: list[int], one: float, other: float, seed: int) -> None:
    small, large = sorted((one, other))
    assert set(subsample_indices(labels, small, seed=seed)) <= set(subsample_indices(labels, large, seed=seed))


@given(labels_lists, st.integers(1, 99), seeds)
def test_size_is_the_rounded_fraction_and_indices_are_sorted(labels: list[int], percent: int, seed: int) -> None:
    indices = subsample_indices(labels, percent / 100, seed=seed)
    assert len(indices) == max(1, math.floor(Fraction(percent, 100) * len(labels) + Fraction(1, 2)))
    assert indices == sorted(set(indices))
    assert set(indices) <= set(range(len(labels)))


@given(labels_lists, seeds)
def test_every_prefix_has_each_class_first_and_then_shares_by_sainte_lague(labels: list[int], seed: int) -> None:
    sizes = Counter(labels)
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    assert len({labels[i] for i in order[: len(sizes)]}) == len(sizes)
    for length in range(len(sizes), len(labels) + 1):
        counts = Counter(labels[i] for i in order[:length])
        # Nobody's last image (after the first) had a smaller claim than anybody's next one.
        last = max((Fraction(2 * counts[c] - 1, sizes[c]) for c in sizes if counts[c] > 1), default=Fraction(0))
        following = [Fraction(2 * counts[c] + 1, sizes[c]) for c in sizes if counts[c] < sizes[c]]
        assert last <= min(following, default=last)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 100), seeds)
def test_balanced_classes_stay_balanced(classes: int, each: int, percent: int, seed: int) -> None:
    labels = [i % classes for i in range(classes * each)]
    counts = Counter(labels[i] for i in subsample_indices(labels, percent / 100, seed=seed))
    per_class = [counts[c] for c in range(classes)]
    assert max(per_class) - min(per_class) <= 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), seeds, st.data())
def test_shots_are_exact_and_nested(sizes: list[int], seed: int, data: st.DataObject) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    shots = data.draw(st.integers(1, min(sizes)))
    chosen = subsample_indices(labels, shots=shots, seed=seed)
    assert Counter(labels[i] for i in chosen) == dict.fromkeys(range(len(sizes)), shots)
    if shots > 1:
        assert set(subsample_indices(labels, shots=shots - 1, seed=seed)) <= set(chosen)


def test_imbalance_is_kept() -> None:
    counts = Counter(IMBALANCED[i] for i in subsample_indices(IMBALANCED, 0.5))
    assert counts == {0: 35, 1: 10, 2: 4, 3: 1}


def test_places_in_the_union() -> None:
    assert places_within([5, 6], [5, 6, 7]) == [0, 1]
    assert places_within([5, 6], [6, 7, 5], ["a", "b"], ["b", "c", "a"]) == [2, 0]
    assert places_within([5, 6], [5, 6, 7], ["train/1", "train/2"], ["both/1", "both/2", "both/3"]) == [0, 1]
    with pytest.raises(SubsetError, match="subset_rule by_split"):
        places_within([5, 6], [6, 5, 7])


def test_all_is_all() -> None:
    assert subsample_indices(IMBALANCED) == subsample_indices(IMBALANCED, 1.0) == list(range(100))
    assert subsample_indices([]) == []


def test_halves_are_rounded_up_of_the_decimal_as_written() -> None:
    assert len(subsample_indices([0] * 100, 0.145)) == 15
    assert len(subsample_indices([0] * 100, 0.285)) == 29  # 0.285 * 100 is 28.499999999999996
    assert len(subsample_indices([0] * 100, 0.001)) == 1


def test_too_small_for_all_classes_gives_distinct_classes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    labels = [i % 10 for i in range(100)]
    assert len({labels[i] for i in subsample_indices(labels, 0.05)}) == 5
    assert "5 classes have no example" in caplog.text
    subsample_indices(labels, 0.05, kind="tasks")
    assert "fewer than the 10 tasks present: 5 tasks have no example" in caplog.text


def test_seeds_differ() -> None:
    assert len({tuple(subsample_indices(IMBALANCED, 0.2, seed=seed)) for seed in range(10)}) == 10


def test_golden_indices() -> None:
    """Fixed for ever: published subsets depend on them."""
    labels = [i % 4 for i in range(40)]
    assert subsample_indices(labels, 0.2, seed=0) == [5, 8, 12, 13, 27, 30, 34, 35]
    assert subsample_indices(labels, shots=1, seed=7) == [5, 22, 27, 36]
    assert stratified_order(IMBALANCED, seed=3)[:12] == [46, 82, 98, 99, 10, 59, 3, 2, 85, 54, 62, 29]


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_other_processes_choose_the_same(hash_seed: str) -> None:
    code = (
        "from replora.datasets.common.subsample import subsample_indices as s;"
        f"print(s({IMBALANCED}, 0.3, seed=11), s({IMBALANCED}, shots=1, seed=11))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True
    )
    here = f"{subsample_indices(IMBALANCED, 0.3, seed=11)} {subsample_indices(IMBALANCED, shots=1, seed=11)}"
    assert found.stdout.strip() == here, found.stderr


@pytest.mark.parametrize("fraction", [0, 0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(SubsetError, match=r"train_fraction=.* is not in \(0, 1\]"):
        subsample_indices(IMBALANCED, fraction)


@pytest.mark.parametrize("shots", [0, -1, 1.5])
def test_bad_shots(shots: int) -> None:
    with pytest.raises(SubsetError, match=r"shots=.* is not a whole number of examples per class"):
        subsample_indices(IMBALANCED, shots=shots)


def test_shots_that_a_class_lacks() -> None:
    with pytest.raises(SubsetError, match=r"class 2 has 9, class 3 has 1. Use at most shots=1,"):
        subsample_indices(IMBALANCED, shots=10)


def test_both_options() -> None:
    with pytest.raises(SubsetError, match=r"Both train_fraction=0.5 and shots=1"):
        subsample_indices(IMBALANCED, 0.5, 1)
