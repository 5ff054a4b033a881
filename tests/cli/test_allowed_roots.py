"""`--data.allowed_roots`: data whose links or paths lead to other folders, in every kind of data set that has files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from datamodules import FGVCDataModule, ImageFolderDataModule, SSv2DataModule, VideoFolderDataModule, VTABDataModule
from datamodules.base import BaseDataModule
from replora.cli.main import main
from replora.datasets.common.paths import is_allowed
from replora.datasets.errors import ListFileError
from replora.results import read_results
from tests.cli.test_own_data import TINY, refused
from tests.fake_data import write_fgvc_task, write_image_folder, write_vtab_task
from tests.fake_videos import write_ssv2, write_video_folder

torch.set_num_threads(1)


def move_away(file: Path, elsewhere: Path) -> Path:
    """Leave a link in the place of a file, as a cache or a share does; returns the folder it leads to."""
    elsewhere.mkdir()
    shutil.move(file, elsewhere / file.name)
    file.symlink_to(elsewhere / file.name)
    return elsewhere


def vtab(root: Path, elsewhere: Path, **options) -> BaseDataModule:
    home = root / "vtab-1k" / "eurosat"
    if not home.exists():
        home = write_vtab_task(root, "eurosat")
        move_away(home / "images/test/000001.jpg", elsewhere)
    return VTABDataModule(root, "eurosat", check_sizes=False, **options)


def fgvc(root: Path, elsewhere: Path, **options) -> BaseDataModule:
    if not root.exists():
        home = write_fgvc_task(root, "stanford_dogs")
        move_away(next((home / "Images").rglob("*.jpg")), elsewhere)
    return FGVCDataModule(root, "stanford_dogs", check_sizes=False, **options)


def images(root: Path, elsewhere: Path, **options) -> BaseDataModule:
    if not root.exists():
        move_away(write_image_folder(root) / "cat" / "1.jpg", elsewhere)
    return ImageFolderDataModule(root, **options)


def listed(root: Path, elsewhere: Path, **options) -> BaseDataModule:
    if not root.exists():
        write_image_folder(elsewhere)
        root.mkdir()
        lines = [f"{file},{file.parent.name}" for file in sorted(elsewhere.rglob("*.jpg"))]
        (root / "list.csv").write_text("path,label\n" + "\n".join(lines))
    return ImageFolderDataModule(root / "list.csv", **options)


def videos(root: Path, elsewhere: Path, **options) -> BaseDataModule:
    if not root.exists():
        write_video_folder(root)
        move_away(next(file for file in sorted(root.rglob("*")) if file.is_file()), elsewhere)
    return VideoFolderDataModule(root, **options)


def ssv2(root: Path, elsewhere: Path, **options) -> BaseDataModule:
    if not root.exists():
        write_ssv2(root, train=3, validation=3)
        move_away(next(root.rglob("*.webm")), elsewhere)
    return SSv2DataModule(root, check_sizes=False, **options)


@pytest.mark.parametrize("build", [vtab, fgvc, images, listed, videos, ssv2])
def test_further_roots_can_be_allowed(build, tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    with pytest.raises(ListFileError, match=rf"leaves the data.*--data\.allowed_roots {elsewhere}"):
        build(root, elsewhere).setup()
    with pytest.raises(ListFileError, match="leaves the data"):
        build(root, elsewhere, allowed_roots=tmp_path / "none").setup()
    for allowed in (elsewhere, [tmp_path / "none", elsewhere]):
        data = build(root, elsewhere, allowed_roots=allowed)
        data.setup()
        data.build_dataset(data.eval_split)  # as for the paths of predictions
    assert not is_allowed(elsewhere / "x"), "only while the lists of these data are read"


def test_it_is_an_option_that_changes_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    move_away(write_image_folder(root) / "cat" / "1.jpg", elsewhere)
    options = ["fit", "--config=image_folder.yaml", *TINY, f"--data.root={root}", "--test_after_fit=false"]
    error = refused(capsys, *options, f"--run_dir={tmp_path / 'refused'}")
    assert f"--data.allowed_roots {elsewhere}" in error
    hashes = set()
    for number, value in enumerate((str(elsewhere), f"[{elsewhere}, /nowhere]")):
        run = tmp_path / f"run{number}"
        main([*options, f"--data.allowed_roots={value}", f"--run_dir={run}"])
        hashes.add(read_results(run)["configuration_sha256"])
        main(["test", f"--config={run / 'fit.yaml'}"])
    assert len(hashes) == 1
