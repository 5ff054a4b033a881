"""Whole sweeps on Ray, by the command line: both stages, a kill, a failure, a dry run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from replora.cli.commands.sweep import _trials_at_once
from replora.cli.main import main
from replora.errors import RepLoRAError
from replora.results import write_json
from replora.sweeps.cost import describe_plan
from replora.sweeps.select import Rule, selection_rule
from replora.sweeps.sweep import selections_so_far
from replora.sweeps.sweep_file import read_sweep
from replora.sweeps.trial import TrialError, set_aside_other_point
from replora.sweeps.trial import finished as finished_trial
from tests.sweeps.small_sweep import SMALL, write_sweep

pytest.importorskip("ray", reason="the extra [sweep] is not installed")


def written(home: Path, trial, value: float | None, seconds: float = 1.0) -> None:
    """A trial that has ended: diverged where there is no value."""
    folder = home / trial.folder
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"arguments": trial.arguments}))
    fit = {"metrics": {"val/accuracy": value}, "seconds": seconds}
    outcome = {"fit": fit, "sweep": {}} if value else {"sweep": {"failed": "nan"}}
    write_json(folder / "results.json", {"format": 1, **outcome})


def test_a_grid_with_a_trial_missing_is_not_chosen_from(tmp_path, capsys):
    """It would have fewer points than the others'; a trial that diverged has ended."""
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml"))
    trials = sweep.selection_trials()
    assert [trial.method for trial in trials] == ["LoRA", "LoRA", "RepLoRA", "RepLoRA"]
    for trial, value in zip(trials[:3], (None, 0.5, 0.6), strict=True):
        written(tmp_path, trial, value)
    assert set(selections_so_far(sweep, tmp_path, Rule())) == {("LoRA", "", "shots=1")}
    shown = capsys.readouterr().out
    assert "no final trial starts, for 1 of 2 combinations" in shown
    assert trials[3].folder in shown
    written(tmp_path, trials[3], 0.4)
    assert selections_so_far(sweep, tmp_path, Rule())["RepLoRA", "", "shots=1"].point.name == "lr=0.005"
    assert capsys.readouterr().out == ""


def test_a_final_trial_under_the_former_rule_for_ties_stays_valid(tmp_path):
    """Two of three rates are equally good: the lowest has a final run and stays; a new sweep takes the middle."""
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.lr": [0.005, 0.01, 0.02]}}}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", methods=methods))
    for home in (tmp_path / "old", tmp_path / "new"):
        for trial, value in zip(sweep.selection_trials(), (0.5, 0.5, 0.4), strict=True):
            written(home, trial, value)
    cell = ("LoRA", "", "shots=1")
    final = sweep.final_trials({cell: sweep.methods[0].grid[0]})[0]
    written(tmp_path / "old", final, 0.5)
    for _ in range(2):  # also when it is started again
        kept = selections_so_far(sweep, tmp_path / "old", selection_rule(tmp_path / "old"))[cell].point
        assert kept.name == "lr=0.005"
        assert (
            set_aside_other_point(tmp_path / "old", sweep.final_trials({cell: kept})[0], sweep.methods[0].grid) is None
        )
    assert selections_so_far(sweep, tmp_path / "new", selection_rule(tmp_path / "new"))[cell].point.name == "lr=0.01"


def test_one_point_for_all_sizes_waits_for_all_sizes(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", sizes={"data.shots": [1, 2]}))
    *trials, last = [trial for trial in sweep.selection_trials() if trial.method == "LoRA"]
    for trial in trials:
        written(tmp_path, trial, 0.5)
    assert set(selections_so_far(sweep, tmp_path, Rule())) == {("LoRA", "", "shots=1")}
    assert selections_so_far(sweep, tmp_path, Rule(choice="per_method")) == {}
    written(tmp_path, last, 0.6)
    found = selections_so_far(sweep, tmp_path, Rule(choice="per_method"))
    assert {cell: choice.point.name for cell, choice in found.items()} == dict.fromkeys(found, last.grid.name)
    assert len(found) == 2


def test_results_that_came_alone_are_set_aside_as_well(tmp_path):
    """Without `trial.json` a final trial counted as finished, whatever its point."""
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml"))
    grid = sweep.methods[0].grid
    low, high = (sweep.final_trials({("LoRA", "", "shots=1"): point})[0] for point in grid)
    label = {"sweep": {"grid": dict(low.grid.options)}}
    write_json(tmp_path / low.folder / "results.json", {"format": 1} | label)
    assert set_aside_other_point(tmp_path, low, grid) is None
    assert finished_trial(tmp_path, low)
    assert set_aside_other_point(tmp_path, high, grid) == tmp_path / "final/LoRA/shots=1/seed=0.former-1"
    assert finished_trial(tmp_path, high) is None


def test_the_final_trial_of_a_former_choice_is_set_aside(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml"))
    grid = sweep.methods[0].grid
    low, high = (sweep.final_trials({("LoRA", "", "shots=1"): point})[0] for point in grid)
    written(tmp_path, low, 0.5)
    assert set_aside_other_point(tmp_path, low, grid) is None
    moved = set_aside_other_point(tmp_path, high, grid)
    assert moved == tmp_path / "final/LoRA/shots=1/seed=0.former-1"
    assert finished_trial(tmp_path, high) is None
    assert not list(tmp_path.rglob("results.json")), "no report finds it"
    written(tmp_path, high, 0.5)
    assert set_aside_other_point(tmp_path, low, grid) == tmp_path / "final/LoRA/shots=1/seed=0.former-2"
    other = replace(low, arguments=[*low.arguments, "--data.batch_size=3"])
    written(tmp_path, other, 0.5)
    assert set_aside_other_point(tmp_path, low, grid) is None, "that is another mistake"
    with pytest.raises(TrialError, match="other options"):
        finished_trial(tmp_path, low)


def test_dry_run_prints_trials_and_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "s.yaml", seconds_per_trial=30)
    for options, cost in (
        (["--max_concurrent=1"], "about 4 minutes with 1 at once (30.0 seconds per trial, the sweep's file)"),
        (
            ["--address=auto"],
            "about 4 minutes one after the other (30.0 seconds per trial, the sweep's file); the number of trials",
        ),
        (
            ["--address=auto", "--max_concurrent=2"],
            "about 2 minutes with 2 at once (30.0 seconds per trial, the sweep's",
        ),
    ):
        main(["sweep", "--config=s.yaml", "--dry_run=true", *options])
        shown = capsys.readouterr().out
        assert "to run    select/LoRA/shots=1/lr=0.02/seed=0" in shown
        assert f"8 trials (4 to select + 4 final), 8 to run: {cost}" in shown
        assert ("cluster at auto" in shown) == (options[0] == "--address=auto")
    assert not (tmp_path / "runs").exists()


def test_dry_run_counts_gpus(monkeypatch):
    monkeypatch.setattr("replora.cli.commands.sweep.usable_cpus", lambda: 16)
    assert _trials_at_once(None, 2, 0, None) == (8, "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _trials_at_once(None, 1, 0.5, None)[0] is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert _trials_at_once(None, 1, 0.5, None) == (4, "")
    assert _trials_at_once(None, 1, 1, 1) == (1, "")


def test_dry_run_finds_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "s.yaml", sizes={"data.no_such_option": [1]})
    with pytest.raises(SystemExit):
        main(["sweep", "--config=s.yaml", "--dry_run=true"])
    assert "no_such_option" in capsys.readouterr().err


def test_another_size_says_nothing_of_the_cost(tmp_path):
    """One shot took 10 seconds a trial; fifty of them are taken to last as the file says."""
    methods = {name: {"configs": content["configs"]} for name, content in SMALL["methods"].items()}
    changes = {"sizes": {"data.shots": [1, 50]}, "methods": methods, "select": None, "seconds_per_trial": 400}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", **changes))
    for trial in sweep.only_trials():
        if trial.size.name == "shots=1" and trial.method == "LoRA":
            written(tmp_path, trial, 0.5, seconds=10)
    shown = describe_plan(sweep, tmp_path, 1).splitlines()[-1]
    mean = (2 * 10 + 4 * 400) / 6  # RepLoRA with one shot takes as long as LoRA
    assert (
        f"6 to run: about 27 minutes with 1 at once ({mean:.1f} seconds per trial, from 2 finished ones, of the"
        in shown
    )
    assert shown.endswith("same stage, size and method, and for sizes without any the sweep's file)")


def test_the_estimate_is_of_trials_alike(tmp_path):
    """Finished: 10 seconds at one shot, 100 at two, of LoRA's first stage. RepLoRA's take as long; so do, at first,
    the final ones of each size."""
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", sizes={"data.shots": [1, 2]}, final={"seeds": [0]}))
    for trial in sweep.selection_trials():
        if trial.method == "LoRA":
            written(tmp_path, trial, 0.5, seconds=10 if trial.size.name == "shots=1" else 100)
    shown = describe_plan(sweep, tmp_path, 1).splitlines()[-1]
    assert "12 trials (8 to select + 4 final), 8 to run: about 7 minutes with 1 at once (55.0 seconds" in shown
    assert "from 4 finished ones, of the same stage, size and method where there are any" in shown
    for trial in sweep.selection_trials():
        if trial.method == "RepLoRA" and trial.size.name == "shots=2":
            written(tmp_path, trial, 0.5, seconds=1000)
    for trial in sweep.planned_final_trials():
        if trial.size.name == "shots=2":
            written(tmp_path, trial, 0.5, seconds=1000)
    changed = read_sweep(write_sweep(tmp_path / "s.yaml", options=SMALL["options"] | {"data.batch_size": 4}))
    with pytest.raises(TrialError, match=r"other options(.|\n)*--data.batch_size=8(.|\n)*--data.batch_size=4"):
        describe_plan(changed, tmp_path, 1)
    # Left: two of RepLoRA to select and two final ones, all with one shot, which took 10 seconds in the first stage.
    assert "about 40 seconds with 1 at once (10.0 seconds" in describe_plan(sweep, tmp_path, 1)


def test_mistakes_end_before_ray_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "s.yaml", options=SMALL["options"] | {"model.no_such_option": 1})
    for arguments, message in (
        (["--config=s.yaml"], "no_such_option"),
        (["--config=sweep/quickstart_low_dat"], "Did you mean 'sweep/quickstart_low_data.yaml'"),
        (["--config=s.yaml", "--max_failures=-1"], "--max_failures -1 is too small"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["sweep", *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_more_than_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "s.yaml")
    with pytest.raises(SystemExit):
        main(["sweep", "--config=s.yaml", "--gpus_per_trial=99"])
    assert "A trial needs 99 GPU, but there are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1: .*refused. Start one with `ray start --head`"),
        ("127.0.0.1:99999", "No Ray cluster answers at 127.0.0.1:99999: "),
        ("6379", "--address 6379 is neither HOST:PORT, such as node1:6379, nor auto"),
        ("node1:", "neither HOST:PORT"),
        ("ray://node1:10001", "neither HOST:PORT"),
        ("local", "neither HOST:PORT"),
    ],
)
def test_a_wrong_address_is_named_at_once(address, message):
    """Ray would end the whole process a minute later."""
    from replora.sweeps.executor import Cluster, Resources

    with pytest.raises(RepLoRAError, match=message), Cluster(address, Resources(1, 0, None, 0), 1):
        pass


def test_workers_import_the_libraries_while_the_plan_is_checked():
    """As many as trials are left: each start takes seconds of a sweep."""
    import ray

    from replora.sweeps.executor import Cluster, Resources

    with Cluster(None, Resources(0.5, 0, None, 0), trials=1) as cluster:
        [worker] = cluster.idle
        assert ray.get(worker.import_libraries.remote()) is None
