"""Images that cannot be read: the run stops with the remedy, or leaves them out and counts them in its record."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from replora.cli.main import main
from replora.results import read_results
from tests.cli.test_own_data import TINY, refused
from tests.fake_data import write_fgvc_task, write_image_folder, write_vtab_task

torch.set_num_threads(1)


def vtab(root: Path) -> tuple[list[str], Path, Path]:
    home = write_vtab_task(root, "eurosat")
    options = ["--config=vtab.yaml", f"--data.root={root}", "--data.task=eurosat", "--data.check_sizes=false"]
    return options, home / "images/train800val200/000000.jpg", home / "images/test/000001.jpg"


def fgvc(root: Path) -> tuple[list[str], Path, Path]:
    home = write_fgvc_task(root, "stanford_dogs")
    options = ["--config=fgvc.yaml", f"--data.root={root}", "--data.task=stanford_dogs", "--data.check_sizes=false"]
    train, test = (next(iter(json.loads((home / f"{split}.json").read_text()))) for split in ("train", "test"))
    return options, home / "Images" / train, home / "Images" / test


def folder(root: Path) -> tuple[list[str], Path, Path]:
    home = write_image_folder(root / "photos", splits=["train", "val", "test"], per_class=4)
    return ["--config=image_folder.yaml", f"--data.root={home}"], home / "train/cat/1.jpg", home / "test/dog/2.jpg"


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "no image"])
@pytest.mark.parametrize("write", [vtab, fgvc, folder])
def test_unreadable_images_stop_the_run_or_count_for_nothing(
    write, cut: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, *corrupt = write(tmp_path / "data")
    for file in corrupt:
        file.write_bytes(file.read_bytes()[:-100] if cut else b"no image")
    options += [*TINY, "--data.drop_last=false"]
    error = refused(capsys, "fit", *options, f"--run_dir={tmp_path / 'stopped'}")
    assert any(file.name in error for file in corrupt)
    assert "--data.skip_corrupt true" in error
    run = tmp_path / "run"
    main(["fit", *options, "--data.skip_corrupt=true", f"--run_dir={run}"])
    content = read_results(run)
    assert content["data"]["skip_corrupt"]
    assert content["fit"]["metrics"]["train/skipped"] == 1
    assert content["test"]["metrics"]["test/skipped"] == 1
    assert content["test"]["data"]["skip_corrupt"]
    main(["predict", f"--config={run / 'fit.yaml'}"])
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == content["data"]["split_sizes"]["test"] - 1
    assert corrupt[1].name not in [Path(row["path"]).name for row in rows if row["path"].startswith("test/dog")]
    # The accuracy is that of the images that could be read.
    correct = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
    assert content["test"]["metrics"]["test/accuracy"] == pytest.approx(correct, abs=1e-6)


def test_images_that_change_every_epoch_are_skipped_by_loader_processes(tmp_path: Path) -> None:
    options, *corrupt = folder(tmp_path / "data")
    corrupt[0].write_bytes(b"")
    run = tmp_path / "run"
    options += [*TINY, "--data.num_workers=1", "--data.skip_corrupt=true", "--trainer.max_epochs=2"]
    main(["fit", *options, "--data.drop_last=false", "--data.cache_bytes=0", f"--run_dir={run}"])
    assert read_results(run)["fit"]["history"]["train/skipped"] == [[1, 1.0], [2, 1.0]]


def test_a_run_on_readable_images_does_not_count(tmp_path: Path) -> None:
    options, *_ = folder(tmp_path / "data")
    main(["fit", *options, *TINY, f"--run_dir={tmp_path / 'run'}"])
    content = read_results(tmp_path / "run")
    assert "skip_corrupt" not in content["data"]
    assert not any("skipped" in name for name in {**content["fit"]["metrics"], **content["test"]["metrics"]})
