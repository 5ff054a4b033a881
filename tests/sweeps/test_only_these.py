"""`sweep --only_these`: what --methods, --tasks and --sizes name is all there is, for numbers and reports as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from replora.cli.main import main
from replora.sweeps.part import Part, only_named
from replora.sweeps.plan import Sweep, Trial
from tests.sweeps.instant import Instant, planned, results_of, run
from tests.sweeps.small_sweep import SMALL

SMALLER = ["--sizes=[2]", "--only_these=true"]


class InstantWorkers(Instant):
    """In the place of processes."""

    def __enter__(self) -> InstantWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def here(folder: Path, *options: str) -> None:
    main(["sweep", f"--config={folder / 's.yaml'}", f"--out={folder / 'home'}", *options])


def test_a_trial_has_the_number_that_the_list_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path, sizes={"data.shots": [1, 2]})
    here(tmp_path, *SMALLER, "--list=true")
    listed = {line.split()[0]: line.split()[2] for line in capsys.readouterr().out.splitlines()}
    asked: list[str | None] = []

    def remember(_sweep: Sweep, _home: Path, _queue: object, _choice: object, part: Part) -> None:
        asked.append(part.folder)

    monkeypatch.setattr("replora.sweeps.sweep.run_sweep", remember)
    for number in listed:
        here(tmp_path, *SMALLER, f"--trial={number}")
    assert asked == list(listed.values())
    assert all(folder and "shots=2" in folder for folder in asked)


def test_failures_are_told_although_there_is_nothing_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory holds runs of another size alone."""

    def fails(_: Trial) -> NoReturn:
        raise OSError("The disk is full.")

    sweep = planned(tmp_path, sizes={"data.shots": [1, 2]})
    run(sweep, tmp_path / "home", part=Part(cells=frozenset({("LoRA", "", "shots=1")})))
    monkeypatch.setattr("replora.sweeps.sweep.check_sweep", lambda _: None)

    def workers(*_: Any) -> InstantWorkers:
        return InstantWorkers(fails)

    monkeypatch.setattr("replora.sweeps.local_workers.LocalWorkers", workers)
    with pytest.raises(SystemExit) as ended:
        here(tmp_path, *SMALLER, "--workers=1")
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "2 trials failed:\n  select/LoRA/shots=2/lr=0.01/seed=0: The disk is full." in shown
    assert "There is no report: " in shown


def test_results_name_the_tasks_and_sizes_that_decided(tmp_path: Path) -> None:
    """Where they are others than those of the run: reports count and select by them."""
    tasks, sizes = [{"data.task": name} for name in "abcd"], [{"data.shots": 1}, {"data.shots": 2}]
    select = SMALL["select"] | {"source": "other_tasks"}
    sweep = planned(tmp_path, tasks={"data.task": list("abcd")}, sizes={"data.shots": [1, 2]}, select=select)
    home, first = tmp_path / "home", ("select/task=a/LoRA/shots=1/lr=0.01/seed=0", "final/task=a/LoRA/shots=1/seed=0")
    run(only_named(sweep, tasks=["a", "b", "c"]), home)
    for folder in first:
        label = results_of(home, folder)["sweep"]["chosen_by"]
        assert (label["tasks"], "sizes" in label) == (tasks[1:3], False)
    run(sweep, home, choice="per_method")
    for folder in first:
        label = results_of(home, folder)["sweep"]["chosen_by"]
        assert (label["tasks"], label["sizes"]) == (tasks[1:], sizes)
    own = replace(sweep, select=replace(sweep.select, source="own_task"))  # type: ignore[type-var]
    run(own, home, choice="per_size")
    assert not {"tasks", "sizes"} & results_of(home, first[1])["sweep"]["chosen_by"].keys()
    assert run(own, home) == []
