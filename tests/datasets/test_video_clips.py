"""Clips for training and evaluation, and the cache of decoded frames."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from replora.datasets.errors import CorruptVideoError
from replora.datasets.video import dataset as video_clips
from replora.datasets.video import frame_cache as clip_cache
from replora.datasets.video.dataset import VideoClips
from replora.datasets.video.folder import read_video_table
from replora.datasets.video.frame_cache import CacheError, ClipCache
from replora.datasets.video.sampling import ClipOptions
from replora.io import replacing
from tests.fake_videos import write_frames, write_video_folder

OPTIONS = ClipOptions(num_frames=4, stride=2, image_size=16, short_side=20, flip=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_folder(tmp_path_factory.mktemp("own") / "videos", per_class=3)


def train(root: Path, **options) -> VideoClips:
    return VideoClips(read_video_table(root), range(6), OPTIONS, **options)


def test_training_clips_follow_from_seed_epoch_and_video(root: Path) -> None:
    clips = train(root, chosen=[1, 3, 5])
    assert len(clips) == 3
    sample = clips[0, 1]
    assert (sample["index"], sample["label"]) == (3, 1)
    assert sample["video"].shape == (1, 3, 4, 16, 16)
    assert sample["video"].dtype == torch.uint8
    assert torch.equal(sample["video"], train(root)[0, 3]["video"])  # not from its position among the chosen
    assert not torch.equal(sample["video"], clips[1, 1]["video"])
    assert not torch.equal(sample["video"], train(root, seed=1)[0, 3]["video"])


def test_views_are_the_same_every_time_and_differ(root: Path) -> None:
    clips = VideoClips(read_video_table(root), [4, 0], OPTIONS, views=(3, 3))
    sample = clips[0]
    assert (sample["index"], sample["label"]) == (0, 1)
    assert sample["video"].shape == (9, 3, 4, 16, 16)
    assert torch.equal(sample["video"], clips[0]["video"])
    assert len({view.numpy().tobytes() for view in sample["video"]}) == 9
    # One clip and one crop: the middle one of three.
    whole = ClipOptions(num_frames=4, stride=2, image_size=16)
    alone = VideoClips(read_video_table(root), [4], whole, views=(1, 1))[0]["video"][0]
    assert torch.equal(alone, VideoClips(read_video_table(root), [4], whole, views=(3, 3))[0]["video"][4])


def test_a_corrupt_video_is_an_error_or_counts_for_nothing(root: Path, tmp_path: Path, caplog) -> None:
    table = read_video_table(root)
    broken = tmp_path / "broken"
    (broken / "left").mkdir(parents=True)
    (broken / "left" / "0.avi").write_bytes(b"no video")
    table = type(table)(broken, table.paths, table.labels, table.class_names, table.splits)
    with pytest.raises(CorruptVideoError, match=r"left/0\.avi cannot be decoded.*--data\.skip_corrupt true"):
        VideoClips(table, [0], OPTIONS, views=(1, 1))[0]
    with pytest.raises(CorruptVideoError, match="cannot be decoded"):
        VideoClips(table, [0], OPTIONS)[0, 0]
    for sample in (
        VideoClips(table, [0], OPTIONS, skip_corrupt=True, views=(2, 1))[0],
        VideoClips(table, [0], OPTIONS, skip_corrupt=True)[0, 0],
    ):
        assert sample["label"] == -1
        assert sample["index"] == 0
        assert sample["video"].shape[1:] == (3, 4, 16, 16)
    assert "left/0.avi cannot be decoded" in caplog.text


def test_the_cache_changes_nothing_and_decodes_once(root: Path, tmp_path: Path, monkeypatch) -> None:
    table = read_video_table(root)
    plain = [train(root)[epoch, i]["video"] for epoch in (0, 1) for i in range(6)]
    views = [VideoClips(table, range(6), OPTIONS, views=(2, 3))[i]["video"] for i in range(6)]
    decode = Mock(wraps=clip_cache.read_clip)
    monkeypatch.setattr(clip_cache, "read_clip", decode)
    monkeypatch.setattr(video_clips, "read_clip", Mock(side_effect=AssertionError("around the cache")))
    cache = ClipCache(tmp_path / "cache", 2**30)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            plain, (train(root, cache=cache)[epoch, i]["video"] for epoch in (0, 1) for i in range(6)), strict=True
        )
    )
    assert decode.call_count == 6
    cached = VideoClips(table, range(6), OPTIONS, ClipCache(tmp_path / "cache", 2**30), views=(2, 3))
    for _ in range(2):
        assert all(torch.equal(a, cached[i]["video"]) for i, a in enumerate(views))
    assert decode.call_count == 12  # other frames are kept for evaluation


def test_the_cache_is_bounded(root: Path, tmp_path: Path) -> None:
    clips = train(root, cache=ClipCache(tmp_path / "cache", 60_000))
    plain = train(root)
    assert all(torch.equal(clips[0, i]["video"], plain[0, i]["video"]) for i in range(6))
    sizes = [file.stat().st_size for file in (tmp_path / "cache").iterdir()]
    assert 1 <= len(sizes) < 6
    assert sum(sizes) < 61_000
    assert not list((tmp_path / "none").glob("*"))
    assert torch.equal(train(root, cache=ClipCache(tmp_path / "none", 0))[0, 0]["video"], plain[0, 0]["video"])
    assert not (tmp_path / "none").exists()


def write_many(folder: Path, name: int) -> None:
    """As a loader process writes: to a temporary file that then takes its place."""
    for i in range(1000):
        with replacing(folder / f"{name}{i % 50:031d}.safetensors") as temporary:
            temporary.write_bytes(b"frames")


def test_processes_that_write_do_not_disturb_each_other(tmp_path: Path) -> None:
    writers = [multiprocessing.Process(target=write_many, args=(tmp_path, name)) for name in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert ClipCache(tmp_path, 2**20)._room() <= 2**20
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert ClipCache(tmp_path, 2**20)._room() == 2**20 - 150 * len(b"frames")


def test_the_folder_is_looked_at_after_much_is_written(root: Path, tmp_path: Path, monkeypatch) -> None:
    look = Mock(wraps=clip_cache._size)
    monkeypatch.setattr(clip_cache, "_size", look)
    clips = train(root, cache=ClipCache(tmp_path / "cache", 2**30))
    for _ in range(2):
        assert [clips[0, i]["label"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert look.call_count == 1
    monkeypatch.setattr(clip_cache, "RESCAN", 0)
    clips = train(root, cache=ClipCache(tmp_path / "other", 2**30))
    assert [clips[0, i]["label"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert look.call_count == 1 + 6


def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    left, written, other = (tmp_path / f"{'0' * 32}.safetensors{n}.tmp" for n in "abc")
    other = other.with_name("notes.tmp")
    for file in (left, written, other):
        file.write_bytes(b"12345")
    for file in (left, other):
        os.utime(file, (time.time() - 7200,) * 2)
    assert ClipCache(tmp_path, 100)._room() == 100 - 10
    assert not left.exists()
    assert written.exists()
    assert other.exists()


def test_a_changed_video_is_decoded_again(tmp_path: Path) -> None:
    root = write_video_folder(tmp_path / "videos", per_class=3)
    cache = ClipCache(tmp_path / "cache", 2**30)
    before = train(root, cache=cache)[0, 0]["video"]
    (root / "left" / "0.avi").write_bytes((root / "right" / "1.avi").read_bytes())
    after = train(root, cache=cache)[0, 0]["video"]
    assert not torch.equal(before, after)
    assert torch.equal(after, train(root)[0, 0]["video"])


def test_an_image_that_changes_in_its_place_is_read_again(tmp_path: Path) -> None:
    clip = write_frames(tmp_path / "clip")
    cache = ClipCache(tmp_path / "cache", 2**30)
    before = cache.read(clip, range, 24, clip_cache.EVERY_FRAME)
    assert torch.equal(cache.read(clip, range, 24, clip_cache.EVERY_FRAME), before)
    folder = clip.stat().st_mtime_ns
    (clip / "img_3.jpg").write_bytes((clip / "img_9.jpg").read_bytes())
    os.utime(clip, ns=(folder, folder))
    after = cache.read(clip, range, 24, clip_cache.EVERY_FRAME)
    assert torch.equal(after[2], before[8])
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_file_of_the_cache_is_decoded_again(root: Path, tmp_path: Path) -> None:
    clips = train(root, cache=ClipCache(tmp_path, 2**30))
    before = clips[0, 0]["video"]
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(clips[0, 0]["video"], before)


def test_a_cache_that_cannot_be_written_says_so(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"--data\.cache_dir null"):
        train(root, cache=ClipCache(tmp_path / "file" / "cache", 2**30))[0, 0]
