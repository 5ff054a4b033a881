"""Two runs that differ in one option are the same run by declaration, or the report shows the difference."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from replora.identity import FIELDS, configuration_sha256, differing_options, flat_options, option_kind
from replora.reports.grouping import group_runs
from replora.reports.report import write_report
from replora.reports.runs import ReportError
from replora.reports.scores import Scores

FORMER = Path(__file__).parents[1] / "cli" / "former"
# Every option that a fit of image classification has, with a value.
OPTIONS = {
    name.replace(".init_args", ""): value
    for name, value in flat_options(yaml.safe_load((FORMER / "vtab_lora.yaml").read_text("utf-8"))).items()
}
# Options that came later.
OPTIONS |= {"data.framing": "squash", "data.background": "white", "data.skip_corrupt": False}
OPTIONS |= {"data.allowed_roots": None, "model.image_size": 224}

OF_NO_OPTION = (
    "data.subset_rule",
    "data.dataset",
    "data.recipe",
    "data.class_names",
)  # fields that no option sets alone


def other(option: str) -> Any:
    """Another value of an option."""
    value = OPTIONS[option]
    if option == "data.shots":
        return 5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another"


def recorded(configuration: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The record of a run with these options, as far as a report reads it."""
    kept = {name: value for name, value in configuration.items() if option_kind(name) != "harmless"}
    shots, fraction = configuration["data.shots"], configuration["data.train_fraction"]
    run = {
        "format": 2,
        "run_id": "a" * 32,
        "configuration": kept,
        "configuration_sha256": configuration_sha256(configuration),
        "backbone": {"name": configuration["model.backbone"], "fingerprint": configuration["model.backbone"]},
        "method": configuration["model.adapter.class_path"].rpartition(".")[2],
        "options": {k.rpartition(".")[2]: v for k, v in configuration.items() if k.startswith("model.adapter.")},
        "targets": [],
        "parameters": {"backbone": 10, "adapter_trained": 2, "adapter_deployed": 1, "head": 1},
        "data": {
            "dataset": configuration["data.class_path"].rpartition(".")[2],
            "task": configuration["data.task"],
            "track": configuration["data.track"],
            "protocol": configuration["data.protocol"],
            "shots": shots,
            "train_fraction": fraction,
            "subset_seed": configuration["data.subset_seed"],
            "shuffle_seed": configuration["data.shuffle_seed"],
            "train_size": 20,
            "splits": {"test": {"size": 5, "sha256": "c" * 64}},
        },
        "fit": {
            "metrics": {"val/accuracy": 0.5},
            "epochs": configuration["trainer.max_epochs"],
            "steps": 10,
            "seed": configuration["seed_everything"],
            "optimizer": {
                "class": "AdamW",
                "lr": configuration["model.optimizer.lr"],
                "weight_decay": configuration["model.optimizer.weight_decay"],
            },
            "batch": {"per_process": configuration["data.batch_size"]},
            "schedule": {"warmup_epochs": configuration["model.schedule.warmup_epochs"]},
            "seconds": 1.0,
            "weights_sha256": "w",
            "partial": [],
            "diverged": False,
            "date": "2026-11-01",
        },
        "evaluations": [],
    }
    test = {
        "verb": "test",
        "metrics": {"test/accuracy": 0.5},
        "data": {"split": "test", "size": 5, "sha256": "c" * 64},
        "weights": {"source": "last epoch", "sha256": "w"},
        "partial": [],
        "date": "2026-11-01",
    }
    run |= {"evaluations": [test], "test": test}
    return run | changes


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "data.track"])
def test_a_difference_in_one_option_is_harmless_or_visible(option: str) -> None:
    """Results of both tracks of VTAB-1K are refused together, so `data.track` is not among them."""
    changed = OPTIONS | {option: other(option)}
    one, two = recorded(OPTIONS), recorded(changed)
    kind = option_kind(option)
    assert bool(differing_options(OPTIONS, changed)) == (kind != "harmless")
    assert (one["configuration_sha256"] == two["configuration_sha256"]) == (kind == "harmless")
    groups = group_runs([one, two])
    runs = [run for group in groups for run in group.runs]
    if kind == "harmless":
        assert len(runs) == 1, "one run, measured twice"
        return
    assert len(runs) == 2, "no run is dropped"
    if kind == "repeat":
        assert len({run.method for run in runs}) == 1
        assert len(groups) == 1
        return
    shown = {(json.dumps(group.conditions), run.method, run.task, run.size) for group in groups for run in group.runs}
    assert len(shown) == 2, f"{option} is not shown"


def test_partial_runs_are_not_averaged_with_complete_ones() -> None:
    partial = recorded(OPTIONS | {"seed_everything": 1})
    partial["fit"]["partial"] = ["limit_train_batches=2"]
    (group,) = group_runs([recorded(OPTIONS), partial])
    assert sorted(group.methods) == ["RepLoRAConfig", "RepLoRAConfig, partial: limit_train_batches=2"]


def test_other_lists_of_a_task_stand_apart() -> None:
    two = copy.deepcopy(recorded(OPTIONS))
    two["test"]["data"] |= {"sha256": "d" * 64, "size": 7}
    groups = group_runs([recorded(OPTIONS), two])
    measured_on = [group.conditions["measured on"] for group in groups]
    assert measured_on == ["5 examples, list cccccccc", "7 examples, list dddddddd"]


def of_sweep(configuration: dict[str, Any], seed: int, trial: str) -> dict[str, Any]:
    content = recorded(configuration | {"seed_everything": seed})
    content["fit"]["seed"] = seed
    sweep = {"name": "s", "stage": "final", "method": "LoRA", "seed": seed, "trial": trial}
    return content | {"sweep": sweep | {"task": {}, "size": {}, "grid": {}}}


@pytest.mark.parametrize(
    "option", [name for name in OPTIONS if option_kind(name) in ("setting", "axis") and name != "data.track"]
)
def test_runs_of_one_sweep_with_other_options_are_not_averaged(option: str) -> None:
    """Also options that no axis of the sweep varies, such as a learning rate that `--options` fixed."""
    one, two = of_sweep(OPTIONS, 0, "a"), of_sweep(OPTIONS | {option: other(option)}, 1, "b")
    group_runs([one, of_sweep(OPTIONS, 1, "b")])
    try:
        groups = group_runs([one, two])
    except ReportError as error:
        assert f"{option} is " in str(error)  # noqa: PT017
    else:  # a condition of the table, or another task
        shown = {(group.title, run.task, run.size) for group in groups for run in group.runs}
        assert len(shown) == 2, f"{option} is averaged"


@pytest.mark.parametrize("option", ["model.label_smoothing", "model.optimizer.lr", "data.batch_size"])
def test_points_of_a_curve_have_the_same_options_but_for_those_of_their_axis(option: str) -> None:
    small = {"data.train_fraction": 0.1}
    for size in ({"data.train_fraction": 1.0}, {"data.train_fraction": 1.0, option: other(option)}):
        runs = [of_sweep(OPTIONS | small, 0, "a"), of_sweep(OPTIONS | {option: other(option)}, 0, "b")]
        runs[0]["sweep"]["size"], runs[1]["sweep"]["size"] = small, size
        if option in size:
            group_runs(runs)
        else:
            with pytest.raises(ReportError, match=f"{option} is "):
                group_runs(runs)


def test_an_axis_and_a_stage_of_a_sweep_may_set_options() -> None:
    option = "model.label_smoothing"
    contents = []
    for stage in ("select", "final"):
        for value in (0.0, 0.1):
            content = of_sweep(OPTIONS | {option: value, "trainer.max_epochs": len(stage)}, 0, f"{stage} {value}")
            content["sweep"] |= {"stage": stage, "grid": {option: value}}
            contents.append(content)
    group_runs(contents)


def test_the_report_of_a_sweep_leaves_out_and_names_what_its_file_no_longer_has(tmp_path: Path) -> None:
    for trial in ("final/LoRA/seed=0", "final/LoRA/seed=1"):
        content = of_sweep(OPTIONS, int(trial[-1]), trial)
        del content["test"]
        (tmp_path / trial).mkdir(parents=True)
        (tmp_path / trial / "results.json").write_text(json.dumps(content))
    write_report([tmp_path], tmp_path / "report", {"final/LoRA/seed=0"})
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "1 run: 1 measured on test data" in page
    assert "final/LoRA/seed=1 does not belong to the sweep as its file is now" in " ".join(page.split())


def means(contents: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Method -> mean test score and number of runs, as tables show them."""
    (group,) = group_runs(contents)
    scores = Scores(group, shots=False)
    found = {method: scores.mean(method, scores.sizes[0], scores.tasks[0]) for method in scores.methods}
    return {method: (mean.value, mean.count) for method, mean in found.items() if mean is not None}


def with_score(content: dict[str, Any], score: float) -> dict[str, Any]:
    content["test"]["metrics"]["test/accuracy"] = score
    return content


@pytest.mark.parametrize("option", ["data.subset_seed", "data.shuffle_seed"])
def test_runs_that_differ_in_a_seed_of_the_data_are_averaged(option: str) -> None:
    other_seed = with_score(recorded(OPTIONS | {option: 1}), 0.7)
    assert list(means([recorded(OPTIONS), other_seed]).values()) == [(pytest.approx(0.6), 2)]


def test_a_diverged_run_is_in_no_mean() -> None:
    diverged = with_score(recorded(OPTIONS | {"seed_everything": 1}), 0.1)
    diverged["fit"]["diverged"] = True
    assert list(means([recorded(OPTIONS), diverged]).values()) == [(0.5, 1)]


def test_runs_without_a_seed_are_repeats() -> None:
    unseeded = [with_score(recorded(OPTIONS, run_id=name * 32), score) for name, score in (("b", 0.4), ("c", 0.6))]
    for run in unseeded:
        run["fit"]["seed"] = None
    assert list(means(unseeded).values()) == [(0.5, 2)]


def test_both_stages_of_a_sweep_stand_in_one_group() -> None:
    final = of_sweep(OPTIONS, 0, "final")
    select = of_sweep(OPTIONS | {"data.protocol": "tune"}, 0, "select")
    select["sweep"]["stage"] = "select"
    select["data"]["splits"] = {"val": {"size": 3, "sha256": "v" * 64}}
    del select["test"]
    (group,) = group_runs([final, select])
    assert (len(group.final), len(group.selection)) == (1, 1)


# --- what a run was trained on


def trained_on(content: dict[str, Any], what: str, letter: str) -> dict[str, Any]:
    """The run on another training list, or with other class names."""
    data = content["data"]
    if what == "class names":
        return content | {"data": data | {"class_names": [letter, "x"]}}
    return content | {"data": data | {"splits": data["splits"] | {what: {"size": 20, "sha256": letter * 64}}}}


@pytest.mark.parametrize("what", ["train", "trainval", "class names"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("of", ["hand", "sweep", "first stage"])
def test_runs_on_other_training_data_stand_apart(what: str, seed: int, of: str) -> None:
    runs = []
    for number, letter in zip((0, seed), "ef", strict=True):
        run = of_sweep(OPTIONS, number, letter) if of != "hand" else recorded(OPTIONS | {"seed_everything": number})
        if of == "first stage":
            run["sweep"]["stage"] = "select"
            del run["test"]
        runs.append(trained_on(run, what, letter))
    groups = group_runs(runs)
    assert [len(group.runs) for group in groups] == [1, 1], "neither dropped nor averaged"
    words = ["classes e, x", "classes f, x"] if what == "class names" else ["list eeeeeeee", "list ffffffff"]
    assert [group.title.rpartition("trained on ")[2].rpartition("_in21k, ")[2] for group in groups] == words


def test_the_amount_of_data_is_no_other_training_data() -> None:
    """The hash is of the list from which the examples are taken."""
    runs = [trained_on(recorded(OPTIONS | {"data.train_fraction": part}), "train", "e") for part in (0.1, 1.0)]
    runs[0]["data"]["splits"]["train"]["size"] = 2
    (group,) = group_runs(runs)
    assert len(group.runs) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"image_size": 64}}, "image_size 64"),
        ({"data": {"normalization": {"name": "own", "mean": [0.1]}}}, "normalization.mean [0.1]"),
        ({"data": {"split_seed": 3}}, "split seed 3"),
        ({"backbone": {"fingerprint": "g"}}, "fingerprint g"),
        ({"test": {"data": {"split": "test", "size": 7, "sha256": "d" * 64}}}, "measured on 7 examples, list dddddddd"),
    ],
)
def test_titles_say_how_groups_differ(change: dict[str, dict[str, Any]], words: str) -> None:
    one = recorded(OPTIONS)
    one["data"] |= {"image_size": 32, "normalization": {"name": "own", "mean": [0.5]}, "split_seed": 0}
    two = one | {name: one[name] | values for name, values in change.items()}
    groups = group_runs([one, two])
    assert len({group.title for group in groups}) == 2
    assert sum(group.title.endswith(words) for group in groups) == 1


# --- partial runs


@pytest.mark.parametrize("stage", ["select", "final"])
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_partial_runs_of_a_sweep_are_rows_of_their_own(stage: str, verb: str) -> None:
    complete, partial = of_sweep(OPTIONS, 0, "a"), of_sweep(OPTIONS | {"trainer.limit_train_batches": 2}, 1, "b")
    partial[verb]["partial"] = ["limit_train_batches=2"]
    for run in (complete, partial):
        run["sweep"]["stage"] = stage
    (group,) = group_runs([complete, partial])
    assert group.methods == ["LoRA", "LoRA, partial: limit_train_batches=2"]
    assert [run.status for run in group.runs] == ["complete", "partial: limit_train_batches=2"]


def test_a_partial_validation_is_one_where_it_is_what_is_shown() -> None:
    validated = recorded(OPTIONS)
    validated["validate"] = validated.pop("test") | {"verb": "validate", "partial": ["limit_val_batches=1"]}
    (group,) = group_runs([validated])
    assert group.methods == ["RepLoRAConfig, partial: limit_val_batches=1"]


# --- the options of every kind of task


def options_of_other_tasks() -> list[tuple[str, Any]]:
    found: dict[tuple[str, str], Any] = {}
    for file in sorted(FORMER.glob("*.yaml")):
        for name, value in flat_options(yaml.safe_load(file.read_text("utf-8"))).items():
            option = name.replace(".init_args", "")
            if option not in OPTIONS and value != {} and option_kind(option) in ("setting", "axis"):
                found[option, json.dumps(value)] = value
    return [(option, value) for (option, _), value in sorted(found.items(), key=str)]


@pytest.mark.parametrize(("option", "value"), options_of_other_tasks())
def test_a_difference_in_an_option_of_any_task_is_visible(option: str, value: Any) -> None:
    changed = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "another"
    groups = group_runs([recorded(OPTIONS | {option: value}), recorded(OPTIONS | {option: changed})])
    shown = {(json.dumps(group.conditions), run.method, run.task, run.size) for group in groups for run in group.runs}
    assert len(shown) == 2, f"{option} is not shown"


def test_a_field_is_of_the_kind_of_the_option_that_it_records() -> None:
    for field in FIELDS:
        if field.option:
            kind = option_kind(field.option)
            assert field.shown or kind in ("repeat", "setting"), f"{field.path}: an axis is shown"
            assert not (field.shown and kind in ("repeat", "harmless")), f"{field.path}: a repeat is not"
        assert field.option or not field.path.startswith(("data.", "fit.optimizer.")) or field.path in OF_NO_OPTION
    assert option_kind("data.split_seed") == "setting", "another seed tests on other images"
