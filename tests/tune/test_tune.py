"""`replora-cli tune` with trials that write what they would have measured: choices, budgets, interruptions."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replora.cli.commands.tune import options_apart
from replora.cli.main import run as main
from replora.errors import RepLoRAError
from replora.reports.choice import errors_behind
from replora.results import FORMAT
from replora.run_directory import RunDirectoryError, locked
from replora.sweeps.local_queue import LocalQueue
from replora.tune import outcome
from replora.tune import tune as tune_module
from replora.tune.budget import Clock, OutOfTimeError, parse_budget
from replora.tune.plan import Plan, candidate, default_home
from replora.tune.probe import Facts

FACTS = Facts(
    start=0.0, step=0.001, steps=10, sizes={"train": 30, "val": 30}, classes=3, given_validation=False,
    lists={"train": "a"}, eval_batch=60, method="replora",
)  # fmt: skip
CONFIGURATION = {"data.fold": None, "model.optimizer.lr": 0.01, "model.adapter.rank": 8}
PEAK = 0.01


def accuracy(rate: float, fold: int) -> float | str | None:
    """Best at `PEAK`; a value that is text is a divergence, None an error."""
    return round(0.9 - 0.1 * abs(rate - PEAK) / PEAK - 0.01 * fold, 4)


class Machine:
    """Stands in for the fits of a tune."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measure: Callable[[float, int], Any] = accuracy
        self.facts = FACTS
        self.metric = "val/accuracy"
        self.ran: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        monkeypatch.setattr(LocalQueue, "run", self._run)
        monkeypatch.setattr(tune_module, "probe", self._probe)
        monkeypatch.setattr(tune_module, "configuration", lambda _: dict(CONFIGURATION))
        monkeypatch.setattr(tune_module, "summarize", lambda *_: "summary")
        self.draw = outcome.draw
        monkeypatch.setattr(tune_module, "draw", lambda race, _: race.home / "tune.png")  # a second each

    def _probe(self, _: Any, steps: int) -> Facts:
        """Like the real one: no step, no time of a step."""
        return self.facts if steps else replace(self.facts, step=0.0)

    def _run(self, home: Path, sweep: str, trials: list[Any], _: Any, progress: Any) -> None:
        for trial in trials:
            self.before(trial.folder)
            self.ran.append(trial.folder)
            fold = next((int(a[12]) for a in trial.arguments if a.startswith("--data.fold=")), 0)
            value = self.measure(trial.grid.options["model.optimizer.lr"], fold)
            if value is None:
                progress.failed(trial, "No CUDA GPU was found.")
                continue
            folder = home / trial.folder
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "trial.json").write_text(json.dumps({"arguments": trial.arguments}))
            failed = {"failed": value} if isinstance(value, str) else {}
            metrics = {} if failed else {"fit": {"metrics": {self.metric: value}}}
            label = {"name": sweep, "stage": trial.stage} | failed
            (folder / "results.json").write_text(json.dumps({"format": FORMAT, **metrics, "sweep": label}))
            progress.ended(trial, {**metrics, "sweep": label})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.chdir(tmp_path)
    return Machine(monkeypatch)


def tune(*options: str) -> dict[str, Any]:
    main(["tune", "--config=quickstart.yaml", "--out=out", *options])
    return json.loads(Path("out/tune.json").read_text())  # type: ignore[no-any-return]


def final_rate() -> str:
    arguments = json.loads(Path("out/final/trial.json").read_text())["arguments"]
    return next(str(a).partition("=")[2] for a in arguments if a.startswith("--model.optimizer.lr="))


def test_halving_ends_at_the_best_rate_and_fits_it_on_everything(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(tune_module, "draw", machine.draw)
    found = tune()
    shown = capsys.readouterr().out
    assert found["chosen"] == "replora, lr 0.01"
    counts = [len(one["values"]) for one in found["candidates"].values()]
    assert sorted(counts) == [2, 4, 5, 5, 5], "of 60 images, an accuracy 5 points lower is not clearly worse"
    assert len(machine.ran) == 21 + 1
    assert machine.ran[-1] == "final"
    assert Path("out/tune.png").stat().st_size > 5_000
    arguments = json.loads(Path("out/final/trial.json").read_text())["arguments"]
    assert "--data.protocol=final" in arguments
    assert not any("fold" in argument for argument in arguments)
    chosen_on = [json.loads(file.read_text())["arguments"] for file in Path("out/select").rglob("trial.json")]
    assert all("--data.protocol=tune" in one for one in chosen_on), "the test set is not touched"
    assert "5 folds, because 60 examples, fewer than 1,000" in shown
    assert "All others are worse by more than one standard error." in shown


def halving_to_two(machine: Machine, behind: float, *options: str) -> list[int]:
    """How often each of five rates was measured, if one is best and the others are so far behind."""
    machine.measure = lambda rate, fold: 0.7 + 0.01 * fold - (0.0 if rate == PEAK else behind * (1 + rate))
    return [len(one["values"]) for one in tune(*options)["candidates"].values()]


def test_halving_drops_only_what_is_clearly_worse(machine: Machine) -> None:
    """A standard error is 10 points after two folds of ten images, and 6 after five."""
    machine.facts = replace(FACTS, sizes={"train": 40, "val": 10, "test": 100})
    assert halving_to_two(machine, 0.1) == [5, 5, 5, 5, 5]
    shutil.rmtree("out")
    assert halving_to_two(machine, 0.3) == [5, 3, 5, 2, 2]


def test_halving_drops_the_worse_half_where_the_budget_demands_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25 trials of a second and the final fit need more than 22 s; 17 do not."""
    seconds = [0.0]
    monkeypatch.setattr(Clock, "spent", property(lambda _: seconds[0]))
    machine.facts = replace(FACTS, start=1.0, step=0.0)
    machine.before = lambda _: seconds.__setitem__(0, seconds[0] + 1.0)
    counts = halving_to_two(machine, 0.01, "--time_budget=22s")
    assert sum(counts) < 25
    assert sorted(counts)[-2:] == [5, 5]
    assert Path("out/final/results.json").is_file()
    assert seconds[0] <= 22


def test_a_budget_for_two_candidates_keeps_no_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two folds of five candidates, 7 s are left: enough for three further folds of two of them."""
    watch = Watch(machine, monkeypatch)
    assert sorted(halving_to_two(machine, 0.01, "--time_budget=19.5s")) == [2, 2, 3, 5, 5]
    assert watch.seconds == 17 + 1


def test_the_same_command_repeats_nothing(machine: Machine) -> None:
    first = tune()
    machine.ran.clear()
    assert tune() | {"seconds": 0.0} == first | {"seconds": 0.0}
    assert machine.ran == ["final"], "which the queue finds finished"


def test_what_is_as_good_is_said(machine: Machine, capsys: Any) -> None:
    machine.measure = lambda rate, fold: 0.8 + (0.01 * fold if rate < 0.012 else -0.01 * fold if rate < 0.03 else -0.3)
    found = tune()
    assert found["chosen"] == "replora, lr 0.005", "the middle of three equal rates beside worse ones"
    assert found["within_one_standard_error"] == ["replora, lr 0.0025", "replora, lr 0.01"]
    assert "replora, lr 0.04" not in found["within_one_standard_error"]
    assert "No significant difference, within one standard error of the best: " in capsys.readouterr().out


@pytest.mark.parametrize(("ahead", "chosen"), [(0.02, "replora, lr 0.01"), (0.2, "replora, lr 0.04")])
def test_of_rates_that_cannot_be_distinguished_the_configured_one_is_chosen(
    machine: Machine, ahead: float, chosen: str, capsys: Any
) -> None:
    """60 images: a standard error is 6 points at 70 %."""
    machine.measure = lambda rate, fold: 0.7 + 0.01 * fold + (ahead if rate == 0.04 else 0.0)
    found = tune("--rates=[0.0025,0.005,0.01,0.02,0.04]")
    assert (found["chosen"], found["best"]) == (chosen, "replora, lr 0.04")
    assert final_rate() == chosen.split()[-1]
    said = "The best mean is that of replora, lr 0.04, 75.0 %. A single mean is noisy" in capsys.readouterr().out
    assert said == (chosen != found["best"])


def test_rates_are_judged_with_their_neighbors(machine: Machine) -> None:
    """Two high rates agree; a low one has the best mean, by one image, between two bad ones."""
    means = {0.0025: 0.60, 0.005: 0.72, 0.01: 0.60, 0.02: 0.70, 0.04: 0.70}
    machine.measure = lambda rate, fold: means[rate] + 0.01 * fold
    found = tune("--rates=[0.0025,0.005,0.01,0.02,0.04]")
    assert (found["chosen"], found["best"]) == ("replora, lr 0.02", "replora, lr 0.005")
    expected = {name: one["expected"] for name, one in found["candidates"].items()}
    assert max(expected, key=lambda name: expected[name]) == "replora, lr 0.02"


def test_of_losses_that_cannot_be_distinguished_the_configured_rate_is_chosen(machine: Machine, capsys: Any) -> None:
    machine.metric = "val/loss"
    ahead = {1: 0.03, 2: -0.01}
    machine.measure = lambda rate, fold: 2.0 + 0.1 * fold - (ahead.get(fold, 0.0) if rate == 0.04 else 0.0)
    found = tune("--rates=[0.0025,0.005,0.01,0.02,0.04]")
    assert (found["chosen"], found["best"]) == ("replora, lr 0.01", "replora, lr 0.04")
    assert "Of the rates within one standard error of it" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_grid_is_extended_beyond_its_edge(machine: Machine, better: str, capsys: Any) -> None:
    sign = 1 if better == "higher" else -1
    machine.measure = lambda rate, fold: 0.5 + sign * 0.099 * math.log2(rate / 0.01) + fold / 1000
    found = tune()
    assert found["chosen"] == ("replora, lr 0.32" if better == "higher" else "replora, lr 0.000313")
    assert found["at_edge"]
    assert "a better rate may lie beyond" in capsys.readouterr().out
    Path("out/tune.json").unlink()
    machine.ran.clear()
    assert tune()["chosen"] == found["chosen"]
    assert not [name for name in machine.ran if name != "final"]


def test_divergence_and_failure_take_a_candidate_out(machine: Machine, capsys: Any) -> None:
    def measure(rate: float, fold: int) -> float | str | None:
        return "The loss is nan." if rate > 0.03 else None if rate < 0.003 else accuracy(rate, fold)

    machine.measure = measure
    found = tune()
    assert found["chosen"] == "replora, lr 0.01"
    assert found["candidates"]["replora, lr 0.04"]["failed"] == "The loss is nan."
    assert found["candidates"]["replora, lr 0.0025"]["failed"] == "No CUDA GPU was found."
    assert "out: The loss is nan." in " ".join(capsys.readouterr().out.split())
    machine.measure = lambda *_: None
    with pytest.raises(RepLoRAError, match=r"(?s)No candidate could be measured.*No CUDA GPU"):
        main(["tune", "--config=quickstart.yaml", "--out=other"])


@pytest.mark.usefixtures("machine")
def test_methods_have_grids_around_their_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    def configured(trial: Any) -> dict[str, Any]:
        probe = "--config=adapter/linear_probe.yaml" in trial.arguments
        return {"data.fold": None, "model.optimizer.lr": 0.1} if probe else dict(CONFIGURATION)

    monkeypatch.setattr(tune_module, "configuration", configured)
    found = tune("--methods=[linear_probe,lora]", "--ranks=[4,8]")
    names = list(found["candidates"])
    assert "linear_probe, lr 0.1" in names
    assert "lora, lr 0.01, rank 4" in names
    assert len(names) == 5 + 10
    arguments = json.loads(Path("out/final/trial.json").read_text())["arguments"]
    assert arguments[:2] == ["--config=quickstart.yaml", "--config=adapter/lora.yaml"]


@pytest.mark.usefixtures("machine")
def test_draws_have_other_images_and_their_spread_is_reported(capsys: Any) -> None:
    found = tune("--data.shots=5", "--draws=2", "--data.subset_seed=7", "--seed_everything=3")
    assert len(found["draws"]) == 2
    seeds = {
        argument
        for file in Path("out/select").rglob("trial.json")
        for argument in json.loads(file.read_text())["arguments"]
        if argument.startswith(("--data.subset_seed=", "--seed_everything="))
    }
    wanted = {"--data.subset_seed=7", "--data.subset_seed=8", "--seed_everything=3", "--seed_everything=4"}
    assert wanted <= seeds
    assert "By draw (subset_seed 7 and on)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("facts", "options", "folds", "words"),
    [
        ({"sizes": {"train": 900, "val": 900}}, [], 1, "because there are 1,800 to train and validate on"),
        ({"given_validation": True}, [], 1, "the 30 validation examples, because they were chosen by hand"),
        ({"given_validation": True}, ["--folds=3"], 3, "3 folds of 60 examples, as asked"),
        ({"sizes": {"train": 3, "val": 3}}, [], 2, "2 folds, because 6 examples"),
    ],
)
def test_the_number_of_folds_has_a_reason(
    machine: Machine, facts: dict[str, Any], options: list[str], folds: int, words: str, capsys: Any
) -> None:
    machine.facts = Facts(**FACTS.__dict__ | facts)
    main(["tune", "--config=quickstart.yaml", "--out=out", "--dry_run=true", *options])
    shown = capsys.readouterr().out
    assert words in shown
    assert not Path("out").exists()
    assert not machine.ran
    assert (f"{folds} folds" in shown) == (folds > 1)


def test_a_budget_is_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Too small for one measurement of each: refused. Ended inside a trial: the choice is of what was complete."""
    machine.facts = Facts(**FACTS.__dict__ | {"start": 1.0})
    with pytest.raises(RepLoRAError, match=r"--time_budget: 3.0 s are too little. .* about \d+"):
        tune("--time_budget=3s")
    assert not Path("out").exists()
    seconds = [0.0]
    monkeypatch.setattr(Clock, "spent", property(lambda _: seconds[0]))

    def wait(folder: str) -> None:
        seconds[0] += 1.0
        if folder.endswith("lr=0.005/fold=3"):
            raise OutOfTimeError

    machine.before = wait
    found = tune("--time_budget=1h")
    assert found["stopped"] == "the budget ended inside select/replora/lr=0.005/fold=3"
    assert found["chosen"] == "replora, lr 0.01"
    assert len(found["candidates"]["replora, lr 0.0025"]["values"]) == 2
    assert "The same command measures more." in capsys.readouterr().out
    machine.before = lambda _: None
    assert tune()["stopped"] is None
    seconds[0] = 0.0
    machine.before = lambda _: seconds.__setitem__(0, seconds[0] + 1.0)
    main(["tune", "--config=quickstart.yaml", "--out=less", "--time_budget=15s"])
    assert Path("less/final/results.json").is_file()
    assert "no time for another trial" in json.loads(Path("less/tune.json").read_text())["stopped"]
    assert seconds[0] <= 15


def test_the_final_fit_is_expected_to_take_as_long_as_its_steps(machine: Machine, capsys: Any) -> None:
    machine.facts = replace(FACTS, step=2.0, sizes={"train": 30, "val": 30, "test": 0})
    main(["tune", "--config=quickstart.yaml", "--out=out", "--dry_run=true"])
    assert "then the final fit (final) with its test, about 20.0 s" in capsys.readouterr().out


@pytest.mark.usefixtures("machine")
def test_another_choice_sets_the_former_fit_aside() -> None:
    tune()
    before = final_rate()
    for file in Path("out/select").rglob("results.json"):
        content = json.loads(file.read_text())
        content["fit"]["metrics"]["val/accuracy"] = 0.99 if "lr=0.02" in str(file) else 0.1
        file.write_text(json.dumps(content))
    assert tune()["chosen"] == "replora, lr 0.02"
    assert (before, final_rate()) == ("0.01", "0.02")
    assert Path("out/final.former-1").is_dir()


def test_changed_data_and_another_tune_are_refused(machine: Machine) -> None:
    tune()
    with pytest.raises(RepLoRAError, match=r"holds another tune:\n  arguments"):
        tune("--trainer.max_epochs=3")
    with pytest.raises(RepLoRAError, match=r"holds another tune:\n  candidates"):
        tune("--rates=[0.3]")
    machine.facts = Facts(**FACTS.__dict__ | {"lists": {"train": "b"}, "sizes": {"train": 31, "val": 30}})
    with pytest.raises(RepLoRAError, match=r"The data have changed .* 30 train \+ 30 val then, 31 train \+ 30 val now"):
        tune()


@pytest.mark.usefixtures("machine")
def test_two_tunes_in_one_directory() -> None:
    with locked(Path("out"), "A tune", ""), pytest.raises(RunDirectoryError, match="in use by A tune of process"):
        tune()
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    with pytest.raises(RepLoRAError, match="mine already exists and is not overwritten"):
        main(["tune", "--config=quickstart.yaml", "--out=mine"])
    assert [file.name for file in Path("mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "tune needs the options of a fit"),
        (
            ["--config=quickstart.yaml", "--time_budgt=3s"],
            "tune --time_budgt: there is no such option. Did you mean 'time_budget'",
        ),
        (["--config=quickstart.yaml", "--run_dir=x"], "--run_dir is set for each trial"),
        (["--config=quickstart.yaml", "--data.fold=1/2"], "--data.fold is set for each trial"),
        (["--config=quickstart.yaml", "--time_budget=10"], "is no time: write 90s"),
        (["--config=quickstart.yaml", "--methods=[lorra]"], "no method 'lorra'. Did you mean 'lora'"),
        (["--config=quickstart.yaml", "--rates=[0.1,0.1]"], "names a value twice"),
        (["--config=quickstart.yaml", "--rates=[-1]"], "a learning rate is a number above 0"),
        (["--config=quickstart.yaml", "--folds=0"], "--folds 0 is too small"),
        (["--config=quickstart.yaml", "--draws=many"], "--draws"),
        (["--config=quickstart.yaml", "--repeats=0"], "--repeats 0 is too small"),
        (["--config=quickstart.yaml", "--folds=1", "--repeats=2"], "--repeats 2: there are no folds"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_wrong_options(options: list[str], words: str) -> None:
    with pytest.raises(RepLoRAError) as caught:
        main(["tune", *options])
    assert words in str(caught.value)
    assert not list(Path.cwd().iterdir())


def test_options_of_fit_are_told_apart() -> None:
    given = ["--config", "a.yaml", "--time_budget", "20m", "--data.root", "photos", "--rates=[1]", "--dry_run", "true"]
    assert options_apart(given) == (
        ["--config", "a.yaml", "--data.root", "photos"],
        ["--time_budget", "20m", "--rates=[1]", "--dry_run", "true"],
    )
    assert default_home(["--config", "image_folder.yaml", "--data.root", "my/photos"]) == Path(
        "runs/tune-image_folder-photos"
    )


class Watch:
    """A clock that a trial sets forward by a second, and the final fit by what it is expected to take."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(Clock, "spent", property(lambda _: self.seconds))
        machine.facts = replace(FACTS, start=1.0, step=0.0)
        machine.before = self.wait

    def wait(self, _: str) -> None:
        self.seconds += 1.0


def arguments_of(folder: str) -> list[str]:
    return json.loads((Path("out") / folder / "trial.json").read_text())["arguments"]  # type: ignore[no-any-return]


def level(rate: float, fold: int) -> float:
    """All rates are alike, within noise."""
    return 0.7 + 0.01 * ((fold * 7 + round(1_000 * rate)) % 3)


def test_a_budget_is_spent_on_more_divisions(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rates, five folds: 15 trials for each division. The subset stays, folds and seeds change."""
    watch = Watch(machine, monkeypatch)
    machine.measure = level
    options = ["--rates=[0.005,0.01,0.02]", "--data.shots=5", "--data.subset_seed=7", "--seed_everything=3"]
    found = tune(*options, "--time_budget=48s")
    shown = " ".join(capsys.readouterr().out.split())
    assert "The same examples are divided again while the budget lasts, at most 10 times in all." in shown
    assert "15 trials of about 1.0 s, at most, then the final fit (final)" in shown
    assert "further divisions take what is left of the budget" in shown
    counts = [len(one["values"]) for one in found["candidates"].values()]
    assert min(counts) > 10
    assert found["measurements"] == min(counts), "the choice is of what all have"
    assert watch.seconds <= 48
    assert f"the mean of {min(counts)} measurements on 2 divisions into 5 folds and a part of another" in shown
    assert "The budget allowed no more divisions. The same command measures more." in shown
    first = arguments_of("select/replora/lr=0.01/fold=2")
    second = arguments_of("select/replora/lr=0.01/repeat=2,fold=2")
    assert {"--data.fold=2/5", "--data.subset_seed=7", "--seed_everything=3"} <= set(first)
    assert {"--data.fold=2/5@8", "--data.subset_seed=7", "--seed_everything=4"} <= set(second)
    assert not any("fold" in argument for argument in arguments_of("final"))


def test_more_divisions_of_the_same_examples_are_not_more_examples() -> None:
    """50 images. One division cannot tell the rates apart; two can, but never by less than one image."""
    best = [0.7, 0.8, 0.6, 0.7, 0.8]
    behind = [0.7, 0.7, 0.5, 0.6, 0.8]
    assert errors_behind(best, behind, 10, 5) < 1
    assert 1 < errors_behind(best * 2, behind * 2, 10, 5) == pytest.approx(errors_behind(best * 20, behind * 20, 10, 5))
    barely = [value - 0.019 for value in best]
    assert errors_behind(best * 20, barely * 20, 10, 5) < 1
    assert errors_behind(best, best, 10, 5) == 0
    assert errors_behind([2.0, 2.0], [1.0, 1.0], None, 1) == math.inf


def test_more_divisions_continue_with_another_budget_and_without_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger budget measures more; without one, the division that was begun is completed. Nothing is repeated."""
    watch = Watch(machine, monkeypatch)
    machine.measure = level
    rates = "--rates=[0.005,0.01,0.02]"
    before = tune(rates, "--time_budget=30s")["measurements"]
    assert 5 < before < 10
    ran = list(machine.ran)
    watch.seconds = 0.0
    complete = tune(rates)
    assert (complete["measurements"], complete["stopped"]) == (10, None)
    watch.seconds = 0.0
    assert tune(rates, "--time_budget=40s")["measurements"] > 15
    trials = [folder for folder in machine.ran if folder != "final"]
    assert len(trials) == len(set(trials)) > len(ran)
    watch.seconds = 0.0
    machine.ran.clear()
    assert tune(rates, "--repeats=1")["measurements"] == 5
    assert machine.ran == ["final"]


def test_a_directory_from_before_repeats_continues(machine: Machine) -> None:
    machine.measure = level
    tune()
    plan = json.loads(Path("out/plan.json").read_text())
    assert not {"repeats", "subset"} & set(plan), "by which directories are compared"
    machine.ran.clear()
    assert tune("--repeats=2")["measurements"] == 10
    assert all("repeat=2" in folder for folder in machine.ran if folder != "final")


def test_losses_are_compared_over_divisions(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """The lowest is best; a difference within the noise of folds and divisions is none."""
    machine.metric = "val/loss"
    machine.measure = lambda rate, fold: 2.0 + 0.1 * fold + {0.005: -0.01, 0.01: 0.0, 0.02: 0.3}[rate] * (1 + fold % 2)
    found = tune("--rates=[0.005,0.01,0.02]", "--repeats=3")
    assert (found["metric"], found["mode"], found["measurements"]) == ("val/loss", "min", 15)
    assert (found["best"], found["chosen"]) == ("replora, lr 0.005", "replora, lr 0.005")
    assert found["within_one_standard_error"] == []
    assert "the mean of 15 measurements on 3 divisions into 5 folds" in " ".join(capsys.readouterr().out.split())


def test_ten_divisions_are_the_most(machine: Machine) -> None:
    machine.measure = level
    assert tune("--rates=[0.005,0.01]", "--time_budget=3h")["measurements"] == 50
    machine.ran.clear()
    main(["tune", "--config=quickstart.yaml", "--out=one", "--rates=[0.01]", "--time_budget=3h"])
    assert len(machine.ran) == 5 + 1, "there is nothing to compare"


def test_draws_are_divided_repeatedly(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """All draws are measured once before any is divided again; the mean of a draw is over its own divisions."""
    machine.measure = level
    found = tune("--data.shots=5", "--draws=3", "--repeats=2", "--rates=[0.005,0.01]")
    assert found["measurements"] == 30
    assert len(found["draws"]) == 3
    last_of_first = machine.ran.index("select/replora/lr=0.01/draw=2,fold=5")
    assert all("repeat" not in folder for folder in machine.ran[:last_of_first])
    arguments = arguments_of("select/replora/lr=0.01/draw=1,repeat=2,fold=1")
    assert {"--data.fold=1/5@4", "--data.subset_seed=1", "--seed_everything=4"} <= set(arguments)
    assert "30 measurements on 6 divisions into 5 folds" in capsys.readouterr().out


def test_a_grid_is_extended_before_its_examples_are_divided_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeats take all of the budget, so that no time would be left for a rate beyond the edge."""
    Watch(machine, monkeypatch)
    machine.measure = lambda rate, fold: 0.5 + 0.099 * math.log2(rate / 0.01) + fold / 1000
    found = tune("--time_budget=60s")
    assert found["chosen"] == "replora, lr 0.32"
    beyond = machine.ran.index("select/replora/lr=0.32/fold=5")
    assert beyond < next(i for i, folder in enumerate(machine.ran) if "repeat" in folder)


def test_an_interruption_in_a_repeat_goes_through(machine: Machine) -> None:
    machine.measure = level

    def stop(folder: str) -> None:
        if folder.endswith("lr=0.01/repeat=2,fold=3"):
            signal.raise_signal(signal.SIGTERM)

    machine.before = stop
    with pytest.raises(KeyboardInterrupt) as caught:
        main(["tune", "--config=quickstart.yaml", "--out=out", "--rates=[0.005,0.01]", "--repeats=2"])
    assert caught.value.args == (signal.SIGTERM,)
    machine.before = lambda _: None
    ran = [folder for folder in machine.ran if folder != "final"]
    assert tune("--rates=[0.005,0.01]", "--repeats=2")["measurements"] == 10
    assert len(machine.ran) == 20 + 1
    assert machine.ran[: len(ran)] == ran


def test_the_end_of_the_budget_ends_the_picture_of_the_mistakes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(*_: Any) -> None:
        raise OutOfTimeError

    original = machine.before

    def tested(folder: str) -> None:
        original(folder)
        if folder == "final":
            Path("out/final").mkdir(parents=True, exist_ok=True)
            Path("out/final/test_predictions.csv").touch()

    machine.before = tested
    monkeypatch.setattr(tune_module, "draw_test", slow)
    monkeypatch.setattr(tune_module, "datamodule_of", lambda *_, **__: None)
    tune("--time_budget=1h")
    assert "The budget ended before the mistakes of the test were drawn." in capsys.readouterr().out


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("1h30m", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0s", "-3m", "soon", "3 weeks", "nan"])
def test_no_budget(text: str) -> None:
    with pytest.raises(RepLoRAError, match="is no time"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("candidates", "measurements", "kept"),
    [(5, 5, [5, 5, 3, 2, 2]), (2, 3, [2, 2, 2]), (1, 5, [1] * 5), (15, 4, [15, 8, 4, 2]), (5, 1, [5])],
)
def test_successive_halving(candidates: int, measurements: int, kept: list[int]) -> None:
    grid = [candidate("lora", "", {"model.optimizer.lr": float(rate + 1)}) for rate in range(candidates)]
    plan = Plan([], grid, measurements, 1, 0, 0, {}, "final")
    assert [plan.kept(number) for number in range(measurements)] == kept


def test_the_alarm_ends_what_runs() -> None:
    clock = Clock(0.05)
    with pytest.raises(OutOfTimeError), clock.alarm(0.0):
        signal.pause()
    with Clock(None).alarm(0.0):
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
