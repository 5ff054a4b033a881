from __future__ import annotations

import pytest

from replora.evaluation import wilson_interval


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
