"""The record of a run: complete, alone in its directory, never mixed, never lost (docs/results.md)."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from replora.cli.main import main
from replora.results import read_results
from tests.cli.helpers import refused

FIT = [
    "fit",
    "--config=quickstart.yaml",
    "--data.shots=3",
    "--data.batch_size=10",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
    "--model.schedule.warmup_epochs=0",
]


def fit(run: Path, *options: str) -> Path:
    main([*FIT, f"--run_dir={run}", *options])
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("finished") / "run", "--trainer.max_epochs=2")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, which is a run of its own."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# --- what is recorded


def test_a_fit_records_its_configuration_and_what_trained(finished: Path) -> None:
    content = read_results(finished)
    assert content["configuration"]["data.shots"] == 3
    assert content["configuration"]["model.optimizer.lr"] == 0.01
    assert "trainer.logger" not in content["configuration"], "it cannot change a number"
    assert len(content["configuration_sha256"]) == 64
    (process,) = content["fit"]["processes"]
    assert (process["from"], process["to"]) == ({"epoch": 0, "step": 0}, {"epoch": 2, "step": 6})
    assert content["fit"]["epoch_of"]["val/accuracy"] == 2
    assert (content["fit"]["partial"], content["fit"]["diverged"]) == ([], False)
    assert content["fit"]["weights_sha256"] == content["test"]["weights"]["sha256"]


@pytest.mark.parametrize(
    ("option", "entry", "reason"),
    [
        ("--trainer.limit_train_batches=1", "fit", "limit_train_batches=1"),
        ("--trainer.limit_test_batches=1", "test", "limit_test_batches=1"),
        ("--trainer.limit_test_batches=0.5", "test", "limit_test_batches=0.5"),
        ("--trainer.limit_val_batches=1", "fit", "limit_val_batches=1"),
        ("--trainer.max_epochs=0", "fit", "no training step"),
    ],
)
def test_a_partial_run_is_called_one(option: str, entry: str, reason: str, tmp_path: Path) -> None:
    fit(tmp_path / "run", "--trainer.max_epochs=1", option)
    assert reason in read_results(tmp_path / "run")[entry]["partial"]


def test_a_run_without_a_seed_has_none_in_its_record(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--trainer.max_epochs=1", "--seed_everything=false")
    assert read_results(tmp_path / "run")["fit"]["seed"] is None


def test_a_diverged_fit_fails_and_its_adapter_is_used_only_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.optimizer.lr=1e30", "--trainer.max_epochs=1", "--data.batch_size=30"]
    error = refused(capsys, *FIT, f"--run_dir={tmp_path / 'run'}", *options)
    assert "The fit diverged" in error
    content = read_results(tmp_path / "run")
    assert content["fit"]["diverged"] is True
    assert "test" not in content
    for verb in ("export", "merge"):
        assert "--force true" in refused(capsys, verb, str(tmp_path / "run"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert "--force true" in refused(capsys, "predict-files", str(tmp_path / "run"), str(tmp_path / "x.png"))
    run, force = str(tmp_path / "run"), ["--force", "true"]
    for verb in ("export", "merge"):
        main([verb, run, "--out", str(tmp_path / verb), *force])
        assert (tmp_path / verb).is_dir()
    main(["export", run, "--format", "adapter", "--out", str(tmp_path / "a.safetensors"), *force])
    main(["predict-files", run, str(tmp_path / "x.png"), "--out", str(tmp_path / "x.csv"), *force])


@pytest.mark.parametrize(
    "callback",
    [
        ["StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01", "--trainer.callbacks.swa_epoch_start=1"],
        ["EMAWeightAveraging"],
    ],
    ids=lambda callback: callback[0],
)
def test_averaged_weights_are_those_of_the_checkpoint(callback: list[str], tmp_path: Path) -> None:
    name, *options = callback
    run = fit(
        tmp_path / "run",
        "--trainer.max_epochs=3",
        f"--trainer.callbacks+=lightning.pytorch.callbacks.{name}",
        *options,
    )
    first = read_results(run)
    assert first["test"]["weights"]["averaged"] is True
    main(["test", f"--config={run / 'fit.yaml'}"])
    (again,) = read_results(run)["evaluations"]
    assert again["metrics"] == first["test"]["metrics"]
    assert again["weights"]["sha256"] == first["fit"]["weights_sha256"]


def test_equal_runs_write_equal_adapters(finished: Path, tmp_path: Path) -> None:
    one = load_file(finished / "adapter.safetensors")
    two = load_file(fit(tmp_path / "run", "--trainer.max_epochs=2") / "adapter.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_last_epoch_is_validated_whatever_the_interval(tmp_path: Path) -> None:
    for epochs, interval in ((5, 4), (2, 4)):
        run = fit(
            tmp_path / str(epochs), f"--trainer.max_epochs={epochs}", f"--trainer.check_val_every_n_epoch={interval}"
        )
        found = read_results(run)["fit"]
        assert found["epoch_of"]["val/accuracy"] == epochs
        assert [epoch for epoch, _ in found["history"]["val/loss"]] == ([4, 5] if epochs == 5 else [2])


@pytest.mark.parametrize("interval", [1, 4])
def test_a_fit_that_max_steps_ends_inside_an_epoch_is_validated(interval: int, tmp_path: Path) -> None:
    options = ["--trainer.max_steps=4", f"--trainer.check_val_every_n_epoch={interval}"]
    run = fit(tmp_path / "run", "--trainer.max_epochs=9", *options)
    content = read_results(run)
    assert content["fit"]["steps"] == 4
    main(["validate", f"--config={run / 'fit.yaml'}"])
    validated = read_results(run)["validate"]["metrics"]["val/loss"]
    assert content["fit"]["metrics"]["val/loss"] == pytest.approx(validated, abs=1e-5)


def test_one_seed_sets_subset_and_order_unless_they_have_their_own(finished: Path, tmp_path: Path) -> None:
    found = read_results(fit(tmp_path / "a", "--trainer.max_epochs=1", "--seed_everything=3"))
    assert (found["data"]["subset_seed"], found["data"]["shuffle_seed"]) == (3, 3)
    assert found["configuration"]["data.subset_seed"] == 3
    assert found["data"]["train_indices"] != read_results(finished)["data"]["train_indices"]
    own = ["--seed_everything=3", "--data.subset_seed=0"]
    found = read_results(fit(tmp_path / "b", "--trainer.max_epochs=1", *own))
    assert (found["data"]["subset_seed"], found["data"]["shuffle_seed"]) == (0, 3)
    assert found["data"]["train_indices"] == read_results(finished)["data"]["train_indices"]


# --- which data

COLORS = {"amber": (255, 190, 0), "blue": (20, 40, 230), "green": (10, 160, 40)}


def photos(root: Path, names: dict[str, str], count: int = 12) -> Path:
    """A folder of one color for each class; `names` maps a color to the name of its folder."""
    noise = torch.Generator().manual_seed(0)
    for color, name in names.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            shift = torch.randint(-20, 20, (3,), generator=noise).tolist()
            pixel = tuple(min(255, max(0, c + s)) for c, s in zip(COLORS[color], shift, strict=True))
            Image.new("RGB", (12, 12), pixel).save(root / name / f"{color}{number}.png")
    return root


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells three colors apart."""
    home = tmp_path_factory.mktemp("colors")
    root = photos(home / "photos", {color: color for color in COLORS})
    options = ["--model.backbone=vit_nano", "--data.image_size=32", "--data.augmentation=none", "--data.batch_size=9"]
    command = ["fit", "--config=image_folder.yaml", f"--data.root={root}", f"--run_dir={home / 'run'}", *options]
    main([*command, "--trainer.max_epochs=6", "--model.schedule.warmup_epochs=0", "--model.optimizer.lr=0.01"])
    assert read_results(home / "run")["test"]["metrics"]["test/accuracy"] == 1
    return home / "run"


@pytest.fixture
def colored(colors: Path, tmp_path: Path) -> Path:
    shutil.copytree(colors, tmp_path / "run")
    return tmp_path / "run"


def measure(run: Path, *options: str) -> dict:
    main(["test", f"--config={run / 'fit.yaml'}", *options])
    return read_results(run)["evaluations"][-1]


def test_other_data_are_a_further_evaluation_and_leave_the_fit_alone(colored: Path, tmp_path: Path) -> None:
    before = read_results(colored)
    other = measure(colored, f"--data.root={photos(tmp_path / 'more', {c: c for c in COLORS}, count=30)}")
    after = read_results(colored)
    assert other["metrics"]["test/accuracy"] == 1
    assert other["data"]["sha256"] != before["test"]["data"]["sha256"]
    assert (after["fit"], after["data"], after["test"]) == (before["fit"], before["data"], before["test"])
    assert len(after["evaluations"]) == 2


def test_the_same_data_in_another_place_are_the_same(colored: Path, tmp_path: Path) -> None:
    moved = photos(tmp_path / "elsewhere" / "photos", {color: color for color in COLORS})
    measure(colored, f"--data.root={moved}")
    (only,) = read_results(colored)["evaluations"]
    assert only["data"]["root"] == str(moved)


def test_a_part_of_the_classes_is_measured_by_name(colored: Path, tmp_path: Path) -> None:
    part = photos(tmp_path / "part", {"blue": "blue", "green": "green"}, count=30)
    found = measure(colored, f"--data.root={part}")
    assert found["metrics"]["test/accuracy"] == found["metrics"]["test/mean_class_accuracy"] == 1
    main(["predict", f"--config={colored / 'fit.yaml'}", f"--data.root={part}"])
    with (colored / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows
    assert all(row["predicted_name"] == row["label_name"] == Path(row["path"]).parent.name for row in rows)


def test_classes_that_the_run_does_not_know_are_refused(
    colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"amber": "zamber", "blue": "blue", "green": "green"}
    root = photos(tmp_path / "renamed", names, count=30)
    before = (colored / "results.json").read_bytes()
    error = refused(capsys, "test", f"--config={colored / 'fit.yaml'}", f"--data.root={root}")
    assert "it does not know 'zamber'" in error
    assert "'amber'" in error
    assert (colored / "results.json").read_bytes() == before


def test_images_that_were_trained_on_are_called_so(colored: Path) -> None:
    found = measure(colored, "--data.split_seed=1", "--data.test_fraction=0.5")
    assert found["data"]["seen_in_training"] > 0
    assert "seen_in_training" not in read_results(colored)["test"]["data"]


def test_a_resumed_fit_on_other_data_is_refused(
    colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "more", {color: color for color in COLORS}, count=13)
    command = ["fit", f"--config={colored / 'fit.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=8"]
    assert "training list: " in refused(capsys, *command, f"--data.root={root}")


def test_lists_that_share_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", {color: color for color in COLORS})
    lines = [f"{color}/{color}{n}.png,{color},{split}" for color in COLORS for n in range(9) for split in ["train"]]
    lines += [f"{color}/{color}{n}.png,{color},{split}" for color in COLORS for n, split in ((9, "val"), (3, "test"))]
    (root / "list.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
    command = ["fit", "--config=image_folder.yaml", f"--data.root={root / 'list.csv'}", f"--run_dir={tmp_path / 'run'}"]
    options = ["--model.backbone=vit_nano", "--data.image_size=32", "--data.batch_size=9"]
    error = refused(capsys, *command, *options)
    assert "3.png" in error


# --- one directory, one run


def test_the_same_command_again_is_refused_with_the_one_that_resumes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    error = refused(capsys, *FIT, f"--run_dir={run}")
    assert f"--ckpt_path {run / 'checkpoints' / 'last.ckpt'}" in error
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_directory_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from replora.run_directory import locked\n"
        f"with locked(Path({str(tmp_path / 'run')!r}), 'the fit', ''): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        error = refused(capsys, *FIT, f"--run_dir={tmp_path / 'run'}")
        other.kill()
    assert f"in use by the fit of process {other.pid}" in error


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_copied_or_moved_run_is_the_folder_in_which_its_file_lies(
    run: Path, finished: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = (finished / "results.json").read_bytes()
    moved = run.rename(run.with_name("moved"))
    if relative:
        monkeypatch.chdir(moved.parent)
    main(["validate", f"--config={os.path.relpath(moved / 'fit.yaml') if relative else moved / 'fit.yaml'}"])
    assert "validate" in read_results(moved)
    assert not run.exists()
    assert (finished / "results.json").read_bytes() == original


def test_the_best_checkpoint_is_measured_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/accuracy"]
    best += ["--trainer.callbacks.mode=max", f"--trainer.callbacks.dirpath={tmp_path / 'run' / 'checkpoints'}"]
    run = fit(tmp_path / "run", "--trainer.max_epochs=3", *best)
    moved = run.rename(tmp_path / "moved")
    main(["test", f"--config={moved / 'fit.yaml'}", "--ckpt_path=best"])
    found = read_results(moved)["evaluations"][-1]
    assert found["weights"]["source"].startswith(str(moved / "checkpoints" / "epoch="))
    without = fit(tmp_path / "without", "--trainer.max_epochs=1")
    assert "has no best checkpoint" in refused(capsys, "test", f"--config={without / 'fit.yaml'}", "--ckpt_path=best")


# --- resuming


def test_a_finished_run_that_is_resumed_changes_nothing(run: Path) -> None:
    before = {file.relative_to(run): file.read_bytes() for file in run.rglob("*") if file.suffix in (".json", ".ckpt")}
    main(["fit", f"--config={run / 'fit.yaml'}", "--ckpt_path=last"])
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--data.batch_size=15", "batch of all processes: 10 in the checkpoint, 15 here"),
        ("--data.shots=4", "data.shots: 3 in the checkpoint, 4 here"),
        ("--model.optimizer.lr=0.02", "model.optimizer.lr: 0.01 in the checkpoint, 0.02 here"),
        ("--model.optimizer.weight_decay=0.1", "model.optimizer.weight_decay"),
        ("--model.label_smoothing=0.1", "model.label_smoothing"),
        ("--data.shuffle_seed=1", "data.shuffle_seed"),
        ("--seed_everything=1", "seed_everything"),
        ("--trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val: None in the checkpoint, 1.0 here"),
    ],
)
def test_a_resumed_fit_with_other_options_is_refused(
    option: str, named: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "results.json").read_bytes()
    command = ["fit", f"--config={run / 'fit.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=3", option]
    assert named in refused(capsys, *command)
    assert (run / "results.json").read_bytes() == before


def test_more_epochs_continue_the_new_schedule_exactly(run: Path, tmp_path: Path) -> None:
    """After the resume every step runs at the rate of the longer run, and the time is that of both processes."""
    first = read_results(run)["fit"]
    main(
        [
            "fit",
            f"--config={run / 'fit.yaml'}",
            "--ckpt_path=last",
            "--trainer.max_epochs=4",
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            f"--trainer.logger.save_dir={tmp_path / 'log'}",
            "--trainer.callbacks+=LearningRateMonitor",
            "--trainer.callbacks.logging_interval=step",
        ]
    )
    fit(
        tmp_path / "whole",
        "--trainer.max_epochs=4",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={tmp_path / 'log'}",
        "--trainer.callbacks+=LearningRateMonitor",
        "--trainer.callbacks.logging_interval=step",
    )
    rates = []
    for file in sorted((tmp_path / "log").rglob("metrics.csv")):
        with file.open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("lr-AdamW/pg1")]
        rates.append({int(row["step"]): float(row["lr-AdamW/pg1"]) for row in rows})
    resumed, whole = rates
    assert resumed
    assert resumed.items() <= whole.items()
    both = read_results(run)["fit"]
    assert [process["to"]["epoch"] for process in both["processes"] if "to" in process][-1] == 4
    assert len(both["processes"]) == 2
    assert both["seconds"] > first["seconds"]


def test_harmless_options_may_change(run: Path) -> None:
    main(
        [
            "fit",
            f"--config={run / 'fit.yaml'}",
            "--ckpt_path=last",
            "--trainer.max_epochs=3",
            "--data.num_workers=1",
            "--trainer.log_every_n_steps=3",
        ]
    )
    assert read_results(run)["fit"]["epochs"] == 3


def test_a_file_of_format_1_in_a_run_goes_on_reading(run: Path) -> None:
    content = json.loads((run / "results.json").read_text())
    former = {k: v for k, v in content.items() if k not in ("evaluations", "configuration", "configuration_sha256")}
    test = {**content["evaluations"][0], "weights": "last epoch"}
    (run / "results.json").write_text(json.dumps(former | {"format": 1, "test": test}))
    assert read_results(run)["test"]["weights"] == "last epoch"
    main(["test", f"--config={run / 'fit.yaml'}"])
    assert len(read_results(run)["evaluations"]) == 2
