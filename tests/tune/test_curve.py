"""The curve through noisy means chooses better rates than the best mean, the configured rate or one standard error."""

from __future__ import annotations

import numpy as np
import pytest

from replora.tune.curve import smoothed

OCTAVES = np.arange(-2.0, 3.0)


def lost(curves: np.ndarray, error: float, rng: np.random.Generator) -> dict[str, float]:
    """Rule -> accuracy lost against each curve's best rate, on average.

    Args:
        curves: (n, 5) true accuracies.
        error: Standard deviation of the noise of each mean.
        rng: Random numbers.
    """
    means = curves + rng.normal(0.0, error, curves.shape)
    close = means >= means.max(axis=1, keepdims=True) - error * np.sqrt(2)
    rules = {
        "curve": np.array([np.argmax(smoothed(OCTAVES.tolist(), one.tolist(), [error] * 5)) for one in means]),
        "best mean": means.argmax(axis=1),
        "configured": np.full(len(means), 2),
        "one standard error": np.where(close, np.abs(OCTAVES), np.inf).argmin(axis=1),
    }
    at = np.arange(len(curves))
    return {name: float((curves.max(axis=1) - curves[at, chosen]).mean()) for name, chosen in rules.items()}


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("curvature", [0.003, 0.007, 0.02])
@pytest.mark.parametrize("error", [0.015, 0.025, 0.04])
def test_it_loses_least_on_simulated_tasks(offset: float, curvature: float, error: float) -> None:
    """Tasks whose best rate is on average the configured one, or twice that; also with curves that are not expected."""
    rng = np.random.default_rng(0)
    best = rng.normal(offset, 1.0, (3_000, 1))
    found = lost(0.7 - curvature * (OCTAVES - best) ** 2, error, rng)
    assert found["curve"] < min(found["best mean"], found["one standard error"])
    assert found["curve"] < found["configured"] + 0.0005, "which is best where nothing can be seen"


def test_rates_that_fail_do_not_bend_the_curve() -> None:
    """Beyond the best rate, training fails: 30 points are lost. So rates are in results/transfer_low_data."""
    rng = np.random.default_rng(0)
    best = rng.normal(0.0, 1.0, (3_000, 1))
    curves = np.where(best + 0.8 < OCTAVES, 0.4, 0.7 - 0.005 * (OCTAVES - best) ** 2)
    few, many = lost(curves, 0.025, rng), lost(curves, 0.007, rng)
    assert few["curve"] < min(few["best mean"], few["configured"])
    assert many["curve"] <= min(many.values()) + 0.001


def test_a_configured_rate_that_does_not_suit_the_data_gives_way() -> None:
    """One fold of 34 photos (docs/own_photos.md): accuracy rises with the rate, far beyond what sweeps have shown."""
    curve = smoothed(OCTAVES.tolist(), [0.353, 0.324, 0.441, 0.50, 0.618], [0.059] * 5)
    assert int(np.argmax(curve)) == 4
    assert curve[4] - curve[0] > 0.05
    rng = np.random.default_rng(0)
    best = rng.normal(3.0, 1.0, (3_000, 1))  # eight times the configured rate
    found = lost(0.7 - 0.02 * (OCTAVES - best) ** 2, 0.059, rng)
    assert found["curve"] < min(found["best mean"], found["configured"], found["one standard error"]) / 2


def test_the_best_mean_wins_without_noise() -> None:
    means = [0.70, 0.71, 0.70, 0.72, 0.30]
    assert smoothed(OCTAVES.tolist(), means, [0.0] * 5)[:4] == pytest.approx(means[:4], abs=0.002)
    assert int(np.argmax(smoothed(OCTAVES.tolist(), means, [1e-4] * 5))) == 3


def test_with_noise_alone_the_configured_rate_wins() -> None:
    curve = smoothed(OCTAVES.tolist(), [0.66, 0.65, 0.64, 0.65, 0.67], [0.2] * 5)
    assert int(np.argmax(curve)) == 2
    assert smoothed([1.0], [0.8], [0.05]) == pytest.approx([0.8])
