"""What the pages on rates from other tasks say, held to the runs in results/."""

from __future__ import annotations

import operator
import statistics

import numpy as np
import pytest

from replora.reports.grouping import group_runs
from replora.reports.runs import read_runs
from replora.reports.sections.regret import Regrets
from replora.reports.statistics import t_interval
from replora.results import read_results
from tests.published import (
    ROOT,
    apart,
    excludes_0,
    final_scores,
    interval_of,
    lines_of,
    paired_differences,
    reservations,
    table,
    text_of,
)


def test_letters_alone_tolerate_a_higher_rate_with_the_pretrained_vit() -> None:
    """What docs/other_tasks_pretrained.md says below its tables, docs/claims.md and docs/tolerance.md after it."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for run in table("real_vit_tasks", "runs.csv"):
        if run["stage"] == "select":
            found.setdefault((run["method"], run["task"]), {})[run["learning_rate"]] = float(run["validation"])
    assert {row["learning rate"] for row in table("real_vit_tasks", "choices.csv")} == {"0.003"}
    best = {cell: {rate for rate in of if of[rate] == max(of.values())} for cell, of in found.items()}
    assert len(best) == 8
    assert best.pop(("RepLoRA", "letters")) == {"0.01"}
    assert best.pop(("RepLoRA", "sprites_location")) == {"0.001", "0.003"}
    assert all(rates == {"0.003"} for rates in best.values())
    ours, free = found.pop(("RepLoRA", "letters")), found.pop(("LoRA", "letters"))
    assert (ours["0.01"], ours["0.003"], free["0.01"]) == (0.52, 0.42, 0.04)
    for method, task in found:
        assert found[method, task]["0.01"] <= min(0.36, found["LoRA", task]["0.01"])
    clothes = [found[method, "fashion_mnist"]["0.01"] for method in ("RepLoRA", "LoRA")]
    words = "falls to chance ({:.0f} %), where LoRA keeps {:.0f} %".format(*(100 * share for share in clothes))
    assert words in text_of("docs/other_tasks_pretrained.md")
    assert "significantly" not in reservations("real_vit_tasks", "RepLoRA and LoRA: no significant difference")
    assert "There 0.01 is ten points better (52 to 42 %)" in text_of("docs/other_tasks_pretrained.md")
    for name in ("claims", "tolerance"):
        words = text_of(f"docs/{name}.md")
        assert "showed it on one task of five: at three times LoRA's best rate, letters trained with RepLoRA" in words


def test_between_the_sizes_of_language_tasks_the_sign_changes_at_rates_of_other_tasks() -> None:
    """What docs/other_tasks_pretrained.md says below the tables of the language model."""
    page = text_of("docs/other_tasks_pretrained.md")
    known = reservations("commonsense_other_tasks", "RepLoRA and LoRA: no significant difference")
    assert "On these tasks alone: no significant difference, -0.2" in known
    paired = {(row["size"], row["units"]): row for row in table("commonsense_other_tasks", "size_paired.csv")}
    alone = [paired[size, "5 seeds, these tasks"] for size in ("2 %", "10 %")]
    assert [row["95 % interval"] for row in alone] == ["+0.3 to +0.9", "-1.7 to -0.4"]
    assert not any(excludes_0(row["with test examples"]) for row in alone)
    assert not any(excludes_0(row["95 % interval"]) for cell, row in paired.items() if cell[1] == "3 tasks")
    choices = table("commonsense_other_tasks", "choices.csv")
    assert sum("noise" in row["remark"] for row in choices) == 10
    amounts = {"2 %": "0.02", "10 %": "0.1"}
    rates = {(row["task"], amounts[row["size"]], row["method"]): float(row["learning rate"]) for row in choices}
    scores, of_own = final_scores("commonsense_other_tasks"), final_scores("commonsense_tasks")
    differences = paired_differences(scores)
    apart = {
        ("openbookqa", "0.02"): (0.006, 0.003),
        ("openbookqa", "0.1"): (0.0015, 0.003),
        ("boolq", "0.1"): (0.0015, 0.006),
    }
    for cell, (ours, free) in apart.items():
        assert [rates[*cell, method] for method in ("RepLoRA", "LoRA")] == [ours, free]
        assert (differences[cell].mean() > 0) == (ours > free)
    equal = {cell for cell in differences if rates[*cell, "RepLoRA"] == rates[*cell, "LoRA"]}
    assert equal == {("ARC-Easy", "0.02"), ("ARC-Easy", "0.1"), ("boolq", "0.02")}
    behind = {cell for cell in equal if t_interval(differences[cell])[1] < 0}
    assert behind == {("ARC-Easy", "0.1")}
    assert differences["ARC-Easy", "0.1"].mean() == pytest.approx(-1.2)
    assert not any(t_interval(differences[cell])[0] > 0 for cell in equal)

    def mean(found: dict[tuple[str, str, str], list[float]], method: str) -> str:
        return f"{statistics.fmean(value for cell in found if cell[2] == method for value in found[cell]):.1f}"

    assert f"LoRA has {mean(scores, 'LoRA')} % instead of {mean(of_own, 'LoRA')} at rates" in page
    assert f"RepLoRA {mean(scores, 'RepLoRA')} instead of {mean(of_own, 'RepLoRA')}." in page
    few = [
        f"{statistics.fmean(found['ARC-Easy', '0.02', method]):.1f}"
        for method in ("LoRA", "RepLoRA")
        for found in (scores, of_own)
    ]
    assert "LoRA has {} % instead of {} and RepLoRA {} instead of {}.".format(*few) in page
    assert rates["ARC-Easy", "0.02", "LoRA"] == rates["ARC-Easy", "0.02", "RepLoRA"] == 0.012


def test_piqa_is_tested_at_the_rate_of_three_tasks_without_a_label_of_its_own() -> None:
    """What docs/other_tasks_pretrained.md says around the tables of PIQA."""
    page, name = text_of("docs/other_tasks_pretrained.md"), "commonsense_piqa"
    runs = table(name, "runs.csv")
    selecting = [run for run in runs if run["stage"] == "select"]
    assert {run["task"] for run in selecting} == {"ARC-Easy", "openbookqa", "boolq"}
    assert {run["task"] for run in runs if run["stage"] == "final"} == {"piqa"}
    assert f"{len(selecting)} runs that select, which are those above, and {len(runs) - len(selecting)} that" in page
    above = [
        run
        for run in table("commonsense_other_tasks", "runs.csv")
        if run["stage"] == "select" and run["amount"] == "0.02"
    ]
    what = operator.itemgetter("method", "task", "learning_rate", "seed", "validation")
    assert set(map(what, selecting)) == set(map(what, above))
    chosen = {row["learning rate"] for row in table(name, "choices.csv") if row["task"] == "piqa"}
    assert chosen == {"0.006"}
    scores = {method: np.array(values) for (_, _, method), values in final_scores(name).items()}
    amounts = [run["examples"] for run in runs if run["task"] == "piqa" and run["method"] == "LoRA"]
    assert sorted(amounts) == ["321", "321", "322", "322", "322"], "one is too long in two draws"
    untuned = read_results(ROOT / "results" / "commonsense_untuned" / "piqa.json")["test"]
    assert (untuned["weights"]["source"], untuned["tasks"]["piqa"]["items"]) == ("untrained", 500)
    before = 100 * untuned["metrics"]["test/acc_norm"]
    assert f"the untuned model, which has {before:.1f} % (" in page
    assert all(2 < values.mean() - before < 3 for values in scores.values())
    (row,) = table(name, "size_paired.csv")
    assert (row["wins / ties / losses"], excludes_0(row["95 % interval"])) == ("0 / 3 / 2", False)


def test_rates_from_other_tasks_do_not_tell_the_methods_apart() -> None:
    """The sentences below the tables of docs/other_tasks.md."""
    known = reservations("other_tasks", "RepLoRA and LoRA: no significant difference")
    assert "Of 6 single sizes significantly better at 1, worse at 0." in known
    paired = [row for row in table("other_tasks", "size_regret_paired.csv") if row["difference"] == "RepLoRA - LoRA"]
    assert len(paired) == 21
    (ahead,) = (row for row in paired if float(row["p"]) < 0.05)
    assert (ahead["size"], ahead["score"]) == ("10 %", "at the selected rate")
    assert float(ahead["mean"]) > 0
    assert not any(excludes_0(row["95 % interval"]) for row in paired if row is not ahead)
    for row in table("other_tasks", "size_regret.csv"):
        lost = {name: float(value.split()[0]) for name, value in row.items() if name.startswith("lost")}
        if row["size"] == "all sizes":
            assert lost["lost, at the selected rate"] <= (1.5 if row["method"] == "linear" else 1)
        if row["size"] in ("30 %", "100 %") and row["method"] in ("LoRA", "RepLoRA"):
            assert 2.5 < lost["lost, mean over the window"] <= 3.5
            assert 7.5 < lost["lost, worst of the window"] <= 8.5


def test_tied_factors_are_behind_at_rates_of_other_tasks() -> None:
    known = reservations("other_tasks", "RepLoRA, tied and LoRA: no significant difference")
    assert "On these tasks alone: significantly worse" in known
    selected = [row for row in table("other_tasks", "size_regret_paired.csv") if row["score"] == "at the selected rate"]
    tied = [row for row in selected if row["difference"] == "RepLoRA, tied - LoRA"]
    assert {row["size"] for row in tied if excludes_0(row["95 % interval"])} == {"30 %"}


def test_dora_forgives_and_linear_does_not_at_rates_around_those_of_other_tasks() -> None:
    """Significantly for tasks like these, over all sizes, in these of the three ways to take a rate."""
    rows = [row for row in table("other_tasks", "size_regret_paired.csv") if row["size"] == "all sizes"]
    signs = {
        (row["difference"].removesuffix(" - LoRA"), row["score"]): float(row["mean"]) > 0
        for row in rows
        if excludes_0(row["95 % interval"])
    }
    around = ("mean over the window", "worst of the window")
    linear = next(row for row in rows if (row["difference"], row["score"]) == ("linear - LoRA", "at the selected rate"))
    assert linear["95 % interval"].endswith("to -0.0"), "rounded: the answer above calls it significant"
    assert any(line.startswith("> linear against LoRA: significantly worse") for line in lines_of("other_tasks"))
    behind = {("linear", score): False for score in around} | {("LoRA, whole qkv", "worst of the window"): False}
    assert signs == {("DoRA", score): True for score in around} | behind
    dora = [row for row in rows if row["difference"] == "DoRA - LoRA" and row["score"] in around]
    assert [row["wins / ties / losses"] for row in dora] == ["6 / 0 / 0"] * 2


def test_the_rates_of_other_tasks_are_not_those_at_which_lora_fails() -> None:
    chosen: dict[str, list[float]] = {}
    for row in table("other_tasks", "choices.csv"):
        chosen.setdefault(row["method"], []).append(float(row["learning rate"]))
    ended = [4 * rate >= (0.01 if method == "LoRA+" else 0.04) for method, rates in chosen.items() for rate in rates]
    assert sum(ended) / len(ended) > 0.9
    assert statistics.fmean(chosen["DoRA"]) > statistics.fmean(chosen["LoRA"])
    highest: dict[str, list[float]] = {}
    for run in table("other_tasks", "runs.csv"):
        if run["stage"] != "select" and run["learning_rate"] == "0.04":
            highest.setdefault(run["method"], []).append(100 * float(run["test"]))
    means = {method: statistics.fmean(scores) for method, scores in highest.items()}
    assert abs(means["LoRA"] - means["RepLoRA"]) < 1
    assert means["DoRA"] > means["LoRA"] + 2
    assert min(means, key=means.__getitem__) == "linear"


def test_what_single_rates_show_on_six_tasks() -> None:
    """What docs/other_tasks.md says of rates that its tables do not have one by one."""
    page = text_of("docs/other_tasks.md")
    scores: dict[tuple[str, str, str], list[float]] = {}  # rate, task, method
    letters: dict[str, list[float]] = {}  # of all images at the highest rate
    for run in table("other_tasks", "runs.csv"):
        if run["stage"] != "select":
            test = 100 * float(run["test"])
            scores.setdefault((run["learning_rate"], run["task"], run["method"]), []).append(test)
            if (run["learning_rate"], run["task"], run["amount"]) == ("0.04", "letters", "1.0"):
                letters.setdefault(run["method"], []).append(test)

    def ahead(method: str, rate: str) -> dict[str, float]:
        """Task -> points ahead of LoRA, on average over sizes and draws."""
        of_rate = {(task, name): statistics.fmean(found) for (of, task, name), found in scores.items() if of == rate}
        return {task: of_rate[task, method] - of_rate[task, "LoRA"] for task, name in of_rate if name == method}

    ours = ahead("RepLoRA", "0.04")
    digits, location = ours.pop("digits"), ours.pop("sprites_location")
    assert f"where RepLoRA is {digits:.1f} points ahead over all sizes" in page
    assert f"ahead by at most {max(ours.values()):.1f} points, and behind by {-location:.1f} on the location" in page
    ends = [statistics.fmean(letters[method]) for method in ("RepLoRA", "LoRA")]
    assert "RepLoRA ({:.1f} %) no less than LoRA ({:.1f} %)".format(*ends) in page
    intervals = {}
    for rate in ("0.0025", "0.005", "0.01", "0.02", "0.04"):
        lead = np.array(list(ahead("DoRA", rate).values()))
        assert len(lead) == 6
        intervals[rate] = t_interval(lead)
    low, high = intervals.pop("0.04")
    assert f"where it is ahead by {lead.mean():.1f} points, {low:+.1f} to {high:+.1f}" in page
    assert all(low < 0 for low, _ in intervals.values())


def test_what_two_methods_differ_by_around_rates_of_other_tasks() -> None:
    """Pairs that docs/other_tasks.md tells apart and the report does not: it compares with LoRA alone."""
    (group,) = group_runs(read_runs([ROOT / "results" / "other_tasks"]))
    regrets = Regrets(group, shots=False)

    def ahead(method: str, other: str, measure: str) -> np.ndarray:
        ours, theirs = (regrets.by_task(name, regrets.sizes["all sizes"], measure) for name in (method, other))
        assert len(ours) == 6
        return np.array([100 * (ours[task] - theirs[task]) for task in ours])

    page = text_of("docs/other_tasks.md")
    average, worst = (ahead("DoRA", "LoRA, whole qkv", measure) for measure in ("average", "worst"))
    assert f"by {average.mean():.1f} points on average within the window, {interval_of(average)}" in page
    assert f"and by {worst.mean():.1f} at worst, {interval_of(worst)}" in page
    selected, average = (ahead("RepLoRA", "linear", measure) for measure in ("selected", "average"))
    assert f"RepLoRA is {apart(selected, 'ahead of `linear`')}, at the selected rate" in page
    assert f"and {apart(average, 'ahead')}, on average within the window" in page
    whole = [row for row in table("other_tasks", "size_regret_paired.csv") if "whole qkv" in row["difference"]]
    signs = {row["score"]: row["95 % interval"] for row in whole if row["size"] == "all sizes"}
    assert {score for score, interval in signs.items() if excludes_0(interval)} == {"worst of the window"}
    assert all(row["mean"].startswith("-") for row in whole if row["size"] == "all sizes")
