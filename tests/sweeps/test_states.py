"""Sweeps that begin in a directory of any state, with trials that train nothing: which run, and what is changed."""

from __future__ import annotations

import errno
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from replora.cli.main import main
from replora.results import write_json
from replora.sweeps.local_queue import LocalQueue
from replora.sweeps.part import WHOLE, Part
from replora.sweeps.plan import Trial
from replora.sweeps.scheduler import Job, Outcome, Scheduler
from replora.sweeps.select import Rule, selection_rule
from replora.sweeps.state import state_of
from replora.sweeps.sweep import UnfinishedSweepError, has_ended, run_sweep
from replora.sweeps.trial import TrialError, reason_of_failure
from tests.sweeps.instant import at_rate, planned, results_of, run, select_again
from tests.sweeps.small_sweep import SMALL


@pytest.mark.parametrize("lost", [("trial.json",), ("trial.json", "results.json")])
def test_a_corrupt_final_trial_alone_runs_again(tmp_path: Path, lost: tuple[str, ...]) -> None:
    """Also where `trial.json` was not copied and the results are corrupt."""
    sweep, home = planned(tmp_path), tmp_path / "home"
    run(sweep, home)
    first = "final/LoRA/shots=1/seed=0"
    (home / first / lost[0]).unlink()
    (home / first / lost[-1]).write_bytes(b"\0" * 9)
    assert run(sweep, home) == [first]
    assert run(sweep, home) == []


def test_a_grid_over_lists_and_mappings(tmp_path: Path) -> None:
    """Its points are compared, not hashed; the third is in the middle of five."""
    options = [[0.9, 0.99], [0.9, 0.999], {"a": [1]}, None, [0.9, 0.9]]
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.betas": options}}}
    sweep = planned(tmp_path, methods=methods)
    finals = run(sweep, tmp_path / "home")[-2:]
    assert results_of(tmp_path / "home", finals[0])["sweep"]["grid"] == {"model.optimizer.betas": {"a": [1]}}
    assert run(sweep, tmp_path / "home") == []


def test_a_retry_of_failed_trials_changes_no_finished_one(tmp_path: Path) -> None:
    """Another point is selected meanwhile: a final trial that failed moves there, one that has ended stays."""
    sweep, home = planned(tmp_path), tmp_path / "home"
    run(sweep, home, at_rate(0.01))
    done, failed = (f"final/LoRA/shots=1/seed={seed}" for seed in (0, 1))
    (home / failed / "results.json").unlink()
    (home / failed / "error.txt").write_text("The disk was full.")
    before = results_of(home, done)
    select_again(sweep, home, at_rate(0.02))
    assert run(sweep, home, part=Part(failed=True)) == [failed]
    assert results_of(home, done) == before
    assert results_of(home, failed)["sweep"]["grid"] == {"model.optimizer.lr": 0.02}
    assert run(sweep, home) == [done]


def test_nothing_is_set_aside_where_a_sweep_is_refused(tmp_path: Path) -> None:
    """One final trial is at a former point, the next one has other options."""
    sweep, home = planned(tmp_path), tmp_path / "home"
    run(sweep, home, at_rate(0.01))
    select_again(sweep, home, at_rate(0.02))
    other = home / "final/LoRA/shots=1/seed=1/trial.json"
    other.write_text(other.read_text().replace("--data.batch_size=8", "--data.batch_size=3"))
    with pytest.raises(TrialError, match="holds a trial with other options"):
        run(sweep, home)
    assert results_of(home, "final/LoRA/shots=1/seed=0")["sweep"]["grid"] == {"model.optimizer.lr": 0.01}


@pytest.mark.parametrize(
    ("part", "lacking", "stage"),
    [
        (WHOLE, "lr=0.01", "select"),
        (Part(failed=True), "lr=0.01", "select"),
        (Part(shard=(1, 2)), "lr=0.01", "select"),
        (Part("final", folder="final/LoRA/shots=1/seed=0"), "final/LoRA/shots=1/seed=0", "final"),
        (Part(cells=frozenset({("LoRA", "", "shots=2")})), "final/LoRA/shots=2", "final"),
    ],
)
def test_every_part_is_compared_with_the_defaults_of_finished_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part, lacking: str, stage: str
) -> None:
    """Also where none of them is of the part."""
    sweep, home = planned(tmp_path, sizes={"data.shots": [1, 2]}), tmp_path / "home"
    for folder in run(sweep, home, at_rate(0.02)):
        (home / folder / "fit.yaml").touch()
        if lacking in folder:
            (home / folder / "results.json").unlink()
            (home / folder / "error.txt").write_text("The disk was full.")

    def differs(_: Path, trial: Trial) -> None:
        assert trial.grid.name == "lr=0.02", "the point that it has been run at"
        raise TrialError(f"{trial.folder} was begun with other defaults")

    monkeypatch.setattr("replora.sweeps.sweep.check_same_configuration", differs)
    with pytest.raises(TrialError, match=f"^{stage}/.* was begun with other defaults"):
        run(sweep, home, part=part)


def test_a_refused_command_changes_no_rule(tmp_path: Path) -> None:
    sweep, home = planned(tmp_path), tmp_path / "home"
    run(sweep, home)
    rule = (home / "selection.json").read_bytes()
    other = planned(tmp_path, options=SMALL["options"] | {"data.batch_size": 3})
    for part in (WHOLE, Part("final"), Part(failed=True)):
        with pytest.raises(TrialError, match="holds a trial with other options"):
            run(other, home, part=part, choice="per_method")
        assert (home / "selection.json").read_bytes() == rule
    (home / "selection.json").unlink()
    with pytest.raises(TrialError, match="holds a trial with other options"):
        run(other, home)
    assert not (home / "selection.json").exists()


def test_the_rule_is_written_before_a_trial_runs_and_only_where_it_changes(tmp_path: Path) -> None:
    sweep, home = planned(tmp_path), tmp_path / "home"
    seen: list[str] = []

    def value(_: Trial) -> float:
        seen.append((home / "selection.json").read_text())
        return 0.5

    run(sweep, home, value)
    assert len(set(seen)) == 1
    before = (home / "selection.json").stat().st_mtime_ns
    run(sweep, home)
    assert (home / "selection.json").stat().st_mtime_ns == before
    run(sweep, home, choice="per_method")
    assert json.loads((home / "selection.json").read_text())["choice"] == "per_method"


def test_without_its_file_the_rule_is_that_of_the_final_runs(tmp_path: Path) -> None:
    """As the message about a corrupt file asks to delete it."""
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.lr": [0.01, 0.02, 0.04]}}}
    sweep, home = planned(tmp_path, methods=methods), tmp_path / "home"
    run(sweep, home, choice="per_method")
    final = "final/LoRA/shots=1/seed=0"
    assert results_of(home, final)["sweep"]["grid"] == {"model.optimizer.lr": 0.02}, "the middle of three"
    (home / "selection.json").unlink()
    (home / "final/LoRA/shots=1/seed=1/results.json").write_text("")
    assert selection_rule(home) == Rule("middle", "per_method")
    assert run(sweep, home) == ["final/LoRA/shots=1/seed=1"]
    assert json.loads((home / "selection.json").read_text())["choice"] == "per_method"
    for folder in (final, "final/LoRA/shots=1/seed=1"):
        content = results_of(home, folder)
        del content["sweep"]["chosen_by"]["ties"]
        write_json(home / folder / "results.json", content)
    (home / "selection.json").unlink()
    assert selection_rule(home) == Rule("lowest", "per_method"), "of a release in which the first of equal ones won"


def test_where_every_point_diverged_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a result: by no part of the sweep is a final run promised or missed, and the last one writes the report."""
    sweep, home = planned(tmp_path, sizes={"data.shots": [1, 2]}), tmp_path / "home"

    def diverged(trial: Trial) -> float | None:
        return None if trial.size.name == "shots=1" else 0.5

    run(sweep, home, diverged, Part("select"))
    assert "nothing: every point diverged" in capsys.readouterr().out
    for part in (Part(shard=(1, 2)), Part("final", shard=(2, 2)), Part("final"), Part(failed=True), WHOLE):
        assert not any("shots=1" in folder for folder in run(sweep, home, part=part))
        shown = capsys.readouterr().out
        assert "final trials wait" not in shown
        assert "No point is left for 1 of 2 combinations" in shown
        assert "\n  LoRA, shots=1\n" in shown
    reported: list[Path] = []
    monkeypatch.setattr("replora.sweeps.sweep.check_sweep", lambda _: None)
    monkeypatch.setattr("replora.cli.commands.sweep._report", lambda _, folder: reported.append(folder))
    options = ["sweep", f"--config={tmp_path / 's.yaml'}", f"--out={home}"]
    main([*options, "--shard=1/2"])
    assert reported == [home]
    capsys.readouterr()
    main([*options, "--status=true"])
    shown = capsys.readouterr().out
    assert re.search(r"select \W+4 \W+0 \W+0 \W+0 \W", shown)
    assert re.search(r"final \W+2 \W+0 \W+0 \W+0 \W", shown)
    assert "no final trial: LoRA, shots=1: each point of its grid has a run that diverged" in shown
    main([*options, "--dry_run=true"])
    assert "6 trials (4 to select + 2 final), 0 to run: nothing to do" in capsys.readouterr().out
    (home / "final/LoRA/shots=2/seed=0/results.json").unlink()
    main([*options, "--trial=select/LoRA/shots=1/lr=0.01/seed=0"])
    assert reported == [home], "a final run of the other size is left"


def test_a_selection_that_waits_is_no_divergence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, home = planned(tmp_path), tmp_path / "home"
    run(sweep, home, lambda _: None, Part("select", folder="select/LoRA/shots=1/lr=0.01/seed=0"))
    with pytest.raises(UnfinishedSweepError, match=r"2 trials failed:(.|\n)*no point is selected yet"):
        run(sweep, home, part=Part("final"))
    assert "No point is left" not in capsys.readouterr().out
    main(["sweep", f"--config={tmp_path / 's.yaml'}", f"--out={home}", "--status=true"])
    assert re.search(r"final \W+0 \W+0 \W+0 \W+2 \W", capsys.readouterr().out)


class Dying(Scheduler):
    """Its workers die in each trial, and write nothing."""

    def start(self, _home: Path, _sweep: str, job: Job) -> str:
        self.folder = job.trial.folder
        return self.folder

    def wait(self) -> list[str]:
        return [self.folder]

    def outcome(self, _running: Any) -> Outcome:
        return None, "its process died (out of memory?)", []

    def capacity(self) -> int:
        return 1


@pytest.mark.parametrize("queue", [Dying(failures=1), LocalQueue(threads=1, failures=1)])
def test_a_trial_that_left_no_error_has_failed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Scheduler | LocalQueue
) -> None:
    """`--status` says so, and `--retry_failed` runs it; what the trial itself has written stays."""

    def dies(*_: object) -> NoReturn:
        raise TrialError("its process died (out of memory?)")

    monkeypatch.setattr("replora.sweeps.local_queue.run_trial", dies)
    sweep, home = planned(tmp_path), tmp_path / "home"
    first, second = sweep.selection_trials()
    (home / second.folder).mkdir(parents=True)
    (home / second.folder / "error.txt").write_text("The disk was full.")
    with pytest.raises(UnfinishedSweepError, match=f"{first.folder}: its process died"):
        run_sweep(sweep, home, queue, part=Part("select"))
    assert [state_of(home, trial) for trial in (first, second)] == ["failed", "failed"]
    assert [reason_of_failure(home, trial) for trial in (first, second)] == [
        "its process died (out of memory?)",
        "The disk was full.",
    ]
    assert run(sweep, home, part=Part("select", failed=True)) == [first.folder, second.folder]
    assert [state_of(home, trial) for trial in (first, second)] == ["done", "done"]


def test_a_full_disk_ends_no_other_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of a failure cannot be noted then; the failure itself is told all the same."""

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("replora.sweeps.scheduler.claimed", full)
    with pytest.raises(UnfinishedSweepError, match=r"^2 trials failed"):
        run_sweep(planned(tmp_path), tmp_path / "home", Dying(failures=0), part=Part("select"))


@pytest.mark.parametrize("stages", [{}, {"methods": {"LoRA": {"configs": ["adapter/lora.yaml"]}}, "select": None}])
def test_finished_trials_name_the_sweep_as_its_file_is_called_now(tmp_path: Path, stages: dict[str, Any]) -> None:
    """A file that was renamed, with the same directory: a report has one section."""
    sweep, home = planned(tmp_path, **stages), tmp_path / "home"
    folders = run(sweep, home)
    before = {folder: results_of(home, folder) for folder in folders}
    again = replace(sweep, name="renamed")
    assert run(again, home) == []
    assert {results_of(home, folder)["sweep"]["name"] for folder in folders} == {"renamed"}
    assert run(sweep, home) == []
    assert {folder: results_of(home, folder) for folder in folders} == before


def test_a_part_with_options_of_its_own_goes_on(tmp_path: Path) -> None:
    """Another machine may have the data elsewhere: trials that are not of the part are compared in theirs."""
    sizes = {"data.shots": [1, 2]}
    first, second = (Part(cells=frozenset({("LoRA", "", f"shots={shots}")})) for shots in (1, 2))
    for part, root in ((first, "here"), (second, "there")):
        sweep = planned(tmp_path, sizes=sizes, options=SMALL["options"] | {"data.root": root})
        for folder in run(sweep, tmp_path / "home", part=part):
            (tmp_path / "home" / folder / "fit.yaml").touch()
    assert len(list((tmp_path / "home").rglob("results.json"))) == 8
    final = tmp_path / "home/final/LoRA/shots=1/seed=0/results.json"
    final.unlink()
    assert not has_ended(sweep, tmp_path / "home")


@pytest.mark.parametrize("options", [{"choice": "per_method"}, {"part": Part("select"), "choice": "per_method"}])
def test_final_trials_of_another_sweep_refuse_a_command_before_it_changes_the_first_stage(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Where the first stage has ended, nothing is recorded until the second one is compared, if it is asked for."""
    sweep, home = planned(tmp_path), tmp_path / "home"
    run(sweep, home)
    final = home / "final/LoRA/shots=1/seed=1/trial.json"
    final.write_text(final.read_text().replace("--data.batch_size=8", "--data.batch_size=3"))
    before = {file: file.read_bytes() for file in home.rglob("*.json")}
    with (
        pytest.raises(TrialError, match="holds a trial with other options") if "part" not in options else nullcontext()
    ):
        run(sweep, home, **options)
    after = {file: file.read_bytes() for file in home.rglob("*.json")}
    assert (after == before) == ("part" not in options)
