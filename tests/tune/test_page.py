"""The figures of docs/tune.md are those of results/tune/digits.json."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

from replora.config_files import read_config

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "tune.md").read_text(encoding="utf-8").split())
FOUND = json.loads((ROOT / "results" / "tune" / "digits.json").read_text(encoding="utf-8"))


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
    one_division = json.loads((ROOT / "results" / "tune" / "digits_one_division.json").read_text(encoding="utf-8"))
    for found in [results[name] for results in (FOUND, one_division) for name in ("difference", "difference_to_it")]:
        mean, low, high = (f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high"))
        assert f"{mean} points, 95 % interval {low} to {high}" in PAGE
        assert found["low"] < 0 < found["high"], "the page says that there is no significant difference"
    former = json.loads((ROOT / "results" / "tune" / "digits_best_mean.json").read_text(encoding="utf-8"))
    assert f"`tune` was {-100 * former['difference']['difference']:.1f} points behind" in PAGE


def test_the_factors_are_the_best_of_the_measured_rates() -> None:
    """Relative to LoRA's 0.01 on digits, by the mean over both sizes and seeds."""
    text = (ROOT / "results" / "tune" / "method_rates" / "runs.jsonl").read_text(encoding="utf-8")
    values: dict[str, dict[float, dict[str, list[float]]]] = {}
    for run in map(json.loads, text.splitlines()):
        sweep = run["sweep"]
        of_rate = values.setdefault(sweep["method"], {}).setdefault(sweep["grid"]["model.optimizer.lr"], {})
        of_rate.setdefault(json.dumps(sweep["size"]), []).append(run["fit"]["metrics"]["val/accuracy"])
    for method, config in (("BitFit", "bitfit"), ("full", "full")):
        means = {rate: fmean(map(fmean, sizes.values())) for rate, sizes in values[method].items()}
        best = max(means, key=lambda rate: means[rate])
        factor = read_config(ROOT / "configs" / "adapter" / f"{config}.yaml")["model"]["init_args"]["optimizer"]
        assert factor["init_args"]["lr"] == f"{best / 0.01:g}x"
        assert f"(`{best / 0.01:g}x`)" in PAGE
