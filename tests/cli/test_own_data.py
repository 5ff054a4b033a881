"""FGVC and image folders through the command line: fit with its test, predict, resume, several workers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from replora.adapters.state import read_metadata
from replora.cli.main import main
from replora.datasets.image.fgvc import FGVC_TASKS
from replora.results import read_results
from tests.fake_data import write_fgvc_task, write_image_folder
from tests.lightning_modules.helpers import StopError

torch.set_num_threads(1)

TINY = [
    "--model.backbone=vit_nano",
    "--model.pretrained=false",
    "--model.adapter.rank=2",
    "--model.adapter.hidden=8",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.num_workers=0",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
]


def predictions(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("task", FGVC_TASKS)
def test_every_fgvc_task_trains_tests_and_predicts(task: str, tmp_path: Path) -> None:
    write_fgvc_task(tmp_path, task)
    run = tmp_path / "run"
    options = [f"--data.root={tmp_path}", f"--data.task={task}", "--data.check_sizes=false", f"--run_dir={run}"]
    main(["fit", "--config=fgvc.yaml", *TINY, *options])
    main(["test", f"--config={run / 'fit.yaml'}"])
    main(["predict", f"--config={run / 'fit.yaml'}"])
    content = read_results(run)
    data = content["data"]
    assert (data["task"], data["train_on"], data["framing"]) == (task, "trainval", "crop")
    assert data["split_sizes"] == {"trainval": 12, "test": 8}
    assert content["parameters"]["head"] == 129 * FGVC_TASKS[task].num_classes
    assert content["test"]["metrics"]["test/accuracy"] >= 0
    rows = predictions(run)
    assert [row["label"] for row in rows] == [str(i % 4) for i in range(8)]
    assert rows[0]["path"]
    header = json.loads(read_metadata(run / "adapter.safetensors")["data"])
    assert rows[1]["label_name"] == header["class_names"][1] != "1"


def test_training_on_ninety_percent(tmp_path: Path) -> None:
    write_fgvc_task(tmp_path, "cub_200_2011")
    run = tmp_path / "run"
    options = [f"--data.root={tmp_path}", "--data.check_sizes=false", "--data.protocol=holdout", f"--run_dir={run}"]
    main(["fit", "--config=fgvc.yaml", *TINY, *options])
    content = read_results(run)
    assert content["data"]["train_on"] == "train"
    assert content["data"]["split_sizes"] == {"train": 8, "val": 4, "test": 8}
    assert {"val/accuracy", "train/loss"} < set(content["fit"]["metrics"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("own") / "pets")


def test_an_image_folder_trains_tests_and_predicts(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["fit", "--config=image_folder.yaml", *TINY, f"--data.root={folder}", f"--run_dir={run}"])
    main(["test", f"--config={run / 'fit.yaml'}"])
    main(["predict", f"--config={run / 'fit.yaml'}"])
    data = read_results(run)["data"]
    assert (data["task"], data["images"], data["made_splits"]) == ("pets", 30, ["test", "val"])
    assert data["split_sizes"] == {"train": 24, "val": 3, "test": 3}
    rows = predictions(run)
    assert [row["label_name"] for row in rows] == ["cat", "dog", "eel"]
    assert all(row["path"].startswith(row["label_name"]) for row in rows)


def test_a_csv_file_trains(folder: Path, tmp_path: Path) -> None:
    lines = ["path,label", *(f"{path.relative_to(folder)},{path.parent.name}" for path in folder.rglob("*.jpg"))]
    table = folder / "labels.csv"
    table.write_text("\n".join(lines))
    run = tmp_path / "run"
    main(["fit", "--config=image_folder.yaml", *TINY, f"--data.root={table}", f"--run_dir={run}"])
    assert read_results(run)["data"]["task"] == "labels"
    assert "test" in read_results(run)


def test_a_batch_can_be_overfitted(tmp_path: Path) -> None:
    """Lightning then replaces the training sampler by its own, which knows no epochs."""
    folder = write_image_folder(tmp_path / "photos")
    options = [f"--data.root={folder}", f"--run_dir={tmp_path / 'run'}", "--test_after_fit=false"]
    main(["fit", "--config=image_folder.yaml", *TINY, *options, "--trainer.overfit_batches=1"])


def test_a_resumed_run_with_augmentation_equals_the_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    options = ["fit", "--config=image_folder.yaml", *TINY, f"--data.root={folder}", "--test_after_fit=false"]
    main([*options, "--trainer.max_epochs=2", "--data.num_workers=1", f"--run_dir={tmp_path / 'whole'}"])
    stop = "--trainer.callbacks+=tests.lightning_modules.helpers.StopBefore"
    with pytest.raises(StopError):
        main(
            [*options, "--trainer.max_epochs=2", stop, "--trainer.callbacks.epoch=1", f"--run_dir={tmp_path / 'part'}"]
        )
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    main([*options, "--trainer.max_epochs=2", f"--ckpt_path={last}"])
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    resumed = torch.load(last, weights_only=True)
    assert whole["global_step"] == resumed["global_step"] == 6
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_mistakes_end_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "fit", "--config=image_folder.yaml", *TINY, f"--data.root={tmp_path}")
    assert "contains no folders and no images" in error
    assert "Traceback" not in error
    write_image_folder(tmp_path, ["cat", "dog"], 2)
    options = [*TINY, f"--data.root={tmp_path}", "--data.val_fraction=0", f"--run_dir={tmp_path / 'run'}"]
    error = refused(capsys, "fit", "--config=image_folder.yaml", *options)
    assert "needs the split 'val'" in error
    assert json.dumps(error).count("--data.val_fraction") == 1
    assert "not one of the five" in refused(capsys, "fit", "--config=fgvc.yaml", *TINY, "--data.task=cubs")
