"""The choice between the stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from replora.cli.main import main
from replora.results import read_results
from replora.sweeps.plan import StagePlan
from replora.sweeps.select import Rule, select_points, selection_rule, write_rule
from replora.sweeps.sweep_file import SweepError, read_sweep
from tests.sweeps.small_sweep import SMALL, write_sweep

RULE = Rule()
CELL = ("LoRA", "", "shots=1")


def measured(tmp_path, values, seeds=(0,), mode="max", metric="val/accuracy", rule=RULE, examples=None):
    """The choice for LoRA with a grid of three rates, from rate -> values of the seeds."""
    methods = {"LoRA": SMALL["methods"]["LoRA"] | {"grid": {"model.optimizer.lr": list(values)}}}
    select = SMALL["select"] | {"seeds": list(seeds)}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", methods=methods, select=select))
    results = []
    for trial in sweep.selection_trials():
        value = values[trial.grid.options["model.optimizer.lr"]][seeds.index(trial.seed)]
        found = {"data": {"split_sizes": {"val": examples}}, "fit": {"metrics": {"val/accuracy": value}}}
        found = found if value != "diverged" else {"sweep": {"failed": "nan"}}
        results.append((trial, None if value == "absent" else found))
    return select_points(StagePlan(list(seeds), {}, metric, mode), results, rule)


def test_the_best_mean_over_the_seeds(tmp_path):
    choice = measured(tmp_path, {0.1: [0.5, 0.6], 0.2: [0.9, 0.3], 0.4: [0.1, 0.2]}, seeds=(0, 1))[CELL]
    assert choice.point.options == {"model.optimizer.lr": 0.2}
    assert choice.mean == pytest.approx(0.6)
    assert choice.means == pytest.approx({"lr=0.1": 0.55, "lr=0.2": 0.6, "lr=0.4": 0.15})
    assert choice.found.at_edge == {"model.optimizer.lr": False}
    assert choice.found.noise, "its two seeds differ by more than the two points do"
    assert choice.describe()["seeds"] == 2


@pytest.mark.parametrize(
    ("values", "ties", "point"),
    [
        ({0.1: [0.5], 0.2: [0.5], 0.4: [0.4]}, "middle", "lr=0.2"),
        ({0.1: [0.5], 0.2: [0.4], 0.4: [0.5]}, "middle", "lr=0.1"),
        ({0.1: [0.5], 0.2: [0.5], 0.4: [0.5]}, "middle", "lr=0.2"),
        ({0.4: [0.5], 0.2: [0.5], 0.1: [0.4]}, "middle", "lr=0.2"),
        ({0.1: [0.5], 0.2: [0.5], 0.4: [0.4]}, "lowest", "lr=0.1"),
    ],
)
def test_of_equal_points_the_one_nearest_the_middle(tmp_path, values, ties, point):
    choice = measured(tmp_path, values, rule=Rule(ties))[CELL]
    assert choice.point.name == point
    assert choice.found.tied == sum(value == [0.5] for value in values.values()) - 1
    assert choice.found.at_edge == {"model.optimizer.lr": False}, "a tie is no edge"
    assert choice.found.noise


def test_sums_of_equal_scores_in_another_order_are_equal(tmp_path):
    choice = measured(tmp_path, {0.1: [0.1, 0.2, 0.3], 0.2: [0.3, 0.2, 0.1], 0.4: [0.1, 0.1, 0.1]}, seeds=(0, 1, 2))
    assert choice[CELL].found.tied == 1


@pytest.mark.parametrize(
    ("best", "examples", "noise"), [(0.53, 200, True), (0.54, 200, False), (0.53, None, None), (0.5, None, True)]
)
def test_noise_of_one_seed_is_that_of_the_validation_examples(tmp_path, best, examples, noise):
    """The standard error of 53 % on 200 images is 3.5 points."""
    choice = measured(tmp_path, {0.1: [0.5], 0.2: [best]}, examples=examples)[CELL]
    assert choice.found.noise is noise
    assert ("within one standard error" in choice.remarks()) == (bool(noise) and best != 0.5)


def test_one_point_for_all_sizes(tmp_path):
    """0.1 is best at one size by 0.1, 0.2 at the other by 0.3."""
    values = {("shots=1", 0.1): 0.6, ("shots=1", 0.2): 0.5, ("shots=2", 0.1): 0.5, ("shots=2", 0.2): 0.8}
    methods = {"LoRA": SMALL["methods"]["LoRA"] | {"grid": {"model.optimizer.lr": [0.1, 0.2]}}}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", methods=methods, sizes={"data.shots": [1, 2]}))
    results = [
        (
            trial,
            {"fit": {"metrics": {"val/accuracy": values[trial.size.name, trial.grid.options["model.optimizer.lr"]]}}},
        )
        for trial in sweep.selection_trials()
    ]
    assert sweep.select
    per_size = select_points(sweep.select, results, Rule())
    assert [choice.point.name for choice in per_size.values()] == ["lr=0.1", "lr=0.2"]
    per_method = select_points(sweep.select, results, Rule(choice="per_method"))
    assert {cell[2]: choice.point.name for cell, choice in per_method.items()} == {
        "shots=1": "lr=0.2",
        "shots=2": "lr=0.2",
    }
    recorded = per_method["LoRA", "", "shots=1"].describe()
    assert recorded["choice"] == "per_method"
    assert recorded["means"] == pytest.approx({"lr=0.1": 0.55, "lr=0.2": 0.65})
    results[0] = results[0][0], None
    per_method = select_points(sweep.select, results, Rule(choice="per_method"))
    assert per_method["LoRA", "", "shots=1"].means["lr=0.1"] is None, "a point must have all sizes"


def test_more_seeds_of_the_first_stage(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", select=SMALL["select"] | {"seeds": [2]}))
    more = sweep.with_select_seeds(3)
    assert more.select
    assert more.select.seeds == [2, 0, 1]
    assert len(more.selection_trials()) == 3 * len(sweep.selection_trials())
    assert [trial.folder for trial in more.selection_trials()][:4] == [t.folder for t in sweep.selection_trials()]


def test_finished_runs_name_the_selection_by_more_seeds(tmp_path, monkeypatch, capsys):
    """The selected point stays the same, so its final run is not repeated; its record of the selection is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    method = {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.lr": [0.01]}}
    final = SMALL["final"] | {"seeds": [0]}
    file = write_sweep(tmp_path / "s.yaml", methods={"LoRA": method}, final=final)
    main(["sweep", f"--config={file}", "--shard=1/1", "--make_report=false"])
    capsys.readouterr()
    main(["sweep", f"--config={file}", "--shard=1/1", "--select_seeds=2", "--make_report=false"])
    assert "final: 1 of 1 trials are finished already" in capsys.readouterr().out
    firsts = [read_results(file.parent) for file in Path("runs/s/select").rglob("results.json")]
    mean = sum(run["fit"]["metrics"]["val/accuracy"] for run in firsts) / 2
    (file,) = Path("runs/s/final").rglob("results.json")
    selection = read_results(file.parent)["sweep"]["chosen_by"]
    assert (selection["seeds"], selection["means"]) == (2, {"lr=0.01": pytest.approx(mean)})


def test_a_sweep_keeps_the_rule_it_began_with(tmp_path):
    """A directory with final runs and without a rule is of a release that selected the lowest of equal rates."""
    assert selection_rule(tmp_path / "new") == Rule("middle", "per_size")
    old = tmp_path / "old" / "final" / "LoRA" / "shots=1" / "seed=0"
    old.mkdir(parents=True)
    (old / "trial.json").write_text("{}")
    assert selection_rule(tmp_path / "old") == Rule("lowest", "per_size")
    assert selection_rule(tmp_path / "old", "per_method") == Rule("lowest", "per_method")
    write_rule(tmp_path / "old", Rule("lowest", "per_method"))
    assert selection_rule(tmp_path / "old") == Rule("lowest", "per_method"), "the choice is recorded"
    for damaged in ("", "[]", '{"ties": "lowest"', '{"ties": "first"}', '{"choice": null}', '{"rule": 1}'):
        (tmp_path / "old" / "selection.json").write_text(damaged)
        with pytest.raises(SweepError, match=r"selection.json holds no rule of a selection"):
            selection_rule(tmp_path / "old")


def test_less_may_be_better(tmp_path):
    assert measured(tmp_path, {0.1: [0.5], 0.2: [0.3], 0.4: [0.4]}, mode="min")[CELL].point.name == "lr=0.2"


@pytest.mark.parametrize("missing", ["diverged", "absent", None])
def test_a_point_with_a_failed_seed_is_out(tmp_path, missing):
    choice = measured(tmp_path, {0.1: [0.5, 0.5], 0.2: [0.99, missing], 0.4: [0.4, 0.4]}, seeds=(0, 1))[CELL]
    assert choice.point.name == "lr=0.1"
    assert choice.means["lr=0.2"] is None


def test_nothing_to_choose(tmp_path):
    assert measured(tmp_path, {0.1: ["absent"], 0.2: ["diverged"]}) == {}


def test_a_metric_that_is_not_there(tmp_path):
    with pytest.raises(SweepError, match="val/f1 is not in the results of the first stage, which have val/accuracy"):
        measured(tmp_path, {0.1: [0.5]}, metric="val/f1")
