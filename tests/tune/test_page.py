"""The figures of docs/tune.md are those of results/tune/digits.json."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "tune.md").read_text(encoding="utf-8").split())
FOUND = json.loads((ROOT / "results" / "tune" / "digits.json").read_text(encoding="utf-8"))


def test_the_table_of_the_draws() -> None:
    rates = list(FOUND["fixed"])
    assert len(FOUND["draws"]) == 5
    for draw in FOUND["draws"]:
        tuned = draw["tuned"]
        cells = [str(draw["seed"]), tuned["chosen"].split()[-1], f"{100 * tuned['accuracy']:.1f}"]
        cells += [f"{100 * draw['fixed'][rate]:.1f}" for rate in rates]
        assert f"| {' | '.join(cells)} |" in PAGE
        assert tuned["within_budget"]
    means = [f"{100 * value:.1f}" for value in (FOUND["tuned"], *FOUND["fixed"].values())]
    assert f"| mean | | {' | '.join(means)} |" in PAGE


def test_the_differences() -> None:
    for name in ("difference", "difference_to_it"):
        found = FOUND[name]
        mean, low, high = (f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high"))
        assert f"{mean} points, 95 % interval {low} to {high}" in PAGE
        assert found["low"] < 0 < found["high"], "the page says that there is no significant difference"
    former = json.loads((ROOT / "results" / "tune" / "digits_best_mean.json").read_text(encoding="utf-8"))
    assert f"`tune` was {-100 * former['difference']['difference']:.1f} points behind" in PAGE
