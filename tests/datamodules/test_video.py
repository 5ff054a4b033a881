"""Splits, batches and descriptions of the video data modules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import HMDB51DataModule, MotionDataModule, SSv2DataModule, VideoFolderDataModule
from datamodules.base import PaddedDataset
from replora.datasets.errors import ProtocolError
from replora.datasets.video import motion
from replora.datasets.video.dataset import VideoClips
from replora.datasets.video.decode import read_clip
from replora.datasets.video.hmdb51 import film_of
from replora.datasets.video.motion import DIRECTIONS, motion_frames, read_motion
from replora.datasets.video.sampling import ClipError, ClipOptions
from tests.fake_videos import write_hmdb51, write_video_folder

CLIPS = ClipOptions(num_frames=4, image_size=16, test_clips=2, test_crops=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_folder(tmp_path_factory.mktemp("own") / "videos", per_class=8)


@pytest.fixture(scope="module")
def hmdb51(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hmdb51(tmp_path_factory.mktemp("hmdb51") / "data", classes=("brush_hair", "wave"))


def made(root: Path, stage: str = "fit", **options) -> VideoFolderDataModule:
    defaults = {"clips": CLIPS, "num_workers": 0, "batch_size": 4, "test_fraction": 0.25, "val_fraction": 0.25}
    module = VideoFolderDataModule(root=root, **(defaults | options))
    module.setup(stage)
    return module


def test_splits_and_views(root: Path) -> None:
    module = made(root)
    train, val, test = (module._splits[split] for split in ("train", "val", "test"))
    assert isinstance(train, VideoClips)
    assert train.views is None
    assert isinstance(val, VideoClips)
    assert val.views == (1, 1)
    assert (len(train), len(val), len(test)) == (8, 4, 4)
    assert not set(train.paths) & set(val.paths)
    assert val[0]["video"].shape == (1, 3, 4, 16, 16)  # validation is quick
    assert test[0]["video"].shape == (6, 3, 4, 16, 16)
    assert module.eval_batch_size == 1  # 6 views of a video, two training batches of clips
    final = made(root, protocol="final")
    assert len(final._splits["trainval"]) == 12


def test_batches_are_normalized_and_follow_the_epoch(root: Path) -> None:
    module = made(root)
    loader = module.train_dataloader()
    batches = [next(iter(loader))]
    loader.sampler.set_epoch(1)
    batches.append(next(iter(loader)))
    assert batches[0]["video"].shape == (4, 1, 3, 4, 16, 16)
    assert batches[0]["video"].dtype == torch.uint8
    assert not torch.equal(batches[0]["video"], batches[1]["video"])
    assert torch.equal(next(iter(made(root).train_dataloader()))["video"], batches[0]["video"])
    normalized = module.on_after_batch_transfer(batches[0], 0)["video"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (batches[0]["video"].permute(0, 1, 3, 4, 5, 2) / 255 - mean) / std
    assert torch.allclose(normalized.permute(0, 1, 3, 4, 5, 2), expected, atol=1e-5)
    assert module.on_after_batch_transfer({"video": normalized}, 0)["video"] is normalized


def test_few_videos_are_stratified_and_recorded(root: Path) -> None:
    module = made(root, shots=2)
    labels = [module._splits["train"][0, i]["label"] for i in range(4)]
    assert sorted(labels) == [0, 0, 1, 1]
    assert len(module.describe()["train_indices"]) == 4
    assert made(root).describe()["train_indices"] is None  # all of them


def test_padding_counts_for_nothing(root: Path) -> None:
    module = made(root)
    padded = PaddedDataset(module._splits["val"], 3, module.padding_of)
    assert [padded[i]["label"] for i in range(6)][4:] == [-1, -1]
    assert padded[5]["index"] == -1


def test_clips_of_one_film_are_not_divided(hmdb51: Path) -> None:
    module = HMDB51DataModule(hmdb51, check_sizes=False, protocol="holdout", val_fraction=0.3, clips=CLIPS)
    module.setup("fit")
    films = {
        split: {(path.parent, film_of(path)) for path in module.build_dataset(split).paths}
        for split in ("train", "val")
    }
    assert films["val"]
    assert not films["train"] & films["val"]
    others = [
        HMDB51DataModule(hmdb51, split=split, check_sizes=False).describe()["lists_sha256"] for split in (1, 2, 3)
    ]
    assert len(set(others)) == 3


def test_protocols(root: Path) -> None:
    with pytest.raises(ProtocolError, match="tune"):
        made(root, "test", protocol="tune")
    with pytest.raises(ProtocolError, match="final"):
        made(root, "validate", protocol="final")


def test_description_is_json(root: Path) -> None:
    described = made(root).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["clips"]["short_side"] == 16
    assert described["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert len(described["lists_sha256"]) == 64


# --- the demonstration


def test_direction_is_in_no_single_frame() -> None:
    """Any frame of one class can be a frame of any other: the patch may start anywhere."""
    for t in (0, 7):
        means = []
        for name in DIRECTIONS:
            frames = [list(motion_frames(name, np.random.default_rng((1, i))))[t] for i in range(200)]
            means.append(np.mean(frames, axis=0))
        spread = max(np.abs(a - b).mean() for a in means for b in means)
        assert spread < 6  # of 255: the standard error of a mean of 200


def test_motion_is_made_once_and_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "PER_CLASS", {"train": 2, "val": 1, "test": 1})
    table = read_motion(tmp_path / "motion")
    assert table.class_names == sorted(DIRECTIONS) == ["down", "left", "right", "up"]
    assert table.splits.count("train") == 8
    monkeypatch.setattr(motion, "_make", None)  # a second call makes nothing
    assert read_motion(tmp_path / "motion").paths == table.paths
    first = next(path for path in table.paths if path.as_posix() == "train/up/000.avi")
    made_frames = np.stack(list(motion_frames("up", np.random.default_rng((0, 3, 0)))))
    decoded = read_clip(table.home / first, range).permute(0, 2, 3, 1).numpy()
    assert decoded.shape == made_frames.shape == (10, 32, 32, 3)
    assert np.abs(decoded.astype(int) - made_frames).mean() < 15  # half of the colors' resolution is lost


@pytest.mark.parametrize(("name", "axis", "sign"), [("down", 0, 1), ("up", 0, -1), ("right", 1, 1), ("left", 1, -1)])
def test_patches_move_in_the_direction_of_their_class(name: str, axis: int, sign: int) -> None:
    for seed in range(5):
        frames = np.stack(list(motion_frames(name, np.random.default_rng(seed)))).astype(int)
        still = motion._squares(32, np.random.default_rng(seed)) // 2  # what is drawn first
        patch = (frames != still).any(-1)  # (10, 32, 32)
        overlaps = {
            shift: np.mean([(np.roll(patch[t], shift, axis) & patch[t + 1]).sum() / patch[t].sum() for t in range(9)])
            for shift in range(-4, 5)
        }
        assert max(overlaps, key=lambda shift: overlaps[shift]) * sign in (2, 3)


def test_mirroring_is_refused_where_it_changes_the_class(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="a flip exchanges left and right"):
        MotionDataModule(tmp_path, clips=ClipOptions(flip=0.5))
    with pytest.raises(ClipError, match="belongs to another class"):
        SSv2DataModule(tmp_path, clips=ClipOptions(flip=0.5))
