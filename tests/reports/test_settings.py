"""Two runs that differ in one option are the same run by declaration, or the report shows the difference."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from replora.identity import configuration_sha256, differing_options, flat_options, option_kind
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


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name, content in {"old": recorded(OPTIONS), "new": recorded(OPTIONS)}.items():
        content["fit"]["date"] = content["test"]["date"] = {"old": "2026-11-01", "new": "2026-11-02"}[name]
        further = {**content["test"], "data": {"split": "test", "size": 3, "sha256": "x", "seen_in_training": 2}}
        content["evaluations"].append(further)
        del content["test"]
        (runs / name).mkdir(parents=True)
        (runs / name / "results.json").write_text(json.dumps(content))
    (runs / "broken").mkdir()
    (runs / "broken" / "results.json").write_text("{")
    (runs / "foreign").mkdir()
    (runs / "foreign" / "results.json").write_text("[1, 2]")
    write_report([runs], tmp_path / "report")
    page = " ".join((tmp_path / "report" / "report.md").read_text("utf-8").split())
    assert "newer one of the same setting and seeds replaces: RepLoRAConfig run aaaaaaaa of 2026-11-01" in page
    assert "test of 3 examples by last epoch, test/accuracy 0.5, on examples that it was trained on" in page
    assert f"{runs / 'broken' / 'results.json'} is corrupt" in page
    assert f"{runs / 'foreign' / 'results.json'} is not a results file" in page


def of_sweep(configuration: dict[str, Any], seed: int, trial: str) -> dict[str, Any]:
    content = recorded(configuration | {"seed_everything": seed})
    content["fit"]["seed"] = seed
    sweep = {"name": "s", "stage": "final", "method": "LoRA", "seed": seed, "trial": trial}
    return content | {"sweep": sweep | {"task": {}, "size": {}, "grid": {}}}


def test_runs_of_one_sweep_with_other_options_are_not_averaged() -> None:
    one, two = of_sweep(OPTIONS, 0, "a"), of_sweep(OPTIONS | {"model.label_smoothing": 0.1}, 1, "b")
    group_runs([one, of_sweep(OPTIONS, 1, "b")])
    with pytest.raises(ReportError, match=r"model\.label_smoothing is 0\.0 in one and 0\.1 in b"):
        group_runs([one, two])


def test_the_report_of_a_sweep_leaves_out_and_names_what_its_file_no_longer_has(tmp_path: Path) -> None:
    for trial in ("final/LoRA/seed=0", "final/LoRA/seed=1"):
        content = of_sweep(OPTIONS, int(trial[-1]), trial)
        del content["test"]
        (tmp_path / trial).mkdir(parents=True)
        (tmp_path / trial / "results.json").write_text(json.dumps(content))
    write_report([tmp_path], tmp_path / "report", {"final/LoRA/seed=0"})
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "1 runs: 1 measured on test data" in page
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
