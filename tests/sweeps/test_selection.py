"""The choice between the stages."""

from __future__ import annotations

import pytest

from replora.sweeps.plan import StagePlan
from replora.sweeps.select import select_points
from replora.sweeps.sweep_file import SweepError, read_sweep
from tests.sweeps.small_sweep import SMALL, write_sweep

CELL = ("LoRA", "", "shots=1")


def measured(tmp_path, values, seeds=(0,), mode="max", metric="val/accuracy"):
    """The choice for LoRA with a grid of three rates, from rate -> values of the seeds."""
    methods = {"LoRA": SMALL["methods"]["LoRA"] | {"grid": {"model.optimizer.lr": list(values)}}}
    select = SMALL["select"] | {"seeds": list(seeds)}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", methods=methods, select=select))
    results = []
    for trial in sweep.selection_trials():
        value = values[trial.grid.options["model.optimizer.lr"]][seeds.index(trial.seed)]
        found = {"fit": {"metrics": {"val/accuracy": value}}} if value != "diverged" else {"sweep": {"failed": "nan"}}
        results.append((trial, None if value == "absent" else found))
    return select_points(StagePlan(list(seeds), {}, metric, mode), results)


def test_the_best_mean_over_the_seeds(tmp_path):
    choice = measured(tmp_path, {0.1: [0.5, 0.6], 0.2: [0.9, 0.3], 0.4: [0.1, 0.2]}, seeds=(0, 1))[CELL]
    assert choice.point.options == {"model.optimizer.lr": 0.2}
    assert choice.mean == pytest.approx(0.6)
    assert choice.means == pytest.approx({"lr=0.1": 0.55, "lr=0.2": 0.6, "lr=0.4": 0.15})
    assert choice.at_edge == {"model.optimizer.lr": False}


def test_of_equal_points_the_first(tmp_path):
    choice = measured(tmp_path, {0.1: [0.5], 0.2: [0.5], 0.4: [0.4]})[CELL]
    assert choice.point.name == "lr=0.1"
    assert choice.at_edge == {"model.optimizer.lr": True}


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
