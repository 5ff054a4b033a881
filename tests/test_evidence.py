"""The pages of evidence agree with the reports in results/, and `replora-cli report` reproduces these from the runs."""

from __future__ import annotations

import gzip
import json
import re
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from replora.io import read_csv
from replora.reports.grouping import group_runs
from replora.reports.report import write_report
from replora.reports.runs import read_runs
from replora.reports.sections.regret import Regrets
from replora.reports.statistics import t_interval
from replora.results import parse_results

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("evidence", "other_tasks", "other_tasks_pretrained")
}
CLAIMS = " ".join((ROOT / "docs" / "claims.md").read_text(encoding="utf-8").split())
REPORTS = sorted((ROOT / "results").glob("*/report.md"))
NAMES = [report.parent.name for report in REPORTS]


def lines_of(name: str) -> list[str]:
    return (ROOT / "results" / name / "report.md").read_text(encoding="utf-8").splitlines()


def table(name: str, file: str) -> list[dict[str, str]]:
    return read_csv(ROOT / "results" / name / file)


def runs_of(name: str) -> str:
    folder = ROOT / "results" / name
    compressed = folder / "runs.jsonl.gz"
    content = gzip.decompress(compressed.read_bytes()) if compressed.exists() else (folder / "runs.jsonl").read_bytes()
    return content.decode("utf-8")


def reservations(name: str, answer: str) -> str:
    """The line below an answer of a report: what else is to be known of it."""
    lines = lines_of(name)
    return lines[next(place for place, line in enumerate(lines) if line.startswith(f"> {answer}")) + 2]


def linked(page: str) -> list[str]:
    """The folders of results whose reports a text links."""
    return re.findall(r"\]\(\.\./results/(\w+)/report\.md\)", page)


def final_scores(name: str) -> dict[tuple[str, str, str], list[float]]:
    """(task, amount, method) -> test accuracies in percent, in the order of the seeds."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for run in sorted(table(name, "runs.csv"), key=lambda run: int(run["seed"])):
        if run["stage"] == "final":
            found.setdefault((run["task"], run["amount"], run["method"]), []).append(100 * float(run["test"]))
    return found


def paired_differences(scores: dict[tuple[str, str, str], list[float]]) -> dict[tuple[str, str], np.ndarray]:
    """(task, amount) -> RepLoRA minus LoRA of each seed, in percentage points."""
    cells = dict.fromkeys((task, amount) for task, amount, _ in scores)
    return {cell: np.subtract(scores[*cell, "RepLoRA"], scores[*cell, "LoRA"]) for cell in cells}


def over_seeds(name: str, method: str, other: str, amount: str | None = None) -> np.ndarray:
    """`method` minus `other` of each seed in percentage points, averaged over tasks and sizes."""
    scores = final_scores(name)
    cells = [cell for cell in dict.fromkeys(key[:2] for key in scores) if amount in (None, cell[1])]
    return np.mean([np.subtract(scores[*cell, method], scores[*cell, other]) for cell in cells], axis=0)


def apart(differences: np.ndarray, words: str) -> str:
    """A mean difference and its interval, as pages say it of two methods that reports do not compare."""
    low, high = t_interval(differences)
    return f"{differences.mean():.1f} points {words}, {low:+.1f} to {high:+.1f}"


def excludes_0(interval: str) -> bool:
    low, high = map(float, interval.split(" to "))
    return low > 0 or high < 0


def test_every_experiment_is_on_one_page_and_every_section_has_one() -> None:
    assert sorted(name for page in PAGES.values() for name in set(linked(page))) == NAMES


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_in_a_table_stands_in_the_report_that_the_section_links(page: str) -> None:
    allowed: set[str] = set()
    rows = quotes = 0
    for line in PAGES[page].splitlines():
        for name in linked(line):
            allowed = set(lines_of(name))
        if line.startswith("| ") and any(character.isdigit() for character in line):
            assert line in allowed, line
            rows += 1
        if line.startswith("> "):
            assert line in allowed, line
            quotes += 1
    assert rows > (30 if page == "evidence" else 10)
    assert quotes >= (4 if page == "evidence" else 1)


def test_what_the_page_calls_significant_is_so_in_the_ablation() -> None:
    """The sentences below the table of the ablation name rows by whether their intervals exclude 0."""

    def excluding(column: str) -> set[str]:
        return {row["difference"].removesuffix(" - LoRA") for row in rows if excludes_0(row[column])}

    page = " ".join(PAGES["evidence"].split())
    rows = [row for row in table("ablation", "size_paired.csv") if row["size"].startswith("100 %")]
    (linear,) = (row["mean"] for row in rows if row["difference"] == "linear - LoRA")
    assert f"as far behind, by {linear.removeprefix('-')} points, with a wider interval" in page
    assert f"RepLoRA is {apart(over_seeds('ablation', 'RepLoRA', 'linear', '1.0'), 'ahead of it')}" in page
    with_width = over_seeds("digits_low_data", "RepLoRA", "linear, width 64")
    assert f"as well as RepLoRA, which is {apart(with_width, 'ahead')}" in page
    validated: dict[str, list[float]] = {}
    for run in table("ablation", "runs.csv"):
        if (run["stage"], run["amount"]) == ("final", "1.0"):
            validated.setdefault(run["method"], []).append(float(run["validation"]))
    assert max(validated, key=lambda method: statistics.fmean(validated[method])) == "scale exponent 1"
    (chosen,) = (
        row
        for row in table("ablation", "choices.csv")
        if row["method"] == "scale exponent 1" and row["size"].startswith("100 %")
    )
    assert "highest" in chosen["remark"]
    neither = {"RepLoRA", "linear", "not shared"}
    assert excluding("95 % interval") == {row["difference"].removesuffix(" - LoRA") for row in rows} - neither
    assert excluding("with test examples") == {"activation ReLU", "rank 2, width 4", "rank 32, width 64"}


def test_with_forty_images_alone_tied_factors_differ_from_lora() -> None:
    """As do the others; with the choice of the test examples nothing differs."""
    rows = table("tied_low_data", "size_paired.csv")
    differing = {(row["difference"], row["size"]) for row in rows if excludes_0(row["95 % interval"])}
    of_forty = {(f"{method} - LoRA", "5 % (40 + 200)") for method in ("RepLoRA", "LoRA, rank 4", "RepLoRA, tied")}
    assert differing == of_forty | {("LoRA, rank 4 - LoRA", "all sizes")}
    tied = apart(over_seeds("tied_low_data", "RepLoRA, tied", "LoRA, rank 4"), "ahead")
    few = apart(over_seeds("tied_low_data", "RepLoRA, tied", "LoRA, rank 4", "0.02"), "ahead")
    words = f"(the tied factors are {tied}), except with 16 images alone ({few})"
    assert words in " ".join(PAGES["evidence"].split())
    trained = {row["method"]: row["trained"] for row in table("tied_low_data", "methods.csv")}
    assert f"({trained['RepLoRA, tied']} and {trained['LoRA']})" in " ".join(PAGES["evidence"].split())
    assert not any(excludes_0(row["with test examples"]) for row in rows)


def test_no_rate_above_the_best_is_tolerated_by_the_pretrained_vit() -> None:
    runs = [
        run
        for run in table("real_vit_low_data", "runs.csv")
        if run["stage"] == "select" and run["method"] in ("LoRA", "RepLoRA")
    ]
    cells = {(run["method"], run["examples"]) for run in runs}
    assert len(cells) == 4
    for cell in cells:
        found = {
            run["learning_rate"]: float(run["validation"]) for run in runs if (run["method"], run["examples"]) == cell
        }
        assert max(found, key=lambda rate: found[rate]) == "0.003"
        assert found["0.01"] <= 0.18
    paired = {
        (row["difference"], row["size"]): row["95 % interval"] for row in table("real_vit_low_data", "size_paired.csv")
    }
    differing = {cell for cell, interval in paired.items() if excludes_0(interval)}
    assert differing == {("linear probe - LoRA", size) for size in ("100 % (800 + 200)", "all sizes")}


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
    assert words in " ".join(PAGES["other_tasks_pretrained"].split())
    assert "significantly" not in reservations("real_vit_tasks", "RepLoRA and LoRA: no significant difference")
    assert "There 0.01 is ten points better (52 to 42 %)" in " ".join(PAGES["other_tasks_pretrained"].split())
    for name in ("claims", "tolerance"):
        words = " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())
        assert "showed it on one task of five: at three times LoRA's best rate, letters trained with RepLoRA" in words


def test_between_the_sizes_of_language_tasks_the_sign_changes_at_rates_of_other_tasks() -> None:
    """What docs/other_tasks_pretrained.md says below the tables of the language model."""
    page = " ".join(PAGES["other_tasks_pretrained"].split())
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
    page = " ".join(PAGES["other_tasks"].split())
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

    def said(differences: np.ndarray) -> str:
        low, high = t_interval(differences)
        return f"{low:+.1f} to {high:+.1f}"

    page = " ".join(PAGES["other_tasks"].split())
    average, worst = (ahead("DoRA", "LoRA, whole qkv", measure) for measure in ("average", "worst"))
    assert f"by {average.mean():.1f} points on average within the window, {said(average)}" in page
    assert f"and by {worst.mean():.1f} at worst, {said(worst)}" in page
    selected, average = (ahead("RepLoRA", "linear", measure) for measure in ("selected", "average"))
    assert f"RepLoRA is {selected.mean():.1f} points ahead of `linear`, {said(selected)}, at the selected rate" in page
    assert f"and {average.mean():.1f} points ahead, {said(average)}, on average within the window" in page
    whole = [row for row in table("other_tasks", "size_regret_paired.csv") if "whole qkv" in row["difference"]]
    signs = {row["score"]: row["95 % interval"] for row in whole if row["size"] == "all sizes"}
    assert {score for score, interval in signs.items() if excludes_0(interval)} == {"worst of the window"}
    assert all(row["mean"].startswith("-") for row in whole if row["size"] == "all sizes")


def test_selections_on_digits_are_mostly_noise() -> None:
    """24 of 42 by the mean of three seeds, of which one is an exact tie; a tie is not called an edge."""
    remarks = [row["remark"] for row in table("digits_low_data", "choices.csv")]
    assert (sum(remark.startswith(("noise", "tie")) for remark in remarks), len(remarks)) == (24, 42)
    ties = [remark for remark in remarks if remark.startswith("tie")]
    assert len(ties) == 1
    assert not any("est" in remark for remark in ties), "neither lowest nor highest"


def test_one_seed_selects_otherwise_than_three() -> None:
    """The final draws are the same images; where the selected rate is the same, so is the mean accuracy."""
    rates, scores = [], []
    for name in ("digits_low_data", "digits_low_data_one_seed"):
        chosen = {(row["method"], row["size"]): row["learning rate"] for row in table(name, "choices.csv")}
        rates.append({cell: rate for cell, rate in chosen.items() if cell[0] in ("LoRA", "RepLoRA")})
        rows = [line.split(" | ") for line in lines_of(name) if re.match(r"\| (Rep)?LoRA \| digits \| .*±.*±", line)]
        means = [[float(cell.split(" ±")[0]) for cell in row[2:9]] for row in rows]
        scores.append({row[0].removeprefix("| "): mean for row, mean in zip(rows, means, strict=True)})
    three, one = scores
    sizes = list(dict.fromkeys(size for _, size in rates[0]))
    equal = [cell for cell, rate in rates[0].items() if rates[1][cell] == rate]
    assert all(three[method][sizes.index(size)] == one[method][sizes.index(size)] for method, size in equal)
    assert {("LoRA", "1 %"), ("RepLoRA", "5 %"), ("LoRA", "2 %"), ("RepLoRA", "2 %")}.isdisjoint(equal)
    pairs = zip(*([np.subtract(of["RepLoRA"], of["LoRA"]) for of in scores]), strict=True)
    moved = [abs(after - before) > 1 for before, after in pairs]
    assert [size for size, much in zip(sizes, moved, strict=True) if much] == ["1 %", "2 %", "5 %"]
    assert one["LoRA"][sizes.index("1 %")] > three["LoRA"][sizes.index("1 %")] + 2
    assert one["RepLoRA"][sizes.index("5 %")] < three["RepLoRA"][sizes.index("5 %")] - 2
    answer = "> RepLoRA against LoRA: significantly worse, -1.4 points"
    assert any(line.startswith(answer) for line in lines_of("digits_low_data_one_seed"))
    assert "Sign-flip test: p 0.125" in reservations("digits_low_data_one_seed", answer.removeprefix("> "))


def test_one_selection_makes_the_loss_on_a_language_task() -> None:
    """What docs/evidence.md says below their tables; another rate for RepLoRA with 99 questions, and it is gone."""
    page = " ".join(PAGES["evidence"].split())
    chosen = {(row["task"], row["size"], row["method"]): row for row in table("commonsense_tasks", "choices.csv")}
    few = {method: chosen["openbookqa", "2 %", method] for method in ("LoRA", "RepLoRA")}
    assert [row["remark"] for row in few.values()] == ["noise", "noise, lowest"]
    assert float(few["LoRA"]["learning rate"]) == 8 * float(few["RepLoRA"]["learning rate"])
    values: dict[tuple[str, str], list[float]] = {}
    for run in table("commonsense_tasks", "runs.csv"):
        if run["stage"] == "select" and (run["task"], run["amount"]) == ("openbookqa", "0.02"):
            values.setdefault((run["method"], run["learning_rate"]), []).append(100 * float(run["validation"]))
    scores = final_scores("commonsense_tasks")
    for method in few:
        means = [statistics.fmean(of_seeds) for (name, _), of_seeds in values.items() if name == method]
        assert len(means) == 5
        assert max(means) - min(means) < 1.1
    untuned = json.loads((ROOT / "results/commonsense_smollm2/cloze_openbookqa-untuned.json").read_text("utf-8"))
    without = 100 * untuned["test"]["metrics"]["test/acc_norm"]
    assert f"below the untuned model ({without:.1f} %," in page
    assert all(score < without for score in scores["openbookqa", "0.02", "RepLoRA"])
    assert sum(map(len, scores.values())) == 2 * 2 * 3 * 5
    intervals = {cell: t_interval(found) for cell, found in paired_differences(scores).items()}
    differing = {cell for cell, (low, high) in intervals.items() if low > 0 or high < 0}
    assert differing == {("openbookqa", "0.02")}
    again = {(row["task"], row["learning rate"]) for row in table("commonsense_tasks_one_rate", "choices.csv")}
    assert again == {("ARC-Easy", "0.003"), ("openbookqa", "0.006"), ("boolq", "0.0015")}
    for name, mean in {"commonsense_tasks": "-0.5", "commonsense_tasks_one_rate": "-0.1"}.items():
        known = reservations(name, "RepLoRA and LoRA")
        assert f"On these tasks alone: no significant difference, {mean}" in known


def test_no_run_on_boolq_is_better_than_one_answer_throughout() -> None:
    """With 2 % six of ten runs answer all questions alike, at the highest rate: they err on the same ones."""
    page = " ".join(PAGES["evidence"].split())
    assert 'no run in the table is above 64.4 %, which the answer "yes" throughout gives' in page
    assert "six of the ten runs there give no other answer" in page
    runs = [json.loads(line) for line in runs_of("commonsense_tasks").splitlines()]
    finals = [
        r["sweep"] | r["evaluations"][0]
        for r in runs
        if r["sweep"]["stage"] == "final" and r["data"]["task"] == "boolq"
    ]
    assert max(run["metrics"]["test/acc_norm"] for run in finals) == 0.644
    few = Counter(run["right"]["boolq"]["acc_norm"] for run in finals if run["size"]["data.train_fraction"] == 0.02)
    ((answers, alike), *_) = few.most_common()
    assert (alike, few.total(), answers.count("1")) == (6, 10, 322)
    chosen = {
        r["learning rate"]
        for r in table("commonsense_tasks", "choices.csv")
        if (r["task"], r["size"]) == ("boolq", "2 %")
    }
    assert chosen == {"0.012"}


def test_forty_digits_alone_speak_against_replora() -> None:
    rows = [row for row in table("digits_low_data", "size_paired.csv") if row["difference"] == "RepLoRA - LoRA"]
    differing = [row for row in rows if excludes_0(row["95 % interval"]) or row["wins / ties / losses"] == "0 / 0 / 5"]
    assert [row["size"] for row in differing] == ["5 % (40 + 200)"]
    assert not any(excludes_0(row["with test examples"]) for row in rows)


def test_at_the_highest_rate_replora_is_often_ahead_and_sometimes_fails() -> None:
    """As docs/evidence.md and docs/claims.md say of 21 runs of the first stage: seven sizes, three seeds."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for run in table("digits_low_data", "runs.csv"):
        if run["stage"] == "select" and run["learning_rate"] == "0.04":
            found.setdefault(run["method"], {})[run["amount"], run["seed"]] = float(run["validation"])
    ahead = {m: [value - found["LoRA"][cell] for cell, value in values.items()] for m, values in found.items()}
    assert len(ahead["RepLoRA"]) == 21
    assert sum(difference > 0 for difference in ahead["RepLoRA"]) == 14
    assert statistics.median(ahead["RepLoRA"]) == pytest.approx(0.025)
    assert sum(difference > 0 for difference in ahead["DoRA"]) == 20
    behind = statistics.fmean(ahead["RepLoRA"])
    assert f"{-100 * behind:.1f} points behind on average" in " ".join(PAGES["evidence"].split())
    assert f"{-100 * behind:.1f} points behind on average" in CLAIMS
    assert sum(found["DoRA"][cell] > value for cell, value in found["RepLoRA"].items()) == 18
    chance = {cell for cell, value in found["RepLoRA"].items() if value < 0.15}
    assert chance == {(amount, "2") for amount in ("0.3", "0.5", "1.0")}
    assert "three of nine runs with 240 images and more fell to chance, which LoRA never did" in CLAIMS
    failed = {method: sum(value < 0.15 for value in values.values()) for method, values in found.items()}
    former = "RepLoRA, width 64, GELU"
    assert [failed[name] for name in ("RepLoRA", "LoRA", "DoRA", former)] == [3, 0, 0, 10]


def test_replora_is_nowhere_significantly_better_than_lora() -> None:
    """As README and the pages say that quote no single experiment."""
    answers = [line for name in NAMES for line in lines_of(name) if re.match("> RepLoRA (and|against) LoRA: ", line)]
    assert len(answers) >= len(NAMES) - 1
    assert not any("significantly better" in answer for answer in answers)
    for file in ("README.md", "docs/index.md", "docs/peft.md"):
        page = " ".join((ROOT / file).read_text(encoding="utf-8").split())
        assert "not significantly better than LoRA" in page.replace("[", "")


README_TABLE = {
    "small ViT, 8 to 800 digits": ("digits_low_data",),
    "small ViT, small tasks": ("transfer_low_data", "other_tasks"),
    "pre-trained ViT-S, 20 to 800 images": ("real_vit_low_data", "real_vit_tasks"),
    "language model of 135 million, 2 and 10 % of the questions": ("commonsense_tasks", "commonsense_other_tasks"),
}
DIFFERENCE = re.compile(r"([+-]\d+\.\d) points, 95 % interval ([+-]\d+\.\d to [+-]\d+\.\d), (\d (?:draws|tasks))")


def test_readme_quotes_the_answers() -> None:
    """Each cell of the table is the answer of one report: the mean, its interval, and what it is over."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {cells[1].strip(): cells[2:4] for line in readme.splitlines() if len(cells := line.split("|")) == 5}
    assert {row for row in rows if row.startswith(("small", "pre-trained", "language"))} == set(README_TABLE)
    for row, names in README_TABLE.items():
        assert len([cell for cell in rows[row] if cell.strip()]) == len(names)
        for cell, name in zip(rows[row], names, strict=False):
            start = "> RepLoRA and LoRA: no significant difference"
            (answer,) = (line for line in lines_of(name) if line.startswith(start))
            found = DIFFERENCE.search(answer)
            assert found
            assert cell.strip().removesuffix(" of CIFAR-10") == ", ".join(found.groups())


def test_claims_say_how_much_the_intervals_leave_replora() -> None:
    names = [name for of_row in README_TABLE.values() for name in of_row]
    answers = [line for name in names for line in lines_of(name) if re.match("> RepLoRA (and|against) LoRA: ", line)]
    ends = [float(found[2].split(" to ")[1]) for line in answers if (found := DIFFERENCE.search(line))]
    assert len(ends) == len(names)
    assert f"end at {min(ends)} to {max(ends)} points in its favor" in CLAIMS


def test_claims_quote_the_tolerance_of_the_small_vit() -> None:
    rows = json.loads((ROOT / "results" / "tolerance" / "tolerance.json").read_text(encoding="utf-8"))["rows"]
    means = {(row["method"], row["rate"]): 100 * statistics.fmean(row["accuracy"]) for row in rows}
    of_lora = {rate: mean for (method, rate), mean in means.items() if method == "LoRA"}
    assert max(of_lora, key=of_lora.__getitem__) == 0.05 / 5
    ours, free = (means[method, 0.05] for method in ("RepLoRA", "LoRA"))
    assert f"reaches {ours:.1f} % with RepLoRA and {free:.1f} with LoRA" in CLAIMS


def test_readme_says_where_replora_is_worse_on_digits() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (one_seed,) = (line for line in lines_of("digits_low_data_one_seed") if line.startswith("> RepLoRA against LoRA"))
    found = DIFFERENCE.search(one_seed)
    assert found
    assert "significantly worse" in one_seed
    instead = "significantly worse with rates that one seed selected instead of three"
    assert f"{instead} ({found[1]} points, {found[2]})" in readme
    former = "> RepLoRA, width 64, GELU against LoRA: significantly worse"
    (behind,) = (DIFFERENCE.search(line) for line in lines_of("digits_low_data") if line.startswith(former))
    assert behind
    assert f"64 and GELU ({behind[1]})" in readme


def test_validation_means_of_the_method_page() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    runs = [run for run in table("ablation", "runs.csv") if run["stage"] == "final"]
    for method in dict.fromkeys(run["method"] for run in runs):
        means = [
            statistics.fmean(float(r["validation"]) for r in runs if (r["method"], r["examples"]) == (method, size))
            for size in ("80", "800")
        ]
        assert f"| {method} | {100 * means[0]:.1f} | {100 * means[1]:.1f} |" in page


def test_what_the_method_page_says_of_rates_in_the_ablation() -> None:
    page = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
    found: dict[tuple[str, bool], dict[str, float]] = {}
    for run in table("ablation", "runs.csv"):
        if run["stage"] == "select":
            of_rate = found.setdefault((run["method"], run["examples"] == "800"), {})
            of_rate[run["learning_rate"]] = 100 * float(run["validation"])
    few_lora, many_lora, few, many = (found[method, size] for method in ("LoRA", "RepLoRA") for size in (False, True))
    lost = [f"{max(values.values()) - values['0.04']:.3g}" for values in (few, many, few_lora, many_lora)]
    said = "from its best rate to 0.04 it loses {} and {} points with the first seed, LoRA {} and {}."
    assert said.format(*lost) in page
    ahead = {rate: [f"{few[rate] - few_lora[rate]:.3g}", f"{many[rate] - many_lora[rate]:.3g}"] for rate in many}
    assert "at 0.04 RepLoRA leads LoRA by {} points with 80 images and {} with 800".format(*ahead["0.04"]) in page
    behind = [difference.removeprefix("-") for difference in ahead["0.01"]]
    assert "at 0.01 it is {} and {} behind".format(*behind) in page


def test_validation_means_of_small_tasks_on_the_method_page() -> None:
    """And what docs/evidence.md says of the earlier defaults there."""
    page = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
    runs = [
        run for run in table("transfer_low_data", "runs.csv") if (run["stage"], run["examples"]) == ("final", "800")
    ]
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run["method"], []).append(float(run["validation"]))
    lora, replora, gelu, wide = (
        f"{100 * statistics.fmean(found[method]):.1f}"
        for method in ("LoRA", "RepLoRA", "RepLoRA, GELU", "RepLoRA, width 64, GELU")
    )
    assert f"LoRA {lora}, RepLoRA {replora}, with GELU {gelu}, with width 64 and GELU {wide})" in page
    of_wide = [run for run in runs if (run["method"], run["task"]) == ("RepLoRA, width 64, GELU", "sprites_location")]
    assert sum(float(run["test"]) < 0.09 for run in of_wide) == 4


def test_a_page_is_of_one_commit_and_one_torch() -> None:
    made = {name: {(row["commit"], row["torch"]) for row in table(name, "provenance.csv")} for name in NAMES}
    assert all(len(versions) == 1 for versions in made.values())
    on_page = [made[name] for name in NAMES if name != "other_tasks"]
    assert len(set.union(*on_page)) == 1
    for page in PAGES.values():
        assert len(set.union(*(made[name] for name in linked(page)))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_whole_and_those_of_a_method_of_one_commit(name: str) -> None:
    text = runs_of(name)
    runs = [parse_results(line, name) for line in text.splitlines()]
    final = [run for run in runs if run["sweep"]["stage"] == "final"]
    (of_sweep,) = {run["sweep"]["name"] for run in runs}
    sweep = yaml.safe_load((ROOT / "configs" / "sweep" / f"{of_sweep}.yaml").read_text(encoding="utf-8"))
    assert {run["sweep"]["seed"] for run in final} == set(sweep["final"]["seeds"])
    made = {(run["sweep"]["method"], run["fit"]["git"]) for run in final}
    assert len(made) == len({method for method, _ in made})
    assert all("test" in run for run in final)
    assert not any("test" in run for run in runs if run["sweep"]["stage"] == "select")
    assert not re.search(r"/(tmp|home|root|work)/", text)


@pytest.mark.parametrize("name", [*NAMES, "tolerance/commonsense_rates"])
def test_a_report_is_made_again_from_its_runs(name: str, tmp_path: Path) -> None:
    write_report([ROOT / "results" / name], tmp_path)
    stored = {file.name.removesuffix(".gz") for file in (ROOT / "results" / name).iterdir()}
    assert {file.name for file in tmp_path.iterdir()} - {"report.html"} == stored
    assert (tmp_path / "runs.jsonl").read_text(encoding="utf-8") == runs_of(name)
    for file in [*tmp_path.glob("*.csv"), *tmp_path.glob("*.md")]:
        assert file.read_text(encoding="utf-8") == (ROOT / "results" / name / file.name).read_text(encoding="utf-8")
