from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import VTABDataModule
from replora.datasets.errors import CorruptImageError, DatasetNotFoundError, ListFileError, TrackError, UnknownTaskError
from replora.datasets.image.resize import tf1_bilinear
from replora.datasets.vtab.dataset import VTAB_TASKS
from replora.datasets.vtab.tracks import ImageFormat, Track, write_marker
from tests.datasets.record_tf1_bilinear import FILE, picture
from tests.fake_data import write_vtab, write_vtab_task


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vtab(tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize("task", VTAB_TASKS)
def test_every_task_gives_batches(archive: Path, task: str) -> None:
    data = VTABDataModule(archive, task, check_sizes=False, batch_size=8, image_size=8)
    assert data.num_classes == len(data.class_names) == VTAB_TASKS[task].num_classes
    data.setup("fit")
    batches = [*data.train_dataloader(), *data.test_dataloader()]
    assert [len(batch["label"]) for batch in batches] == [8, 8, 8, 8]
    for batch in batches:
        assert batch["image"].shape == (8, 3, 8, 8)
        assert [batch[key].dtype for key in ("image", "label", "index")] == [torch.uint8, torch.int64, torch.int64]
    assert json.dumps(data.describe())


def test_defaults_are_the_preprocessing_of_the_archive() -> None:
    data = VTABDataModule()
    assert (data.track, data.image_size, data.reader.interpolation, data.normalization) == (
        "archive",
        224,
        "bicubic",
        "imagenet",
    )
    assert (data.batch_size, data.protocol, data.check_sizes) == (64, "final", True)


def test_track_gives_the_defaults_that_are_not_given() -> None:
    data = VTABDataModule(track="clean")
    assert (data.reader.interpolation, data.normalization) == ("tf1_bilinear", "half")
    data = VTABDataModule(track="clean", normalization="imagenet")  # as in VPT
    assert (data.reader.interpolation, data.normalization) == ("tf1_bilinear", "imagenet")
    data = VTABDataModule(track="clean", interpolation=None)  # as in files of earlier runs
    assert data.reader.interpolation == "bilinear"
    with pytest.raises(TrackError, match=r"track='clear' is not an option\. Did you mean 'clean'"):
        VTABDataModule(track="clear")  # type: ignore[arg-type]


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("normalization", ["half", "imagenet"])
def test_clean_images_are_those_of_vpt_and_adapter_plus(tmp_path: Path, cache_bytes: int, normalization: Any) -> None:
    """Their `preprocess_fn` and `to_torch_imgs`, on what TensorFlow returned."""
    home = write_vtab_task(tmp_path, "kitti", image_format="PNG")
    Image.fromarray(picture(61, 47)).save(home / "images" / "train800val200" / "000000.png")
    with np.load(FILE, allow_pickle=False) as recorded:
        expected = torch.from_numpy(recorded["61x47_to_21"] / np.float32(255)).permute(2, 0, 1)
    mean, std = (
        {"half": (0.5,) * 3, "imagenet": (0.485, 0.456, 0.406)},
        {"half": (0.5,) * 3, "imagenet": (0.229, 0.224, 0.225)},
    )
    expected = (expected - torch.tensor(mean[normalization]).view(3, 1, 1)) / torch.tensor(std[normalization]).view(
        3, 1, 1
    )
    data = VTABDataModule(
        *(tmp_path, "kitti"),
        check_sizes=False,
        image_size=21,
        track="clean",
        batch_size=24,
        num_workers=0,
        cache_bytes=cache_bytes,
        normalization=normalization,
    )
    data.setup("fit")
    for _ in range(2):  # what is held in memory is not normalized again
        (batch,) = data.train_dataloader()
        batch = data.on_after_batch_transfer(batch, 0)
        assert batch["image"].dtype == torch.float32
        (found,) = batch["image"][batch["index"] == 0]
        assert torch.equal(found, expected)
    assert (
        data.denormalize(found) == torch.from_numpy(tf1_bilinear(picture(61, 47), 21, 21)).permute(2, 0, 1).round()
    ).all()


@pytest.mark.parametrize(("images", "asked"), [("JPEG", "clean"), ("PNG", "archive")])
def test_images_of_the_other_track_are_refused(tmp_path: Path, images: ImageFormat, asked: Track) -> None:
    write_vtab_task(tmp_path, "kitti", image_format=images)
    data = VTABDataModule(tmp_path, "kitti", check_sizes=False, image_size=8, track=asked)
    with pytest.raises(TrackError, match=f"track '{asked}' was requested, but .*its images are {images}.*--data.track"):
        data.setup("fit")


def test_the_record_of_a_folder_decides_its_track(tmp_path: Path) -> None:
    home = write_vtab_task(tmp_path, "kitti", image_format="PNG")
    write_marker(home, VTAB_TASKS["kitti"], "clean", "tensorflow_datasets kitti/3.2.0", {})
    data = VTABDataModule(tmp_path, "kitti", check_sizes=False, image_size=8, track="clean")
    data.setup("fit")
    described = data.describe()
    assert (described["track"], described["source"]) == ("clean", "tensorflow_datasets kitti/3.2.0")
    assert described["normalization"]["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(TrackError, match=r"prepared\.json says 'clean'"):
        VTABDataModule(tmp_path, "kitti", check_sizes=False, image_size=8).setup("fit")
    (home / "prepared.json").write_text("{}")
    with pytest.raises(TrackError, match="names no track"):
        data.describe()
    (home / "prepared.json").write_text("{")
    with pytest.raises(TrackError, match="cannot be read"):
        data.describe()


def test_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REPLORA_DATA", raising=False)
    assert VTABDataModule().root == Path("data")
    monkeypatch.setenv("REPLORA_DATA", str(tmp_path))
    assert VTABDataModule().root == tmp_path
    assert VTABDataModule(root=Path("elsewhere")).root == Path("elsewhere")


def test_description(tmp_path: Path) -> None:
    home = write_vtab_task(tmp_path, "cifar", folder="cifar100")
    data = VTABDataModule(
        tmp_path, check_sizes=False, protocol="tune", image_size=8, train_fraction=0.5, subset_rule="by_split"
    )
    data.setup("fit")
    described = data.describe()
    expected = {"dataset": "VTAB", "task": "cifar", "group": "natural", "folder": "cifar100", "track": "archive"}
    assert {key: described[key] for key in expected} == expected
    assert described["root"] == str(home.resolve().parent)
    assert described["split_sizes"] == {"train": 8, "val": 8}
    assert len(described["train_indices"]) == 8
    assert len(described["lists_sha256"]) == 64


def test_own_data_set(tmp_path: Path) -> None:
    write_vtab_task(tmp_path, "leaves", num_classes=3, image_format="PNG")
    data = VTABDataModule(tmp_path, "leaves", num_classes=3, image_size=8)
    data.setup("fit")
    assert data.describe()["group"] is None


def test_task_is_checked_when_it_is_named() -> None:
    with pytest.raises(UnknownTaskError, match="Did you mean 'kitti'"):
        VTABDataModule(task="kiti")


def test_bad_test_set_fails_before_training(tmp_path: Path) -> None:
    home = write_vtab_task(tmp_path, "kitti")
    data = VTABDataModule(tmp_path, "kitti", check_sizes=False, image_size=8)
    (home / "images" / "test" / "000001.jpg").write_bytes(b"damaged")
    with pytest.raises(CorruptImageError, match=r"test/000001\.jpg"):
        data.setup("fit")
    (home / "images" / "test" / "000001.jpg").unlink()
    with pytest.raises(ListFileError, match="1 of 8 images are missing"):
        data.setup("fit")
    (home / "test.txt").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"test\.txt"):
        data.setup("fit")


def test_tune_needs_no_test_set(tmp_path: Path) -> None:
    home = write_vtab_task(tmp_path, "kitti")
    (home / "test.txt").unlink()
    VTABDataModule(tmp_path, "kitti", check_sizes=False, image_size=8, protocol="tune").setup("fit")


def test_real_sizes_are_demanded(archive: Path) -> None:
    with pytest.raises(ListFileError, match="lists 24 images, but train800val200 of kitti has 1,000"):
        VTABDataModule(archive, "kitti").setup("fit")
