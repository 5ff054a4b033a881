from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from replora.datasets.video.sampling import ClipError, ClipOptions, random_crop, random_frames, view_crops, view_frames


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(height: int, width: int, frames: int = 2) -> torch.Tensor:
    """Red tells the row, green the column, blue the frame: uint8 (T, 3, H, W)."""
    video = torch.empty(frames, 3, height, width, dtype=torch.uint8)
    video[:, 0] = torch.arange(height)[:, None]
    video[:, 1] = torch.arange(width)
    video[:, 2] = torch.arange(frames)[:, None, None]
    return video


def corner(crop: torch.Tensor) -> tuple[int, int]:
    """Row and column of the upper left pixel."""
    return int(crop[0, 0, 0, 0]), int(crop[0, 1, 0, 0])


def test_dense_training_clips_start_anywhere() -> None:
    options = ClipOptions(num_frames=4, stride=3)  # a span of 10
    drawn = [random_frames(options, 14, generator(seed)) for seed in range(100)]
    assert {frames[0] for frames in drawn} == {0, 1, 2, 3, 4}
    assert all([b - a for a, b in pairwise(frames)] == [3, 3, 3] for frames in drawn)


def test_dense_views_are_spread_over_the_video() -> None:
    options = ClipOptions(num_frames=4, stride=3)
    assert view_frames(options, 30, 0, 1) == [10, 13, 16, 19]
    assert [view_frames(options, 30, k, 3)[0] for k in range(3)] == [0, 10, 20]


def test_uniform_clips_take_one_frame_of_each_segment() -> None:
    options = ClipOptions(num_frames=5, sampling="uniform")
    segments = [set(), set(), set(), set(), set()]
    for seed in range(200):
        for segment, frame in zip(segments, random_frames(options, 20, generator(seed)), strict=True):
            segment.add(frame)
    assert segments == [set(range(4 * i, 4 * i + 4)) for i in range(5)]
    assert view_frames(options, 20, 0, 1) == [2, 6, 10, 14, 18]
    assert [view_frames(options, 20, k, 2)[0] for k in range(2)] == [1, 3]


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
@pytest.mark.parametrize("count", [1, 2, 5, 7, 16, 33])
def test_short_videos_give_clips_of_full_length(sampling: str, count: int) -> None:
    options = ClipOptions(num_frames=8, sampling=sampling)
    drawn = [random_frames(options, count, generator(seed)) for seed in range(20)]
    drawn += [view_frames(options, count, k, 4) for k in range(4)]
    for frames in drawn:
        assert len(frames) == 8
        assert frames == sorted(frames)
        assert 0 <= frames[0] <= frames[-1] < count
    if count == 1:
        assert drawn[0] == [0] * 8
    if sampling == "dense" and count == 5:
        assert drawn[0] == [0, 2, 4, 4, 4, 4, 4, 4]


def test_three_crops_cover_the_longer_side() -> None:
    options = ClipOptions(image_size=8)
    assert [corner(crop) for crop in view_crops(options, gradient(8, 20), 3)] == [(0, 0), (0, 6), (0, 12)]
    assert [corner(crop) for crop in view_crops(options, gradient(20, 8), 3)] == [(0, 0), (6, 0), (12, 0)]
    assert [corner(crop) for crop in view_crops(options, gradient(10, 20), 1)] == [(1, 6)]
    assert [corner(crop) for crop in view_crops(options, gradient(10, 20), 3)] == [(1, 0), (1, 6), (1, 12)]
    assert all(crop.shape == (2, 3, 8, 8) for crop in view_crops(options, gradient(10, 20), 3))


def test_random_squares_reach_every_place_and_are_the_same_in_all_frames() -> None:
    options = ClipOptions(image_size=8, crop="random")
    video = gradient(9, 11, frames=3)
    crops = [random_crop(options, video, generator(seed)) for seed in range(100)]
    assert {corner(crop) for crop in crops} == {(row, column) for row in range(2) for column in range(4)}
    assert all(torch.equal(crop[0, :2], crop[2, :2]) for crop in crops)
    assert all(crop[:, 2, 0, 0].tolist() == [0, 1, 2] for crop in crops)


def test_multi_scale_crops() -> None:
    options = ClipOptions(image_size=64)
    video = gradient(64, 96)
    crops = [random_crop(options, video, generator(seed)) for seed in range(300)]
    assert all(crop.shape == (2, 3, 64, 64) for crop in crops)
    # The rows and columns that a crop covers, from its outermost pixels.
    heights = Counter(round((int(c[0, 0, -1, 0]) - int(c[0, 0, 0, 0]) + 1) / 64, 1) for c in crops)
    widths = Counter(round((int(c[0, 1, 0, -1]) - int(c[0, 1, 0, 0]) + 1) / 64, 1) for c in crops)
    for sides in (heights, widths):
        assert {1.0, 0.9, 0.7} <= set(sides)
        assert min(sides) >= 0.6
        assert max(sides) <= 1.0
    assert len({corner(crop) for crop in crops}) > 20


def test_mirroring() -> None:
    video = gradient(8, 8)

    def crop(flip: float, seed: int) -> torch.Tensor:
        options = ClipOptions(image_size=8, crop="centre", flip=flip)
        return random_crop(options, video, generator(seed))

    assert all(torch.equal(crop(0.0, seed), video) for seed in range(20))
    assert all(torch.equal(crop(1.0, seed), video.flip(-1)) for seed in range(20))
    assert {torch.equal(crop(0.5, seed), video) for seed in range(20)} == {True, False}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 0}, r"clips\.num_frames=0 is too small"),
        ({"sampling": "dens"}, r"clips\.sampling='dens' is not an option\. Did you mean 'dense'"),
        ({"crop": "center"}, r"Did you mean 'centre'"),
        ({"flip": 1.5}, r"clips\.flip=1\.5 is not in \[0, 1\]"),
        ({"test_crops": 2}, r"clips\.test_crops=2"),
        ({"short_side": 200}, r"clips\.short_side=200 is smaller than the crop, clips\.image_size=224"),
    ],
)
def test_wrong_options(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ClipError, match=message):
        ClipOptions(**wrong)
