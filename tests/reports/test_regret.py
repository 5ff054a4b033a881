"""Points selected on other tasks in a report: labels counted, and what is lost without tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replora.reports.grouping import group_runs
from replora.reports.report import write_report
from replora.reports.sections.learning_rates import selections
from tests.reports.fake_results import result, row, table, write

RATES = (0.0025, 0.01, 0.04, 0.16)
# Task -> test accuracy at each rate, which the validation scores equal; the mean of the other tasks is best at CHOSEN.
SCORES = {
    "LoRA": {"a": (0.9, 0.6, 0.3, 0.1), "b": (0.5, 0.8, 0.5, 0.1), "c": (0.4, 0.7, 0.6, 0.2)},
    "RepLoRA": {"a": (0.7, 0.8, 0.8, 0.5), "b": (0.5, 0.7, 0.6, 0.4), "c": (0.4, 0.6, 0.7, 0.6)},
}
CHOSEN = {
    "LoRA": {"a": 0.01, "b": 0.01, "c": 0.01},
    "RepLoRA": {"a": 0.01, "b": 0.04, "c": 0.01},
}


def runs(selected: dict[str, dict[str, float]] | None = CHOSEN, draws: int = 2) -> list[dict[str, Any]]:
    """A grid of the first stage with 200 validation labels, and final runs at each of its points."""
    found = []
    for method, tasks in SCORES.items():
        for task, scores in tasks.items():
            for rate, score in zip(RATES, scores, strict=True):
                data = {"dataset": "SmallImages", "task": task, "split_sizes": {"val": 200, "test": 1000}}
                rule = {"metric": "val/accuracy", "mode": "max", "source": "other_tasks", "ties": "middle"}
                first = result(method, stage="select", rate=rate, validation=score, data=data)
                first["sweep"] |= {"chosen_by": rule, "task": {"data.task": task}}
                found.append(first)
                if selected is None:
                    continue
                for seed in range(draws):
                    final = result(method, score + 0.02 * seed, rate=rate, seed=seed, data=data)
                    point = final["sweep"]["grid"] | {"model.optimizer.lr": selected[method][task]}
                    means = {str(other): 0.5 + 0.01 * (other == selected[method][task]) for other in RATES}
                    final["sweep"] |= {
                        "chosen_by": rule | {"means": means, "seeds": 1, "point": point, "noise": False, "tied": 0},
                        "task": {"data.task": task},
                    }
                    found.append(final)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regret")
    write_report([write(folder / "runs", runs())], folder / "out")
    return folder / "out"


def test_what_is_lost_at_the_selected_rate_around_it_and_at_worst(report: Path) -> None:
    """LoRA's best are 90, 80, 70, plus 1 of the second draw; at 0.01 it has 60, 80, 70; in the window the means are
    60, 60, 56.7, and the worst 30, 50, 40. RepLoRA's b is chosen at 0.04: its window is from 0.01 to 0.16."""
    lora, replora = (row(report, "size_regret", method=method) for method in SCORES)
    best = "best in hindsight"
    assert lora[best].startswith("81.0 ± ")
    assert lora["lost, at the selected rate"].startswith("10.0 ± ")
    assert lora["lost, mean over the window"].startswith("21.1 ± ")
    assert lora["lost, worst of the window"] == "40.0 ± 43.0", "60, 30, 30: t(2; 0.975) * 17.3 / sqrt(3)"
    assert (lora["tasks"], lora["rates in the window"]) == ("3", "3")
    assert replora["lost, at the selected rate"].startswith("6.7 ± "), "0, 10, 10"
    assert replora["lost, worst of the window"].startswith("23.3 ± "), "10, 30, 30"
    paired = row(report, "size_regret_paired", score="worst of the window")
    assert (paired["mean"], paired["wins / ties / losses"], paired["units"]) == ("+10.0", "1 / 1 / 1", "3 tasks")


@pytest.mark.parametrize("source", ["own_task", "other_tasks"])
def test_final_runs_say_whose_labels_selected(tmp_path: Path, source: str) -> None:
    """The first stage is the same for both, and may have been run for the other one."""
    found = runs()
    other = {"own_task": "other_tasks", "other_tasks": "own_task"}[source]
    for one in found:
        one["sweep"]["chosen_by"]["source"] = source if one["sweep"]["stage"] == "final" else other
    write_report([write(tmp_path / "runs", found)], tmp_path / "out")
    choice = row(tmp_path / "out", "choices", task="a", method="LoRA")
    assert ("other tasks" in choice["remark"]) == (source == "other_tasks")
    words = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert ("0 validation labels of the task itself and 400 of other tasks" in words) == (source == "other_tasks")
    assert ("100 % (800 + 200)" in words) == (source == "own_task")


def test_only_the_selected_point_is_in_the_other_tables(report: Path) -> None:
    """The mean of 60, 80 and 70, and half a point for the second draw."""
    assert row(report, "size", method="LoRA")["100 % (800)"].startswith("71.0 ± ")
    stages = [line["stage"] for line in table(report, "runs")]
    assert {stage: stages.count(stage) for stage in stages} == {"select": 24, "final": 12, "unselected": 36}
    words = (report / "report.md").read_text(encoding="utf-8")
    assert "72 runs: 48 measured on test data, 24 by which options were chosen" in words
    assert "size_regret.png" in words


def test_no_label_of_the_task_is_counted(report: Path) -> None:
    words = (report / "report.md").read_text(encoding="utf-8")
    assert (
        "Options were selected on 0 validation labels of the task itself and 400 of other tasks with 1 seed." in words
    )
    assert "these labels are data too" not in words
    assert "by no validation label of its own" in words
    assert "200" not in row(report, "size", method="LoRA")
    choice = row(report, "choices", method="RepLoRA", task="b")
    assert (choice["learning rate"], choice["remark"]) == ("0.04", "other tasks")


def test_a_task_without_a_first_stage_of_its_own_is_counted(tmp_path: Path) -> None:
    """Its rate comes from two tasks that were not tested, here for RepLoRA the highest that LoRA does not have."""
    chosen = {method: dict.fromkeys("abc", rate) for method, rate in (("LoRA", 0.01), ("RepLoRA", 0.16))}

    def kept(one: dict[str, Any]) -> bool:
        sweep, tested = one["sweep"], one["data"]["task"] == "c"
        if sweep["stage"] == "select":
            return not tested
        return tested and one["fit"]["optimizer"]["lr"] == chosen[sweep["method"]]["c"]

    found = list(filter(kept, runs(chosen)))
    assert len(found) == 2 * 2 * len(RATES) + 2 * 2
    write_report([write(tmp_path / "runs", found)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert (
        "Options were selected on 0 validation labels of the task itself and 400 of other tasks with 1 seed." in words
    )
    assert "In no selection does the next best point lie within one standard error." in words
    choices = [row(tmp_path / "out", "choices", task="c", method=method) for method in SCORES]
    assert [choice["learning rate"] for choice in choices] == ["0.01", "0.16"]
    assert [choice["remark"] for choice in choices] == ["other tasks", "highest, other tasks"]
    assert {choice["points tried"] for choice in choices} == {"4"}


def test_before_final_runs_the_rule_is_that_of_the_sweep() -> None:
    (group,) = group_runs(runs(selected=None))
    found = {(method, task): choice.rate for (method, task, _), choice in selections(group).items() if choice}
    assert found == {(method, task): rate for method, tasks in CHOSEN.items() for task, rate in tasks.items()}
    assert {(c.examples, c.elsewhere) for c in selections(group).values() if c} == {(0, 400)}


def test_only_tasks_and_sizes_that_decided_are_counted() -> None:
    """Where runs name them; here a decides for b, b for a, and c is of a larger sweep in the same directory."""
    decided = {"a": "b", "b": "a", "c": "a"}
    for selected, lora_on_b in ((CHOSEN, 0.01), (None, 0.0025)):
        contents = runs(selected)
        for one in contents:
            one["sweep"]["chosen_by"]["tasks"] = [{"data.task": decided[one["sweep"]["task"]["data.task"]]}]
        (group,) = group_runs(contents)
        found = {(method, task): choice for (method, task, _), choice in selections(group).items() if choice}
        assert {(choice.examples, choice.elsewhere) for choice in found.values()} == {(0, 200)}
        assert found["LoRA", "b"].rate == lora_on_b, "recorded, or selected by a alone"


@pytest.mark.parametrize("named", [False, True])
def test_one_point_for_all_sizes_counts_the_labels_of_all_sizes(named: bool) -> None:
    """At one size 200 labels of each task select, at the other 300."""
    contents = []
    for size, labels in ((1.0, 200), (0.1, 300)):
        for one in runs():
            one["data"] |= {"train_fraction": size, "split_sizes": {"val": labels, "test": 1000}}
            one["sweep"]["size"] = {"data.train_fraction": size}
            if named:
                one["sweep"]["chosen_by"]["sizes"] = [{"data.train_fraction": 0.1}, {"data.train_fraction": 1.0}]
            contents.append(one)
    (group,) = group_runs(contents)
    found = {(size.amount, choice.elsewhere) for (_, _, size), choice in selections(group).items() if choice}
    assert found == ({(0.1, 600), (1.0, 600)} if named else {(0.1, 600), (1.0, 400)})


def test_a_run_that_diverged_counts_as_nothing_right(tmp_path: Path) -> None:
    contents = runs(draws=1)
    for content in contents:
        sweep = content["sweep"]
        lost = (sweep["stage"], sweep["method"], sweep["task"]["data.task"], sweep["grid"]["model.optimizer.lr"])
        if lost == ("final", "LoRA", "a", 0.04):
            for part in content.keys() - {"sweep", "format"}:
                del content[part]
            sweep["failed"] = "nan"
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    assert row(tmp_path / "out", "size_regret", method="LoRA")["lost, worst of the window"].startswith("50.0"), (
        "90, 30, 30"
    )


def test_without_other_points_there_is_no_section(tmp_path: Path) -> None:
    contents = [c for c in runs() if c["sweep"]["grid"] == c["sweep"]["chosen_by"].get("point", c["sweep"]["grid"])]
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    assert "Regret" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
