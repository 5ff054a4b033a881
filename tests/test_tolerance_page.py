"""The section of docs/tolerance.md on a language model agrees with the runs in results/tolerance/commonsense_rates."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

from replora.io import read_csv
from replora.reports.statistics import t_interval
from tests.published import ROOT, text_of

RESULTS = ROOT / "results" / "tolerance" / "commonsense_rates"
PAGE = text_of("docs/tolerance.md")
RATES = ("0.006", "0.012", "0.024", "0.048")
SEEDS = ("0", "1", "2")


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str, str], float]:
    """Method, rate, seed -> accuracy on validation questions in percent."""
    return {
        (run["method"], run["learning_rate"], run["seed"]): 100 * float(run["validation"])
        for run in read_csv(RESULTS / "runs.csv")
    }


def test_the_table_is_that_of_the_runs(scores) -> None:
    assert len(scores) == 48
    for method in dict.fromkeys(method for method, _, _ in scores):
        means = [f"{statistics.fmean(scores[method, rate, seed] for seed in SEEDS):.1f}" for rate in RATES]
        assert f"| {method} | {' | '.join(means)} |" in PAGE


def test_what_is_said_of_the_rates(scores) -> None:
    ahead = {
        (clipped, rate): [scores[f"RepLoRA{clipped}", rate, s] - scores[f"LoRA{clipped}", rate, s] for s in SEEDS]
        for clipped in ("", ", not clipped")
        for rate in RATES
    }
    near = [statistics.fmean(ahead[clipped, rate]) for clipped, rate in ahead if rate in RATES[:2]]
    assert all(-2.5 < difference < 0 for difference in near), "at the lower two rates it is behind"
    for rate in RATES[2:]:
        found = [difference for (_, of), values in ahead.items() if of == rate for difference in values]
        assert sum(difference > 0 for difference in found) == 5, rate
    intervals = {cell: t_interval(np.array(values)) for cell, values in ahead.items()}
    assert all(low < 0 < high for low, high in intervals.values())
    means = {cell: statistics.fmean(values) for cell, values in ahead.items()}
    clipped, free = (
        f"{means[kind, '0.024']:.1f}{{}} (-{-low:.1f} to +{high:.1f})"
        for kind in ("", ", not clipped")
        for low, high in [intervals[kind, "0.024"]]
    )
    said = f"by {clipped.format(' points')} and {free.format('')} at 0.024, and by {{:.1f}} and {{:.1f}} at 0.048"
    assert said.format(means["", "0.048"], means[", not clipped", "0.048"]) in PAGE
    widths = [(high - low) / 2 for (_, rate), (low, high) in intervals.items() if rate == "0.048"]
    assert {round(width) for width in widths} == {26}
    failed = {m: sum(scores[m, "0.048", s] < 30 for s in SEEDS) for m, _, _ in scores}
    assert failed == {"LoRA": 3, "LoRA, not clipped": 3, "RepLoRA": 2, "RepLoRA, not clipped": 1}
    for rate in RATES:
        clipped, free = (statistics.fmean(scores[m, rate, s] for s in SEEDS) for m in ("LoRA", "LoRA, not clipped"))
        assert abs(clipped - free) < 2
    best = {
        row["learning rate"]
        for row in read_csv(ROOT / "results" / "commonsense_tasks" / "choices.csv")
        if (row["task"], row["size"], row["method"]) == ("ARC-Easy", "10 %", "LoRA")
    }
    assert best == {"0.003"}


def test_at_the_highest_rate_the_update_of_replora_is_the_larger() -> None:
    """What the page says in short of norms, which its table has for 0.05 alone."""
    rows = json.loads((RESULTS.parent / "tolerance.json").read_text("utf-8"))["rows"]
    ends = {(row["method"], row["rate"]): row["update_norm"][-1] for row in rows}
    assert 4 < ends["RepLoRA", 0.1] / ends["LoRA", 0.1] < 5
    small = [ends[method, 0.05] for method in ("RepLoRA", "LoRA, weight normalization")]
    assert all(norm < ends["LoRA", 0.05] / 2 for norm in small)
