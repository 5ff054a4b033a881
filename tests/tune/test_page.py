"""The figures of docs/tune.md are those of results/tune/digits.json."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

import pytest

from replora.config_files import read_config
from replora.io import read_csv
from replora.tune import curve
from tests.published import ROOT, text_of
from tests.test_scripts import load

PAGE = text_of("docs/tune.md")


def read(name: str) -> Any:
    return json.loads((ROOT / "results" / "tune" / f"{name}.json").read_text(encoding="utf-8"))


FOUND = read("digits")


def test_the_table_of_the_draws() -> None:
    rates = list(FOUND["fixed"])
    assert len(FOUND["draws"]) == 5
    for draw in FOUND["draws"]:
        tuned = draw["tuned"]
        cells = [str(draw["seed"]), str(tuned["measurements"]), tuned["chosen"].split()[-1]]
        cells.append(f"{100 * tuned['accuracy']:.1f}")
        cells += [f"{100 * draw['fixed'][rate]:.1f}" for rate in rates]
        assert f"| {' | '.join(cells)} |" in PAGE
        assert tuned["within_budget"]
    means = [f"{100 * value:.1f}" for value in (FOUND["tuned"], *FOUND["fixed"].values())]
    assert f"| mean | | | {' | '.join(means)} |" in PAGE
    minutes = [draw["tuned"]["seconds"] / 60 for draw in FOUND["draws"]]
    assert f"after {min(minutes):.1f} to {max(minutes):.1f} minutes" in PAGE
    measured = [draw["tuned"]["measurements"] for draw in FOUND["draws"]]
    assert f"{min(measured)} to {max(measured)} measurements of the chosen rate" in PAGE


def test_the_differences() -> None:
    former = [read("digits_one_standard_error"), read("digits_one_division")]
    for found in [results[name] for results in (FOUND, *former) for name in ("difference", "difference_to_it")]:
        mean, low, high = (f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high"))
        assert f"{mean} points, 95 % interval {low} to {high}" in PAGE
        assert found["low"] < 0 < found["high"], "the page says that there is no significant difference"
    best_mean = read("digits_best_mean")
    assert f"`tune` was {-100 * best_mean['difference']['difference']:.1f} points behind" in PAGE
    ahead = 100 * (FOUND["tuned"] - FOUND["fixed"]["0.01"])
    assert f"The configured rate, 0.01, is {ahead:.1f} points behind `tune`" in PAGE


def test_the_prior_is_what_was_fitted() -> None:
    """Each number that is used lies at, or between, those of digits and of other tasks."""
    prior = read("prior")
    assert prior["used"] == {
        "slope": curve.SLOPE,
        "curvature": curve.CURVATURE,
        "curvature_spread": curve.CURVATURE_SPREAD,
        "deviation": curve.DEVIATION,
    }
    for name, used in prior["used"].items():
        ends = sorted(fitted[name] for fitted in prior["fitted"].values())
        assert ends[0] - 0.0005 <= used <= ends[1] + 0.0005
    now = [found["slope"] for found in prior["results_of_now"].values()]
    assert f"with the results of now the slopes are {now[0]:.3f} for other tasks and {now[1]:.3f} for digits" in PAGE
    counts = {name: fitted["curves"] for name, fitted in prior["fitted"].items()}
    assert f"{sum(counts.values())} curves of sweeps of this project, {counts['digits']} of them on digits" in PAGE


def test_the_prior_is_fitted_to_the_results() -> None:
    """To those that it was fitted to, and beside them to those of now."""
    script = load("tune_prior")
    for source, curves in (("fitted", script.curves_then()), ("results_of_now", script.curves_now())):
        for name, found in script.fitted(curves).items():
            assert found == pytest.approx(read("prior")[source][name], abs=0.001)


def means(sweep: str) -> dict[str, dict[float, dict[str, float]]]:
    """Method -> rate -> task -> mean validation accuracy over the sizes and seeds of the first stage."""
    found: dict[str, dict[float, dict[str, list[float]]]] = {}
    for run in read_csv(ROOT / "results" / sweep / "runs.csv"):
        if run["stage"] == "select":
            of_rate = found.setdefault(run["method"], {}).setdefault(float(run["learning_rate"]), {})
            of_rate.setdefault(run["task"], []).append(float(run["validation"]))
    return {
        method: {rate: {task: fmean(values) for task, values in tasks.items()} for rate, tasks in of_method.items()}
        for method, of_method in found.items()
    }


def over_tasks(of_method: dict[float, dict[str, float]]) -> dict[float, float]:
    return {rate: fmean(tasks.values()) for rate, tasks in of_method.items()}


def best_rate(values: dict[float, float]) -> float:
    return max(values, key=lambda rate: values[rate])


def factor(config: str) -> str:
    settings = read_config(ROOT / "configs" / "adapter" / f"{config}.yaml")["model"]["init_args"]["optimizer"]
    return str(settings["init_args"]["lr"])


def test_the_factors_of_lora_plus_and_dora() -> None:
    """By the mean over six tasks and all sizes, relative to LoRA's best."""
    found = means("other_tasks")
    best = {method: best_rate(over_tasks(of_method)) for method, of_method in found.items()}
    assert (best["LoRA"], best["LoRA+"], best["DoRA"]) == (0.01, 0.005, 0.02)
    assert (factor("lora_plus"), factor("dora")) == ("0.5x", "1x")
    by_task = [best_rate({rate: of[task] for rate, of in found["LoRA+"].items()}) for task in found["LoRA+"][0.005]]
    assert sorted(by_task) == [0.005] * 5 + [0.01]


def test_the_factor_of_the_linear_probe_and_what_lora_s_rate_suits() -> None:
    digits = {method: over_tasks(of_method) for method, of_method in means("digits_low_data").items()}
    others = over_tasks(means("transfer_low_data")["linear probe"])
    assert factor("linear_probe") == "10x"
    assert digits["linear probe"][0.1] == max(digits["linear probe"].values())
    assert others[0.1] > max(others.values()) - 0.005
    for method in ("LoRA", "RepLoRA", "linear, width 64", "DoRA"):
        values = digits[method]
        assert best_rate(values) in (0.005, 0.01, 0.02)
        assert values[0.01] > max(values.values()) - 0.02


def test_the_factors_are_the_best_of_the_measured_rates() -> None:
    """Relative to LoRA's 0.01 on digits, by the mean over both sizes and seeds."""
    found = means("tune/method_rates")
    for method, config in (("BitFit", "bitfit"), ("full", "full")):
        best = best_rate(over_tasks(found[method]))
        assert factor(config) == f"{best / 0.01:g}x"
        assert f"(`{best / 0.01:g}x`)" in PAGE
