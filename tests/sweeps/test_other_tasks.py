"""Points that are selected on the other tasks, and final runs at every point: the rule, the plan, a complete sweep."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from replora.cli.main import main
from replora.results import read_results, write_json
from replora.sweeps.cost import describe_plan
from replora.sweeps.local_queue import LocalQueue
from replora.sweeps.part import Part, named_cells, only_named
from replora.sweeps.plan import Sweep, Trial
from replora.sweeps.select import Rule, Selection, select_points, selection_rule, write_rule
from replora.sweeps.sweep import run_sweep, selections_so_far
from replora.sweeps.sweep_file import SweepError, read_sweep
from replora.sweeps.trial import TrialError
from tests.sweeps.small_sweep import SMALL, write_sweep

OTHERS = Rule(source="other_tasks")
RATES = (0.1, 0.2, 0.4)
# The best rate of each task differs from the one that the others choose; c's values hardly depend on the rate.
VALUES = {"a": (0.9, 0.5, 0.4), "b": (0.1, 0.2, 0.5), "c": (0.30, 0.32, 0.31)}
CHOSEN = {"a": "lr=0.4", "b": "lr=0.1", "c": "lr=0.1"}
OWN = {"a": "lr=0.1", "b": "lr=0.4", "c": "lr=0.2"}


def planned(folder: Path, **changes: Any) -> Sweep:
    """LoRA at three rates on tasks that need no data."""
    content = {
        "tasks": {"data.task": list(VALUES)},
        "methods": {"LoRA": {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.lr": list(RATES)}}},
        "select": SMALL["select"] | {"source": "other_tasks"},
        "final": SMALL["final"] | {"points": "all"},
    }
    folder.mkdir(exist_ok=True)
    return read_sweep(write_sweep(folder / "s.yaml", **(content | changes)))


def value_of(trial: Trial) -> float | None:
    return VALUES[trial.task.options["data.task"]][RATES.index(trial.grid.options["model.optimizer.lr"])]


def measured(value: float | None) -> dict[str, Any]:
    return {"fit": {"metrics": {"val/accuracy": value}}} if value is not None else {"sweep": {"failed": "nan"}}


def chosen(sweep: Sweep, rule: Rule, value=value_of) -> dict[str, Selection]:
    """Task -> selection."""
    assert sweep.select
    results = [(trial, measured(value(trial))) for trial in sweep.selection_trials()]
    found = select_points(sweep.select, results, rule)
    return {task.partition("=")[2]: selection for (_, task, _), selection in found.items()}


def remarks(report: Path) -> Counter[str]:
    """How many selections of a report have a remark."""
    with (report / "choices.csv").open(encoding="utf-8") as stream:
        return Counter(remark for row in csv.DictReader(stream) for remark in row["remark"].split(", "))


def points(selections: dict[str, Selection]) -> dict[str, str]:
    return {task: selection.point.name for task, selection in selections.items()}


def test_the_point_with_the_least_mean_regret_on_the_other_tasks(tmp_path):
    sweep = planned(tmp_path)
    assert points(chosen(sweep, Rule())) == OWN
    found = chosen(sweep, OTHERS)
    assert points(found) == CHOSEN
    for task, selection in found.items():
        others = [values for name, values in VALUES.items() if name != task]
        regrets = [statistics.fmean(max(values) - values[place] for values in others) for place in range(3)]
        assert selection.point.options["model.optimizer.lr"] == RATES[regrets.index(min(regrets))]
        assert selection.means == pytest.approx(
            {f"lr={rate:g}": statistics.fmean(v[place] for v in others) for place, rate in enumerate(RATES)}
        )
    recorded = found["a"].describe()
    assert (recorded["source"], recorded["point"]) == ("other_tasks", {"model.optimizer.lr": 0.4})


def test_the_task_itself_has_no_say(tmp_path):
    """Not even by a run that diverged; one that diverged on another task excludes its point."""
    sweep = planned(tmp_path)

    def changed(trial):
        return None if trial.task.name == "task=a" else value_of(trial)

    assert points(chosen(sweep, OTHERS, changed)) == {"a": CHOSEN["a"]}

    def diverged(trial):
        return None if (trial.task.name, trial.grid.name) == ("task=b", "lr=0.4") else value_of(trial)

    found = chosen(sweep, OTHERS, diverged)
    assert points(found) == CHOSEN | {"a": "lr=0.2"}
    assert found["a"].means["lr=0.4"] is None


def test_ties_noise_and_sizes(tmp_path):
    """Ties go to the middle; noise is that of the paired difference over the other tasks; sizes may share a point."""
    sweep = planned(tmp_path)
    (tied,) = {(s.point.name, s.found.tied, s.found.noise) for s in chosen(sweep, OTHERS, lambda _: 0.5).values()}
    assert tied == ("lr=0.2", 2, True)
    assert chosen(sweep, OTHERS)["a"].found.noise, "b and c disagree"
    assert not chosen(sweep, OTHERS, lambda trial: trial.grid.options["model.optimizer.lr"])["a"].found.noise
    two = planned(tmp_path / "two", sizes={"data.shots": [1, 2]})

    def reversed_at_two(trial):
        return value_of(trial) * (1 if trial.size.name == "shots=1" else -2)

    for choice, count in (("per_size", 2), ("per_method", 1)):
        results = [(trial, measured(reversed_at_two(trial))) for trial in two.selection_trials()]
        found = select_points(two.select, results, Rule(choice=choice, source="other_tasks"))
        assert len({s.point.name for (_, task, _), s in found.items() if task == "task=a"}) == count
        assert found["LoRA", "task=a", "shots=1"].point.name == ("lr=0.4" if count == 2 else "lr=0.1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": None}, "other_tasks needs at least 3 tasks, .*there is no axis `tasks`"),
        ({"tasks": {"data.task": ["a", "b"]}}, "there is task=a, task=b. Add tasks, or take own_task"),
        (
            {"select": SMALL["select"] | {"source": "others"}},
            "source 'others' is not known. It must be 'own_task' or 'o",
        ),
        ({"final": SMALL["final"] | {"points": "some"}}, "points 'some' is not known. It must be 'selected' or 'all'"),
        ({"final": SMALL["final"] | {"source": "own_task"}}, "final: there is no key 'source'"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(SweepError, match=message):
        planned(tmp_path, **changes)


def test_every_point_needs_a_selection(tmp_path):
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"]}}
    with pytest.raises(SweepError, match=r"points: all .* needs a stage `select`"):
        planned(tmp_path, methods=methods, select=None)


def written(home: Path, trial: Trial, content: dict[str, Any]) -> None:
    (home / trial.folder).mkdir(parents=True)
    (home / trial.folder / "trial.json").write_text(json.dumps({"arguments": trial.arguments}))
    write_json(home / trial.folder / "results.json", {"format": 1, "sweep": {}} | content)


def test_final_runs_at_every_point(tmp_path):
    """Their directories and their number are known before anything is selected."""
    sweep = planned(tmp_path)
    finals = sweep.planned_final_trials()
    assert len(finals) == 3 * 3 * 2
    assert finals[0].folder == "final/task=a/LoRA/shots=1/lr=0.1/seed=0"
    assert [trial.folder for trial in finals] == [
        trial.folder for trial in sweep.final_trials(dict.fromkeys(sweep.cells(), sweep.methods[0].grid[0]))
    ]
    assert all(f"--model.optimizer.lr={t.grid.options['model.optimizer.lr']}" in t.arguments for t in finals)
    assert "27 trials (9 to select + 18 final), 27 to run" in describe_plan(sweep, tmp_path / "runs", 1)
    assert len(Part(shard=(1, 2)).planned(sweep)) == 5 + 9


def test_a_task_waits_for_the_others_alone(tmp_path, capsys):
    sweep = planned(tmp_path)
    for trial in sweep.selection_trials():
        if trial.task.name != "task=a":
            written(tmp_path, trial, measured(value_of(trial)))
    rule = selection_rule(tmp_path, source="other_tasks")
    write_rule(tmp_path, rule)
    assert rule == OTHERS == selection_rule(tmp_path, source="other_tasks"), "as selection.json records it"
    assert {cell[1] for cell in selections_so_far(sweep, tmp_path, rule)} == {"task=a"}
    assert "for 2 of 3 combinations" in capsys.readouterr().out
    ready, waiting = (Part(cells=named_cells(sweep, tasks=[task])) for task in ("a", "b"))
    assert {cell[1] for cell in selections_so_far(sweep, tmp_path, rule, ready)} == {"task=a"}
    assert capsys.readouterr().out == ""
    assert selections_so_far(sweep, tmp_path, rule, waiting) == {}, "though its own grid is whole"
    shown = capsys.readouterr().out
    assert "for 1 of 1 combinations" in shown
    assert {line.split("/")[1] for line in shown.splitlines() if line.startswith("  select/")} == {"task=a"}


def test_only_these_tasks_select_for_each_other(tmp_path: Path, capsys: Any) -> None:
    """A fourth task is part of the sweep, and waited for, unless the command says that three are all of it."""
    sweep = planned(tmp_path, tasks={"data.task": [*VALUES, "d"]})
    for trial in sweep.selection_trials():
        if trial.task.name != "task=d":
            written(tmp_path / "runs", trial, measured(value_of(trial)))
    part = Part(cells=named_cells(sweep, tasks=list(VALUES)))
    assert selections_so_far(sweep, tmp_path / "runs", OTHERS, part) == {}
    small = only_named(sweep, tasks=list(VALUES))
    found = selections_so_far(small, tmp_path / "runs", OTHERS)
    assert {cell[1].partition("=")[2]: selection.point.name for cell, selection in found.items()} == CHOSEN
    capsys.readouterr()
    options = [f"--config={tmp_path / 's.yaml'}", f"--out={tmp_path / 'runs'}", "--tasks=[a,b,c]", "--list=true"]
    main(["sweep", *options, "--only_these=true"])
    shown = capsys.readouterr().out
    assert (shown.count("select/"), shown.count("final/")) == (9, 18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--only_these names nothing. Add --methods, --tasks or --sizes"),
        (["--tasks=[a,b]"], "--only_these: source: other_tasks needs at least 3 tasks.*there is task=a, task=b"),
        (["--tasks=[a,e]"], "has no task 'e'"),
    ],
)
def test_too_few_of_these_are_refused(options: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    planned(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["sweep", f"--config={tmp_path / 's.yaml'}", "--only_these=true", "--dry_run=true", *options])
    assert ended.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_sweep_end_to_end(tmp_path, monkeypatch, capsys):
    """Three tasks, two rates. Started again with another rule for the sizes, it runs nothing and records the rule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = write_sweep(
        Path("s.yaml"),
        base=["small_images.yaml"],
        options=SMALL["options"] | {"model.pretrained": True},  # random weights differ with the number of classes
        tasks={"data.task": ["digits", "sprites_location", "sprites_orientation"]},
        methods={"LoRA": SMALL["methods"]["LoRA"]},
        select=SMALL["select"] | {"source": "other_tasks"},
        final={"seeds": [0], "options": {"data.protocol": "holdout"}, "points": "all"},
    )
    main(["sweep", f"--config={file}", "--shard=1/1"])
    shown = capsys.readouterr().out
    assert "chosen on the validation images of the other tasks" in shown
    main(["sweep", f"--config={file}", "--list=true"])
    assert capsys.readouterr().out.count("done") == 12
    results = [read_results(file.parent) for file in Path("runs/s").rglob("results.json")]
    selected = [r["sweep"]["grid"] == r["sweep"]["chosen_by"]["point"] for r in results if "test" in r]
    assert selected.count(True) == selected.count(False) == 3
    report = Path("runs/s/report")
    with (report / "shots_regret.csv").open(encoding="utf-8") as stream:
        (line,) = csv.DictReader(stream)
    assert (line["tasks"], line["rates in the window"]) == ("3", "2")
    assert remarks(report)["other tasks"] == 3
    assert "0 validation labels of the task itself" in (report / "report.md").read_text(encoding="utf-8")
    main(["sweep", f"--config={file}", "--shard=1/1", "--choice=per_method"])
    assert "val/accuracy" not in capsys.readouterr().out, "nothing is run"
    results = [read_results(file.parent) for file in Path("runs/s/final").rglob("results.json")]
    assert {r["sweep"]["chosen_by"]["choice"] for r in results} == {"per_method"}
    main(["sweep", f"--config={file}", "--shard=1/1", "--source=own_task"])
    shown = capsys.readouterr().out
    assert "chosen on the validation images\n" in shown
    assert "val/accuracy" not in shown, "nothing is run"
    results = [read_results(file.parent) for file in Path("runs/s/final").rglob("results.json")]
    assert {r["sweep"]["chosen_by"]["source"] for r in results} == {"own_task"}
    assert remarks(report)["other tasks"] == 0, "the first stage was run for them, and selects for itself now"
    assert "0 validation labels of the task itself" not in (report / "report.md").read_text(encoding="utf-8")


def test_a_refused_command_leaves_what_others_record(tmp_path: Path) -> None:
    """In a directory that holds trials with other options, a new rule of selection is not theirs."""
    own = planned(tmp_path / "own", select=SMALL["select"])
    for trial in own.selection_trials():
        arguments = [*trial.arguments, "--data.batch_size=3"]
        (tmp_path / "home" / trial.folder).mkdir(parents=True)
        (tmp_path / "home" / trial.folder / "trial.json").write_text(json.dumps({"arguments": arguments}))
        label = {"sweep": {"chosen_by": {"source": "own_task"}}}
        write_json(tmp_path / "home" / trial.folder / "results.json", {"format": 1} | measured(0.5) | label)
    files = {file: file.read_bytes() for file in (tmp_path / "home").rglob("results.json")}
    with pytest.raises(TrialError, match="holds a trial with other options"):
        run_sweep(planned(tmp_path / "others"), tmp_path / "home", LocalQueue(1, 0))
    assert len(files) == 9
    assert {file: file.read_bytes() for file in files} == files


def test_the_command_line_has_the_last_word_on_whose_runs_select(tmp_path: Path, capsys: Any) -> None:
    file = write_sweep(tmp_path / "s.yaml", tasks={"data.task": list(VALUES)})
    (there, here) = read_sweep(file), read_sweep(file, source="other_tasks")
    assert there.select
    assert here.select
    assert (there.select.source, here.select.source) == ("own_task", "other_tasks")
    assert here.selection_trials() == there.selection_trials()
    for changes, message in (
        ({"tasks": None}, "source: other_tasks needs at least 3 tasks"),
        ({"select": None, "methods": {"LoRA": {"configs": ["adapter/lora.yaml"]}}}, "there is nothing for source: oth"),
    ):
        write_sweep(file, **changes)
        with pytest.raises(SystemExit) as ended:
            main(["sweep", f"--config={file}", "--source=other_tasks", "--dry_run=true"])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
