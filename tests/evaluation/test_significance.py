from __future__ import annotations

from math import comb

import pytest

from replora.evaluation.significance import sign_test, wilson_interval


def test_the_bounds_solve_wilsons_equation():
    """Each bound p is where the observed share lies 1.96 standard errors of p away."""
    for right, items in [(1, 10), (250, 500), (499, 500)]:
        for bound in wilson_interval(right, items):
            assert abs(right / items - bound) == pytest.approx(
                1.959964 * (bound * (1 - bound) / items) ** 0.5, rel=1e-5
            )


def test_it_stays_in_range_and_narrows_with_more_items():
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == pytest.approx(1)
    assert wilson_interval(0, 0) == (0, 1)
    narrow, wide = wilson_interval(300, 500), wilson_interval(30, 50)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (5, 5), (90, 80), (60, 20), (20, 60), (3_000, 2_800)])
def test_the_binomial_test_of_a_half(gained, lost):
    tail = sum(comb(gained + lost, wins) for wins in range(min(gained, lost) + 1))
    assert sign_test(gained, lost) == pytest.approx(min(1, 2 * tail / 2 ** (gained + lost)))


def test_equal_answers_say_nothing():
    assert sign_test(0, 0) == 1
