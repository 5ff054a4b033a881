"""Reports from results files: where numbers appear, what is missing, what is never mixed."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from replora.cli.main import main
from replora.reports.grouping import group_runs
from replora.reports.report import write_report
from replora.reports.runs import ReportError, Size, read_runs
from tests.reports.fake_results import SIZES, result, row, table, write


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    """Two methods, two sizes, two seeds, and a grid of three rates for both; one RepLoRA run is missing."""
    scores = {
        ("LoRA", 0.1): (0.50, 0.54),
        ("LoRA", 1.0): (0.80, 0.90),
        ("RepLoRA", 0.1): (0.60, 0.62),
        ("RepLoRA", 1.0): (0.86, None),
    }
    final = [
        result(method, score, size=size, seed=seed)
        for (method, size), values in scores.items()
        for seed, score in enumerate(values)
        if score is not None
    ]
    grids = {"LoRA": {0.01: 0.4, 0.02: 0.6, 0.04: 0.5}, "RepLoRA": {0.005: 0.3, 0.01: 0.5, 0.02: 0.6}}
    selection = [
        result(method, stage="select", rate=rate, validation=value, size=size)
        for method, grid in grids.items()
        for rate, value in grid.items()
        for size in SIZES
    ]
    diverged = result("LoRA", stage="select", rate=0.08, size=0.1)
    diverged = {"format": 1, "sweep": diverged["sweep"] | {"failed": "nan"}}
    return [*final, *selection, diverged]


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report([write(folder / "runs", runs)], folder / "out")
    return folder / "out"


def test_means_with_their_intervals_and_missing_seeds(report):
    """LoRA at 10 %: mean 52, t(1; 0.975) s / sqrt(2) = 12.706 * 2 = 25.4."""
    lora = row(report, "size", method="LoRA")
    assert lora["10 % (80)"] == "52.0 ± 25.4"
    assert lora["100 % (800)"] == "85.0 ± 63.5"
    assert row(report, "size", method="RepLoRA")["100 % (800)"] == "86.0 (n=1)"


def test_data_that_one_needs_to_reach_the_other(report):
    """RepLoRA's 61 % lie 9 / 33 of the way from LoRA's 52 % at 80 images to its 85 % at 800: 80 * 10 ** (9 / 33)."""
    needed = row(report, "size_data_needed", size="10 % (80)")
    assert needed["RepLoRA reaches"] == "61.0"
    assert needed["LoRA needs for that"] == f"{80 * 10 ** (9 / 33):.3g} ({10 ** (9 / 33):.2f} x)"
    assert needed["RepLoRA needs"] == "at most 80"


def test_a_thousand_examples_and_more_are_whole_numbers(tmp_path):
    """1,000 images, as VTAB-1K has, were written as 1e+03."""
    runs = []
    for method, scores in (("LoRA", (0.5, 0.7)), ("RepLoRA", (0.6, 0.8))):
        for size, count, score in zip((0.1, 1.0), (1000, 10000), scores, strict=True):
            data = {"train_size": count}
            runs += [result(method, score + seed / 100, size=size, seed=seed, data=data) for seed in (0, 1)]
    write_report([write(tmp_path / "runs", runs)], tmp_path / "out")
    few, many = (row(tmp_path / "out", "size_data_needed", size=size) for size in ("10 % (1000)", "100 % (10000)"))
    assert few["LoRA needs for that"] == "3162 (3.16 x)", "half of the way over the logarithm"
    assert (few["RepLoRA needs"], many["LoRA needs for that"]) == ("at most 1000", "more than 10000")


def test_pairs_are_of_the_same_seed(report):
    few = row(report, "size_paired", size="10 % (80)")
    assert (few["mean"], few["wins / ties / losses"], few["p"]) == ("+9.0", "2 / 0 / 0", "0.5")
    assert few["95 % interval"] == "-3.7 to +21.7", "t(1; 0.975) * 1 = 12.7"
    assert (few["units"], few["least p"]) == ("2 seeds", "0.5")
    many = row(report, "size_paired", size="100 % (800)")
    assert (many["mean"], many["95 % interval"]) == ("+6.0", "")
    # Seed 0: the mean of 10 and 6; seed 1 has no pair at 100 %.
    assert row(report, "size_paired", size="all sizes")["mean"] == "+8.0"
    assert many["least p"] == "1"


def test_all_sizes_are_those_that_both_have(tmp_path):
    """Seed 1 has only the small size, where the difference is large: it does not count. Only LoRA has 1 %."""
    scores = {("LoRA", 0): (0.5, 0.5), ("LoRA", 1): (0.5,), ("RepLoRA", 0): (0.5, 0.52), ("RepLoRA", 1): (0.9,)}
    contents = [
        result(method, score, size=size, seed=seed)
        for (method, seed), values in scores.items()
        for size, score in zip(SIZES, values, strict=False)
    ]
    write_report([write(tmp_path / "runs", [*contents, result("LoRA", 0.3, size=0.01)])], tmp_path / "out")
    assert row(tmp_path / "out", "size_paired", size="2 of 3 sizes")["mean"] == "+1.0"


def test_the_answer_in_words(report, tmp_path):
    """Two seeds that agree cannot tell; five that agree can, at each size too."""
    words = (report / "report.md").read_text()
    assert words.startswith("# Results\n\n> RepLoRA and LoRA: no comparison, all sizes, digits\n>\n> No second draw")
    two = [
        result(method, score + 0.1 * seed + 0.001 * seed * (method == "LoRA"), size=size, seed=seed)
        for method, score in {"LoRA": 0.5, "RepLoRA": 0.58}.items()
        for seed in range(2)
        for size in SIZES
    ]
    write_report([write(tmp_path / "two", two)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text()
    answer = "significantly better, +7.9 points, 95 % interval +7.3 to +8.6, 2 draws, all sizes, digits"
    assert f"> RepLoRA against LoRA: {answer}\n" in words
    assert "Sign-flip test: p 0.5, which can be no less than 0.5." in words
    assert "Of 2 single sizes significantly better at 2, worse at 0." in words
    worse = [
        result(method, accuracy + 0.01 * seed + 0.02 * (seed % 2) * (method == "LoRA"), seed=seed, size=size)
        for method, accuracy in {"LoRA": 0.8, "RepLoRA": 0.78}.items()
        for seed in range(5)
        for size in (0.1, 1.0)
    ]
    for content in worse:
        content["data"]["split_sizes"] = {"test": 797}
    write_report([write(tmp_path / "runs", worse)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text()
    assert "> RepLoRA against LoRA: significantly worse, -2.8 points, 95 % interval -4.2 to -1.4, 5 draws" in words
    assert "so the difference is significant on these test examples only." in words
    paired = row(tmp_path / "out", "size_paired", size="all sizes")
    assert (paired["95 % interval"], paired["with test examples"]) == ("-4.2 to -1.4", "-6.9 to +1.3")
    contained = row(tmp_path / "out", "size_intervals", method="LoRA", size="10 % (80)")
    assert (contained["± draw and seed"], contained["± test examples"], contained["± total"]) == ("2.4", "2.6", "3.5")


@pytest.mark.parametrize("rates", [(0.01, 0.02, 0.04), (0.04, 0.02, 0.01)])
def test_of_equal_points_the_middle_of_the_grid_is_chosen_as_in_a_sweep(tmp_path, rates):
    same = [result(stage="select", rate=rate, score=None, validation=0.4 - 0.1 * (rate == 0.01)) for rate in rates]
    write_report([write(tmp_path / "runs", [*same, result(rate=0.02)])], tmp_path / "out")
    assert row(tmp_path / "out", "choices")["learning rate"] == "0.02"


def test_the_choice_is_what_the_final_runs_record(tmp_path):
    """The rate 0.04 has the best accuracy, but the sweep chose 0.01 by the loss, and was later given 0.04."""
    rule = {"metric": "val/loss", "mode": "min"}
    contents = [result(stage="select", rate=rate, validation=10 * rate, score=None) for rate in (0.01, 0.02, 0.04)]
    final = result(rate=0.01)
    final["sweep"]["chosen_by"] = rule | {"means": {"lr=0.01": 0.7, "lr=0.02": 0.9}}
    write_report([write(tmp_path / "runs", [*contents, final])], tmp_path / "out")
    line = row(tmp_path / "out", "choices")
    assert (line["learning rate"], line["remark"], line["validation, %"]) == ("0.01", "lowest", "0.7 (val/loss)")
    words = (tmp_path / "out" / "report.md").read_text()
    assert "The selected point of each grid by val/loss" in words
    assert "Selections are shown as the final runs record it." in words


def test_a_choice_without_final_runs_has_the_sweeps_rule(tmp_path):
    """By the least loss, and only among rates with both seeds: 0.01 has the least but one seed, so 0.02."""
    contents = []
    for rate, losses in {0.01: (0.1,), 0.02: (0.5, 0.5), 0.04: (0.6, 0.6)}.items():
        for seed, loss in enumerate(losses):
            content = result(stage="select", rate=rate, seed=seed, validation=rate)
            content["fit"]["metrics"]["val/loss"] = loss
            content["sweep"]["chosen_by"] = {"metric": "val/loss", "mode": "min"}
            contents.append(content)
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    assert row(tmp_path / "out", "choices")["learning rate"] == "0.02"
    assert "because no final run records one" in (tmp_path / "out" / "report.md").read_text()


def test_several_tasks_have_choices_of_their_own_and_no_ring(tmp_path):
    contents = [
        result(stage="select", rate=rate, validation=value, data={"task": task})
        for task, values in {"a": (0.1, 0.2), "b": (0.2, 0.1)}.items()
        for rate, value in zip((0.01, 0.02), values, strict=True)
    ]
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    assert row(tmp_path / "out", "choices", task="a")["learning rate"] == "0.02"
    assert row(tmp_path / "out", "choices", task="b")["learning rate"] == "0.01"
    words = (tmp_path / "out" / "report.md").read_text()
    assert "Each task has its own selections" in words
    assert "ring" not in words.replace("during", "")


def test_what_was_chosen(report):
    lora = row(report, "choices", method="LoRA", size="10 %")
    assert (lora["learning rate"], lora["remark"], lora["validation, %"], lora["points tried"]) == (
        "0.02",
        "",
        "60.0",
        "4",
    )
    assert row(report, "choices", method="RepLoRA", size="10 %")["remark"] == "highest"


def test_every_picture_is_in_the_page(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    pictures = {"size.png", "learning_rate.png", "grid.png", "course_val.png", "course_train_loss.png"}
    assert {file.name for file in report.glob("*.png")} == pictures
    assert page.count('<img src="data:image/png;base64,') == len(pictures)
    assert not re.search(r'src="(?!data:)', page), "nothing is loaded from elsewhere"
    assert not re.search(r'href="(?!#|\.\./runs/)', page), "links lead to headings and to runs"
    for name in pictures:
        with Image.open(report / name) as picture:
            assert picture.width >= 600
            assert len(picture.convert("L").getcolors(256)) > 20
    markdown = (report / "report.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in markdown for name in pictures)


def test_the_summary_counts(report):
    assert "20 runs: 7 measured on test data, 13 by which options were chosen on validation data; 1 diverged" in (
        report / "report.md"
    ).read_text(encoding="utf-8")


def test_a_line_a_run(report):
    lines = table(report, "runs")
    assert len(lines) == 20
    assert sum(line["diverged"] == "True" for line in lines) == 1
    line = row(report, "runs", method="RepLoRA", stage="final", amount="1.0")
    assert (line["test"], line["seed"], line["learning_rate"], line["examples"]) == ("0.86", "0", "0.01", "800")


def test_the_report_can_be_made_again_from_itself(report, tmp_path):
    files = write_report([report], tmp_path)
    assert (tmp_path / "report.md").read_bytes() == (report / "report.md").read_bytes()
    assert (tmp_path / "runs.jsonl").read_bytes() == (report / "runs.jsonl").read_bytes()
    assert files[1] == tmp_path / "report.html"


def test_the_verb(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", runs[:4])
    write(tmp_path / "b", runs[4:])
    main(["report", "a", "b", "--out", "r"])
    assert capsys.readouterr().out.strip() == "report: r/report.html"
    assert "7 measured on test data" in (tmp_path / "r" / "report.md").read_text(encoding="utf-8")


def test_another_method_may_be_the_one_to_compare_with(runs, tmp_path, capsys):
    """A table without it is compared with LoRA."""
    write(
        tmp_path / "runs",
        [*runs, *(result("linear probe", 0.4, size=size, seed=seed) for size in SIZES for seed in (0, 1))],
    )
    main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "probe"), "--reference", "linear probe"])
    found = {row["difference"] for row in table(tmp_path / "probe", "size_paired")}
    assert found == {"LoRA - linear probe", "RepLoRA - linear probe"}
    few = row(tmp_path / "probe", "size_paired", difference="LoRA - linear probe", size="10 % (80)")
    assert few["mean"] == "+12.0"
    assert "> LoRA and linear probe: " in (tmp_path / "probe" / "report.md").read_text("utf-8")
    assert "linear probe needs for that" in table(tmp_path / "probe", "size_data_needed")[0]
    write_report([tmp_path / "runs"], tmp_path / "own", reference="RepLoRA")
    assert {row["difference"] for row in table(tmp_path / "own", "size_paired")} == {
        "LoRA - RepLoRA",
        "linear probe - RepLoRA",
    }
    assert "LoRA needs for that" in table(tmp_path / "own", "size_data_needed")[0]
    other_sweep = [
        result(method, 0.5, sweep="t", seed=seed) for method in ("full", "LoRA", "RepLoRA") for seed in (0, 1)
    ]
    write(tmp_path / "runs", [*runs, result("linear probe", 0.4), *other_sweep])
    write_report([tmp_path / "runs"], tmp_path / "two", reference="linear probe")
    compared = {row["difference"] for row in table(tmp_path / "two", "2_size_paired")}
    assert compared == {"full - LoRA", "RepLoRA - LoRA"}, "a table without the wanted one"
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "none"), "--reference", "Lora"])
    assert ended.value.code == 2
    assert "No final run is of the method 'Lora', with which to compare. Did you mean 'LoRA'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_one_size_is_a_picture_of_dots(tmp_path):
    write_report([write(tmp_path / "runs", [result("LoRA", 0.5), result("tanh | wide", 0.6)])], tmp_path / "out")
    assert row(tmp_path / "out", "size", method="tanh | wide")["100 % (800)"] == "60.0"
    assert not (tmp_path / "out" / "size_data_needed.csv").exists()
    assert "tanh \\| wide" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_many_methods_have_room(tmp_path):
    """Dots with error bars, and one panel per method; captions say what is left out."""
    contents = [
        result(f"method {number}", 0.5, size=size, stage=stage, rate=rate)
        for number in range(8)
        for size in (0.01, 0.02, 0.1, 0.5, 1.0)
        for stage, rate in (("select", 0.01), ("select", 0.02), ("final", 0.01))
    ]
    for content in contents:
        content["fit"]["metrics"]["val/accuracy"] = 0.5
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text()
    assert "4 of 5 sizes are shown." in words
    assert "one panel per method, 4 of 5 sizes" in words
    with Image.open(tmp_path / "out" / "learning_rate.png") as picture:
        assert picture.height > picture.width / 2, "three rows of panels"


def test_a_metric_keeps_its_name(tmp_path):
    content = result("LoRA", None, data={"dataset": "Commonsense", "preset": "cloze", "task": "ARC-Easy"})
    content["test"]["metrics"] = {"test/acc": 0.3, "test/acc_norm": 0.55}
    write_report([write(tmp_path / "runs", [content])], tmp_path / "out")
    assert "Test acc_norm" in (tmp_path / "out" / "report.md").read_text()


def test_several_weight_decays_give_a_map_a_size(tmp_path):
    contents = [
        result(stage="select", rate=rate, decay=decay, validation=rate * 10 + decay)
        for rate in (0.01, 0.02)
        for decay in (0.1, 0.2)
    ]
    write_report([write(tmp_path / "runs", [*contents, result()])], tmp_path / "out")
    assert (tmp_path / "out" / "grid_part_1.png").is_file()
    chosen = row(tmp_path / "out", "choices", method="LoRA")
    assert (chosen["learning rate"], chosen["weight decay"]) == ("0.02", "0.2")


# --- what may stand together


def test_of_a_run_that_is_there_twice_the_newest_counts():
    (group,) = group_runs([result(score=0.1, date="2026-02"), result(score=0.9, date="2026-03"), result(score=0.2)])
    assert [run.score for run in group.runs] == [0.9]


@pytest.mark.parametrize("change", [{"protocol": "final"}, {"image_size": 64}, {"normalization": {"name": "half"}}])
def test_other_conditions_are_another_section(change):
    assert len(group_runs([result(), result(data=change)])) == 2


def test_other_weights_and_other_sweeps_are_other_sections():
    other = copy.deepcopy(result())
    other["backbone"]["fingerprint"] = "g"
    assert len(group_runs([result(), other, result(sweep="t"), result(sweep=None)])) == 4


def test_runs_by_hand_are_told_apart_by_what_differs():
    (group,) = group_runs(
        [result("LoRA", sweep=None), result("LoRA", sweep=None, rate=0.02), result("DoRA", sweep=None)]
    )
    assert group.methods == ["DoRA", "LoRA, lr 0.01", "LoRA, lr 0.02"]


def by_hand(seed: int = 0, size: float = 1.0, **fit: Any) -> dict[str, Any]:
    """A run without a sweep, with another entry in `fit`."""
    content = result(sweep=None, size=size, seed=seed)
    content["fit"] |= {"epochs": 10, "steps": 100, "batch": {"per_process": 8, "processes": 2, "accumulated": 1}} | fit
    return content


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"epochs": 20, "steps": 200}, ["LoRA, epochs 10, steps 100", "LoRA, epochs 20, steps 200"]),
        ({"steps": 70}, ["LoRA, steps 100", "LoRA, steps 70"]),
        ({"batch": {"per_process": 8, "processes": 1, "accumulated": 1}}, ["LoRA, batch 16", "LoRA, batch 8"]),
    ],
)
def test_runs_by_hand_of_different_length_do_not_replace_each_other(change, names):
    (group,) = group_runs([by_hand(), by_hand(**change)])
    assert group.methods == names
    (group,) = group_runs([by_hand(), by_hand(seed=1, **change)])
    assert group.methods == names, "nor are they averaged"
    (group,) = group_runs([by_hand(), by_hand(size=0.1, **change)])
    assert group.methods == ["LoRA"], "each size may have a length of its own"


def test_runs_by_hand_with_different_warm_up():
    schedules = [{"class": "WarmupCosine", "warmup_epochs": epochs, "warmup_lr": 0.1 * epochs} for epochs in (1, 5)]
    (group,) = group_runs([by_hand(schedule=schedule) for schedule in schedules])
    assert group.methods == ["LoRA, warmup epochs 1", "LoRA, warmup epochs 5"]


def test_the_summary_says_how_many_repeats_are_left_out(tmp_path):
    contents = [result(date="2026-02"), result(date="2026-03"), result(date="2026-01"), result("RepLoRA")]
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert (
        "2 runs: 2 measured on test data; left out: 2 older runs with the same method, options, data and seed" in words
    )


def test_options_that_changed_within_a_sweep_are_refused():
    """An axis may set them; else runs before and after a change of defaults would be averaged."""
    other = result(seed=1)
    other["options"] = {"rank": 4}
    with pytest.raises(ReportError, match=r"'LoRA' in the sweep 's' have different options.*rank is 8 in one and 4 in"):
        group_runs([result(), other])
    other["sweep"]["grid"] |= {"model.adapter.init_args.rank": 4}
    assert len(group_runs([result(), other])) == 1
    targets = [result(seed=seed) | {"targets": [f"blocks.{seed}.attn"]} for seed in (0, 1)]
    with pytest.raises(ReportError, match="targets found is"):
        group_runs(targets)


def test_the_order_of_the_results_does_not_matter(tmp_path):
    contents = [result(sweep=name, seed=seed, date="") for name in ("t", "s") for seed in (1, 0)]
    twins = [result(score=score, sweep="u", date="") for score in (0.2, 0.3)]
    places = sorted(write(tmp_path / "runs", [*contents, *twins]).iterdir())
    write_report(places, tmp_path / "first")
    write_report([tmp_path / "first"], tmp_path / "again")
    write_report(places[::-1], tmp_path / "third")
    texts = [(tmp_path / name / "report.md").read_bytes() for name in ("first", "again", "third")]
    assert texts[0] == texts[1] == texts[2]
    assert [group.title for group in group_runs(contents)] == ["s, Digits, vit_nano", "t, Digits, vit_nano"]


def test_shots_are_not_parts():
    (group,) = group_runs([result(), result(data={"shots": 5})])
    assert sorted(run.size for run in group.runs) == [Size(False, 1.0), Size(True, 5.0)]
    assert str(Size(True, 5.0)) == "5 per class"


def test_a_sweep_that_runs_is_read_while_a_trial_deletes_its_checkpoints(tmp_path, monkeypatch):
    write(tmp_path / "final", [result(), result(seed=1)])
    (tmp_path / "final" / "0" / "checkpoints").mkdir()
    scandir = os.scandir

    def deleted_meanwhile(folder):
        if Path(folder).name == "checkpoints":
            Path(folder).rmdir()
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", deleted_meanwhile)
    assert len(read_runs([tmp_path])) == 2
    assert not (tmp_path / "final" / "0" / "checkpoints").exists()
