"""Simulations of what reports claim: intervals cover 95 %, and a difference that is none is claimed in 5 % of cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from replora.reports.grouping import group_runs
from replora.reports.scores import Scores
from replora.reports.statistics import compare_paired, data_needed_interval, half_widths, proportion_error, t_interval
from tests.reports.fake_results import result

TRIALS = 8_000  # the standard error of 95 % is then 0.24 points
NOMINAL = pytest.approx(0.95, abs=0.02)


def claims(units: np.ndarray, truth: float = 0.0) -> float:
    """How often the interval over the last axis excludes the true mean."""
    low, high = t_interval(units)
    return float(((low > truth) | (high < truth)).mean())


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_intervals_of_pairs_cover_95_percent(pairs: int) -> None:
    """The percentile bootstrap covered 75 % with three pairs and 84 % with five."""
    differences = np.random.default_rng(pairs).normal(0.3, 1.0, (TRIALS, pairs))
    assert 1 - claims(differences, 0.3) == NOMINAL
    low, high = t_interval(differences[0])
    found = compare_paired([[value] for value in differences[0]])
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_no_difference_is_claimed_over_tasks_that_differ(spread: float) -> None:
    """19 tasks x 5 seeds without a mean effect: (task, seed) pairs as units claimed one in 23 to 31 % of cases."""
    generator = np.random.default_rng(int(10 * spread))
    tasks = generator.normal(0, spread, (TRIALS, 19, 1))
    pairs = tasks + generator.normal(0, 0.6, (TRIALS, 19, 5))
    assert 1 - claims(pairs.mean(axis=2)) == NOMINAL
    if spread:
        assert claims(pairs.reshape(TRIALS, -1)) > 0.2, "the pairs as units"


def runs_of(scores: np.ndarray) -> list[dict[str, Any]]:
    """Final runs from an array of method, task and seed."""
    return [
        result(method, scores[m, task, seed], seed=seed, data={"task": f"task_{task}"})
        for m, method in enumerate(("LoRA", "RepLoRA"))
        for task in range(scores.shape[1])
        for seed in range(scores.shape[2])
    ]


def test_a_report_takes_tasks_as_units() -> None:
    """What is simulated above is what a report computes."""
    scores = np.random.default_rng(0).uniform(0.4, 0.6, (2, 19, 5))
    (group,) = group_runs(runs_of(scores))
    read = Scores(group, shots=False)
    found = read.compare("RepLoRA", "LoRA", read.sizes)
    low, high = t_interval((scores[1] - scores[0]).mean(axis=1))
    assert found is not None
    assert (found.units, found.low, found.high) == (19, pytest.approx(low), pytest.approx(high))
    here = read.compare_on(read.average, "RepLoRA", "LoRA", read.sizes)
    low, high = t_interval((scores[1] - scores[0]).mean(axis=0))
    assert here is not None
    assert (here.units, here.low, here.high) == (5, pytest.approx(low), pytest.approx(high))
    assert (found.sampling_error, found.total) == (None, None), "the interval over tasks contains the test examples"


def test_the_interval_on_these_tasks_covers_their_mean() -> None:
    generator = np.random.default_rng(1)
    tasks = generator.normal(0, 1.0, 19)
    pairs = tasks[:, None] + generator.normal(0, 1.0, (TRIALS, 19, 5))
    assert 1 - claims(pairs.mean(axis=1), tasks.mean()) == NOMINAL


@pytest.mark.parametrize("agreement", [0.0, 1.0])
def test_the_total_interval_covers_the_accuracy_on_all_examples(agreement: float) -> None:
    """Five seeds answer the same 400 examples. If seeds agree on each, the bound is reached; else it covers more."""
    generator = np.random.default_rng(2)
    examples, seeds, trials, accuracy = 400, 5, 2_000, 0.8
    each = np.where(generator.random((trials, examples)) < accuracy, 1.0, 0.0)
    solvable = agreement * each + (1 - agreement) * accuracy
    of_seed = generator.normal(0, 0.01, (trials, seeds, 1))  # its accuracy differs from that of other seeds
    right = generator.random((trials, seeds, examples), dtype=np.float32) < np.clip(solvable[:, None] + of_seed, 0, 1)
    accuracies = right.mean(axis=2)
    low, high = t_interval(accuracies)
    covered = 0
    for one, ends in zip(accuracies.mean(axis=1), zip(low, high, strict=True), strict=True):
        *_, half = half_widths(*map(float, ends), proportion_error(float(one), examples))
        covered += abs(one - accuracy) <= half
    assert 0.93 <= covered / trials <= (0.97 if agreement else 1.0)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_the_data_needed_cover_95_percent(seeds: int) -> None:
    """A curve of slope 0.2 per factor of ten, and a target that it reaches at 10 ** 1.7 examples."""
    generator = np.random.default_rng(seeds)
    sizes, trials = (10, 30, 100, 300), 2_000
    covered = 0
    for _ in range(trials):
        noise = generator.normal(0, 0.02, (len(sizes) + 1, seeds))
        curve = {
            size: {seed: 0.3 + 0.2 * math.log10(size) + noise[place, seed] for seed in range(seeds)}
            for place, size in enumerate(sizes)
        }
        target = {seed: 0.3 + 0.2 * 1.7 + noise[-1, seed] for seed in range(seeds)}
        ends = data_needed_interval(curve, target)
        assert ends is not None
        first, last = ends
        above = first.bound == "at most" or first.size <= 10**1.7 * 1.01
        covered += above and (last.bound == "more than" or last.size * 1.01 >= 10**1.7)
    assert 0.93 <= covered / trials <= 0.98
