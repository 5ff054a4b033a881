"""What a dry run says of the cost, and what it measures where it knows nothing; curves of all trials in TensorBoard."""

from __future__ import annotations

import re

from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from replora.sweeps.cost import describe_plan
from replora.sweeps.part import Part
from replora.sweeps.sweep_file import read_sweep
from replora.sweeps.trial import run_trial
from tests.sweeps.small_sweep import SMALL, write_sweep


def test_hours_by_stage(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", seconds_per_trial=1800))
    *_, select, final, total = describe_plan(sweep, tmp_path, 4, gpus_per_trial=0.5).splitlines()
    hours = "2.00 hours one after the other, 0.50 hours on this machine with 4 at once, 1.00 hours of one GPU"
    assert select == f"select: 4 trials, {hours}"
    assert final == f"final: 4 trials, {hours}"
    assert total.startswith("8 trials (4 to select + 4 final), 8 to run: about 60 minutes with 4 at once")
    *_, only, total = describe_plan(sweep, tmp_path, None, "no idea", part=Part(stage="final")).splitlines()
    assert only == "final: 4 trials, 2.00 hours one after the other"
    assert total.startswith("4 trials (4 final), 4 to run: about 2.0 hours one after the other")


def test_a_step_is_measured_where_no_duration_is_known(tmp_path):
    """Two sizes: one of 10 steps, one of 40."""
    sizes = [{"data.shots": 1, "trainer.max_steps": 10}, {"data.shots": 2, "trainer.max_steps": 40}]
    options = SMALL["options"] | {"trainer.max_epochs": 100}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", sizes=sizes, options=options))
    shown = describe_plan(sweep, tmp_path / "runs", 1).splitlines()[-1]
    mean, step = re.search(r"\((\S+) seconds per trial, from (\S+) seconds per step of select/", shown).groups()
    assert "measured here; without validation, test and start" in shown
    assert abs(float(mean) - 25 * float(step)) <= 0.06 + 0.1 * float(step)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_measured_is_said(tmp_path):
    base = {"base": ["image_folder.yaml"], "options": {"data.root": str(tmp_path / "nowhere")}, "sizes": None}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", **base))
    shown = describe_plan(sweep, tmp_path, 2).splitlines()[-1]
    assert "cost unknown. Run one trial of it, or write seconds_per_trial into the sweep's file." in shown
    assert "No step could be measured here: " in shown
    assert "nowhere" in shown


def test_tensorboard_finds_the_curves_of_all_trials(tmp_path):
    options = SMALL["options"] | {"trainer.logger": True}
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"]}}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", options=options, methods=methods, select=None))
    for trial in sweep.only_trials():
        run_trial(tmp_path / "runs", "s", trial)
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs"))
    runs.Reload()
    found = {name for name, tags in runs.Runs().items() if "val/accuracy" in tags["tensors"] + tags.get("scalars", [])}
    for trial in sweep.only_trials():
        assert any(name.startswith(trial.folder) for name in found), runs.Runs()
