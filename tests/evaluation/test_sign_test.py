from __future__ import annotations

import pytest
from scipy.stats import binomtest

from replora.evaluation.sign_test import sign_test


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (5, 5), (90, 80), (60, 20), (20, 60), (3_000, 2_800)])
def test_the_binomial_test_of_a_half(gained, lost):
    assert sign_test(gained, lost) == pytest.approx(binomtest(gained, gained + lost).pvalue)


def test_equal_answers_say_nothing():
    assert sign_test(0, 0) == 1
