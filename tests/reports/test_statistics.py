"""Statistics on cases calculated by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import permutation_test

from replora.reports.statistics import (
    Comparison,
    DataNeeded,
    compare_paired,
    data_needed,
    data_needed_interval,
    error_over_divisions,
    half_widths,
    mean_over_divisions,
    mean_over_seeds,
    proportion_error,
)


def test_t_interval_of_five_seeds():
    """Mean 3, s = sqrt(2.5), t(4; 0.975) = 2.776445: 3 ± 2.776445 * sqrt(2.5 / 5)."""
    mean = mean_over_seeds([1, 2, 3, 4, 5])
    half = 2.7764451 * math.sqrt(0.5)
    assert (mean.value, mean.count) == (3, 5)
    assert mean.deviation == pytest.approx(math.sqrt(2.5))
    assert mean.low == pytest.approx(3 - half)
    assert mean.high == pytest.approx(3 + half)


def test_two_seeds_make_a_wide_interval():
    """t(1; 0.975) = 12.7062: 1 ± 12.7062 * sqrt(2) / sqrt(2)."""
    assert mean_over_seeds([0, 2]).high == pytest.approx(1 + 12.7062047)


def test_one_seed_has_no_interval():
    mean = mean_over_seeds([0.5])
    assert (mean.value, mean.low, mean.high, mean.deviation) == (0.5, None, None, None)


def test_a_mean_of_nothing():
    with pytest.raises(ValueError, match="at least one value"):
        mean_over_seeds([])


def test_the_error_of_one_division_is_that_of_its_values():
    assert error_over_divisions([1, 2, 3, 4, 5], 5) == pytest.approx(math.sqrt(0.5))
    assert error_over_divisions([1, 2, 4], 5) == pytest.approx(math.sqrt((7 / 3) / 3))
    assert error_over_divisions([1], 5) is None
    assert mean_over_divisions([1, 2, 3, 4, 5], 5) == mean_over_seeds([1, 2, 3, 4, 5])


def test_the_error_of_two_divisions():
    """W = 2 / 2, B = 0.5, R = 2: 1 - 0.5 + 0.25. Equal divisions say nothing new: W. t(2; 0.975) = 4.30265."""
    assert error_over_divisions([0, 2, 1, 3], 2) == pytest.approx(math.sqrt(0.75))
    assert error_over_divisions([0, 2, 2, 0, 0, 2], 2) == pytest.approx(1)
    assert error_over_divisions([0, 2, 2], 2) == pytest.approx(1), "a second division that is incomplete"
    assert mean_over_divisions([0, 2, 1, 3], 2).high == pytest.approx(1.5 + 4.3026527 * math.sqrt(0.75))


@pytest.mark.parametrize("noise", [0.1, 1.0], ids=["examples vary", "fits vary as well"])
def test_the_error_of_repeated_cross_validation_is_that_of_other_examples(noise):
    """The mean over ten divisions of 50 examples, in 1,000 draws of these examples, against its estimated error.

    That of 50 independent measurements would be far too small.
    """
    rng = np.random.default_rng(0)
    means, errors, naive, contained = [], [], [], 0
    for _ in range(1_000):
        examples = rng.normal(size=50)
        divided = np.stack([examples[rng.permutation(50)] for _ in range(10)])
        values = (divided + noise * rng.normal(size=divided.shape)).reshape(50, 10).mean(axis=1)
        means.append(values.mean())
        errors.append(error_over_divisions(list(values), 5) ** 2)
        naive.append(values.var(ddof=1) / 50)
        interval = mean_over_divisions(list(values), 5)
        contained += interval.low < 0 < interval.high
    true = np.std(means)
    assert 0.9 * true < math.sqrt(np.mean(errors)) < 1.2 * true
    assert math.sqrt(np.mean(naive)) < 0.5 * true
    assert 900 < contained < 970


def test_counts_and_mean_of_pairs():
    found = compare_paired([[1.0], [3.0], [0.0], [-2.0]])
    assert found.difference == 0.5
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)


def test_sign_flips_of_three_equal_units():
    """Of the eight patterns of signs only +++ and --- have a mean of 1 or more: p = 2 / 8."""
    assert compare_paired([[1.0], [1.0], [1.0]]).p_value == 0.25


def test_sign_flips_of_unequal_units():
    """|±3 ± 1| / 2 >= 1 (the mean of 3 and -1) holds for all four patterns: p = 1; of 3 and 1 for two: p = 0.5."""
    assert compare_paired([[3.0], [-1.0]]).p_value == 1.0
    assert compare_paired([[3.0], [1.0]]).p_value == 0.5


def test_five_seeds_can_show_no_less_than_a_sixteenth():
    assert compare_paired([[1.0], [2.0], [3.0], [4.0], [5.0]]).p_value == 0.0625


@pytest.mark.parametrize(
    ("units", "least"), [(1, 1.0), (5, 0.0625), (13, 1 / 4096), (19, 2**-18), (20, 2**-19), (21, 1e-4), (57, 1e-4)]
)
def test_the_least_p_value(units, least):
    """Up to 20 units all patterns are tried, of which two have the largest sum; beyond 10,000 are sampled."""
    found = compare_paired([[1.0 + 0.01 * unit] for unit in range(units)])
    assert found.least == least
    assert found.least <= found.p_value <= 4 * found.least
    assert found.units == units


def test_many_units_are_flipped_at_random():
    """Thirty units of 1: among 10,000 random patterns only the one that was found reaches their sum."""
    assert compare_paired([[1.0]] * 30).p_value == 1e-4
    alternating = [[1.0], [-1.0]] * 15
    assert compare_paired(alternating).p_value == 1.0


def test_sign_flips_equal_those_of_scipy():
    means = np.random.default_rng(0).normal(0.3, 1, 9)
    expected = permutation_test((means,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert compare_paired([[mean] for mean in means]).p_value == pytest.approx(expected)


def test_the_interval_of_pairs_is_students_t():
    """Differences 1 to 5: mean 3, s = sqrt(2.5), t(4; 0.975) = 2.776445, as for means."""
    found = compare_paired([[1.0], [2.0], [3.0], [4.0], [5.0]])
    assert found.high == pytest.approx(3 + 2.7764451 * math.sqrt(0.5))
    assert found.low == pytest.approx(3 - 2.7764451 * math.sqrt(0.5))
    assert found.sign == 1
    assert compare_paired([[0.0], [1.0]]).low == pytest.approx(0.5 - 12.7062047 / 2)


def test_equal_differences_have_no_width():
    found = compare_paired([[0.25]] * 4)
    assert found == Comparison(0.25, 0.25, 0.25, 0.125, 0.125, 4, 4, 0, 0)


def test_five_pairs_may_be_significant_though_the_sign_flip_test_cannot_say_so():
    """The interval decides: it excludes 0, and p is as small as it can be."""
    found = compare_paired([[0.010], [0.012], [0.011], [0.013], [0.009]])
    assert (found.sign, found.p_value, found.least) == (1, 0.0625, 0.0625)
    assert compare_paired([[0.03], [-0.01], [0.01], [0.02], [-0.02]]).sign == 0


def test_the_total_interval_adds_the_choice_of_test_examples():
    """Half of the t interval 1, standard error 1.5: sqrt(1 + (1.96 * 1.5) ** 2) = 3.1054."""
    assert half_widths(2.0, 4.0, 1.5) == pytest.approx((1.0, 1.959964 * 1.5, 3.10537), rel=1e-5)
    assert proportion_error(0.88, 797) == pytest.approx(0.01151, abs=1e-5)
    found = compare_paired([[1.0], [3.0]], sampling_error=1.0)
    assert found.total == pytest.approx((2 - math.hypot(12.7062, 1.96), 2 + math.hypot(12.7062, 1.96)), rel=1e-5)
    assert compare_paired([[1.0], [3.0]]).total is None


def test_a_unit_counts_once_however_many_pairs_it_has():
    """Means of the units 1 and 4: 2.5, although the mean of the four pairs is 1.75."""
    found = compare_paired([[1.0, 0.0, 2.0], [4.0]])
    assert found.difference == 2.5
    assert (found.wins, found.ties, found.losses) == (3, 1, 0)


def test_one_unit_has_no_interval():
    found = compare_paired([[1.0, 2.0]])
    assert (found.low, found.high, found.p_value) == (None, None, 1.0)


@pytest.mark.parametrize("units", [[], [[]], [[1.0], []]])
def test_nothing_to_compare(units):
    with pytest.raises(ValueError, match="at least one unit"):
        compare_paired(units)


CURVE = {10: 0.4, 100: 0.6, 1000: 0.7}


@pytest.mark.parametrize(
    ("accuracy", "needed"),
    [
        (0.5, DataNeeded(math.sqrt(1000), "")),  # half the way from 10 to 100 on the logarithmic axis
        (0.6, DataNeeded(100, "")),
        (0.65, DataNeeded(math.sqrt(100_000), "")),
        (0.7, DataNeeded(1000, "")),
        (0.4, DataNeeded(10, "at most")),
        (0.2, DataNeeded(10, "at most")),
        (0.71, DataNeeded(1000, "more than")),
    ],
)
def test_data_needed(accuracy, needed):
    found = data_needed(CURVE, accuracy)
    assert found.size == pytest.approx(needed.size)
    assert found.bound == needed.bound


def test_the_first_size_that_reaches_it_counts():
    """A curve that falls again: 0.5 is reached half the way from 1 to 4, although 16 is below it."""
    assert data_needed({1: 0.4, 4: 0.6, 16: 0.45, 64: 0.9}, 0.5).size == pytest.approx(2)


def test_a_curve_needs_sizes():
    for curve in ({}, {0: 0.5}):
        with pytest.raises(ValueError, match="at least one size, and sizes above 0"):
            data_needed(curve, 0.5)


def test_the_interval_of_the_data_needed():
    """Differences at x = log10(size) between 1 and 2 are 0.2 (x - 1) - 0.1 ± 0.01: t(1) * 0.01 = 0.127, so x is in
    1.5 ± 0.635, beyond 1 and 2; with ± 0.001 in 1.5 ± 0.0635."""
    curve = {10: {0: 0.4, 1: 0.4}, 100: {0: 0.6, 1: 0.6}}
    assert data_needed_interval(curve, {0: 0.49, 1: 0.51}) == (DataNeeded(10, "at most"), DataNeeded(100, "more than"))
    ends = data_needed_interval(curve, {0: 0.499, 1: 0.501})
    assert ends
    assert [math.log10(end.size) for end in ends] == pytest.approx([1.5 - 0.0635, 1.5 + 0.0635], abs=2e-3)
    assert [end.bound for end in ends] == ["", ""]
    same = data_needed_interval(curve, {0: 0.5, 1: 0.5})
    assert same == (DataNeeded(pytest.approx(10**1.5), ""),) * 2
    assert data_needed_interval(curve, {0: 0.3, 1: 0.3}) == (DataNeeded(10, "at most"),) * 2
    assert data_needed_interval(curve, {0: 0.7, 1: 0.7}) == (DataNeeded(100, "more than"),) * 2


@pytest.mark.parametrize("target", [{0: 0.5}, {0: 0.5, 1: 0.5, 2: 0.5}])
def test_no_interval_of_the_data_needed_where_a_seed_is_missing(target):
    assert data_needed_interval({10: {0: 0.4, 1: 0.4}}, target) is None
