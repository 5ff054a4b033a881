"""Sampling of clips: frames and crops, at random in training and fixed in evaluation.

With n frames in the file and T requested ones:

    dense     T frames, `stride` apart. Training starts anywhere; view k of K starts at k (n - span) / (K - 1), and a
              single view is in the middle, with span = (T - 1) stride + 1.
    uniform   one frame of each of T equal segments (TSN, Wang et al. 2016). Training takes any frame of a segment; view
              k of K takes the one at (2 k + 1) / (2 K) of it.

If the file is too short, dense clips repeat its last frame and uniform clips repeat frames in between.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from replora.errors import RepLoRAError, nearest

Sampling = Literal["dense", "uniform"]
TrainCrop = Literal["multi_scale", "random", "centre"]

# The crops of TSN, which V-PETL trains on. The two sides are parts of the shorter side, at most one step apart in this
# list. The 13 places are in quarters of the free width and height.
SCALES = (1.0, 0.875, 0.75, 0.66)
PLACES = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3),
)  # fmt: skip


class ClipError(RepLoRAError):
    """An option of the clips is out of its range or contradicts another one."""


@dataclass(frozen=True)
class ClipOptions:
    """Options of the clips.

    Args:
        num_frames: Number of frames in a clip (>= 1).
        sampling: `dense` takes frames `stride` apart, `uniform` one frame of each of `num_frames` equal segments.
        stride: Distance between two frames of a dense clip, in frames (>= 1).
        image_size: Height and width of the clips, in pixels (>= 1).
        short_side: Shorter side of the frames before the crop, in pixels. Default: `image_size`.
        crop: Crop of the training clips. `multi_scale`: a rectangle with sides of 0.66 to 1 times the shorter side,
            resized (TSN); `random`: a random square; `centre`: the square in the middle.
        flip: Probability of a horizontal flip of a training clip, in [0, 1].
        test_clips: Number of clips in time that a test averages for each video (>= 1).
        test_crops: Number of squares that a test takes of each of these clips: 1 in the middle, or 3 along the longer
            side.

    Raises:
        ClipError: An option is out of its range.
    """

    num_frames: int = 8
    sampling: Sampling = "dense"
    stride: int = 2
    image_size: int = 224
    short_side: int | None = None
    crop: TrainCrop = "multi_scale"
    flip: float = 0.0
    test_clips: int = 1
    test_crops: int = 1

    def __post_init__(self) -> None:
        for name in ("num_frames", "stride", "image_size", "test_clips"):
            if getattr(self, name) < 1:
                raise ClipError(f"clips.{name}={getattr(self, name)} is too small; it must be at least 1.")
        for name, choices in (("sampling", get_args(Sampling)), ("crop", get_args(TrainCrop))):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise ClipError(f"clips.{name}={value!r} is not an option. {nearest(value, choices)}")
        if not 0 <= self.flip <= 1:
            raise ClipError(f"clips.flip={self.flip} is not in [0, 1].")
        if self.test_crops not in (1, 3):
            raise ClipError(f"clips.test_crops={self.test_crops} must be 1 (the middle) or 3 (along the longer side).")
        if self.side < self.image_size:
            raise ClipError(
                f"clips.short_side={self.side} is smaller than the crop, clips.image_size={self.image_size}."
            )

    @property
    def side(self) -> int:
        """The shorter side of the frames before they are cropped, in pixels."""
        return self.short_side or self.image_size

    def describe(self) -> dict[str, Any]:
        """All options, as JSON values."""
        return asdict(self) | {"short_side": self.side}


def random_frames(options: ClipOptions, count: int, generator: torch.Generator) -> list[int]:
    """`num_frames` ascending positions in a video of `count` frames, for training."""
    if options.sampling == "dense":
        free = max(count - _span(options), 0)
        return _dense(options, count, _draw(free + 1, generator))
    at = torch.rand(options.num_frames, generator=generator)
    return _uniform(options, count, at.tolist())


def view_frames(options: ClipOptions, count: int, clip: int, clips: int) -> list[int]:
    """`num_frames` ascending positions of view `clip` of `clips`, for evaluation."""
    if options.sampling == "dense":
        free = max(count - _span(options), 0)
        return _dense(options, count, free // 2 if clips == 1 else clip * free // (clips - 1))
    return _uniform(options, count, [(2 * clip + 1) / (2 * clips)] * options.num_frames)


def random_crop(options: ClipOptions, frames: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 (T, 3, H, W) with shorter side `options.side` -> uint8 (T, 3, image_size, image_size), one crop for all."""
    size = options.image_size
    height, width = frames.shape[-2:]
    if options.crop == "multi_scale":
        sides = [_fitted(round(min(height, width) * scale), size) for scale in SCALES]
        shapes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
        h, w = shapes[_draw(len(shapes), generator)]
        across, down = PLACES[_draw(len(PLACES), generator)]
        top, left = down * ((height - h) // 4), across * ((width - w) // 4)
        cut = frames[..., top : top + h, left : left + w]
        if (h, w) != (size, size):
            cut = F.interpolate(cut.contiguous(), size=(size, size), mode="bilinear", antialias=True)
    elif options.crop == "random":
        top, left = _draw(height - size + 1, generator), _draw(width - size + 1, generator)
        cut = frames[..., top : top + size, left : left + size]
    else:
        cut = _squares(frames, size, 1)[0]
    mirrored = options.flip > 0 and bool(torch.rand((), generator=generator) < options.flip)
    return (cut.flip(-1) if mirrored else cut).contiguous()


def view_crops(options: ClipOptions, frames: Tensor, crops: int) -> list[Tensor]:
    """The 1 or 3 squares (T, 3, image_size, image_size) of frames (T, 3, H, W).

    Three squares are at both ends and in the middle of the longer side. (V-PETL first crops the middle, so its three
    crops are equal.)
    """
    return _squares(frames, options.image_size, crops)


def _squares(frames: Tensor, size: int, crops: int) -> list[Tensor]:
    height, width = frames.shape[-2:]
    parts = [(1, 2)] if crops == 1 else [(0, 2), (1, 2), (2, 2)]
    found = []
    for part, total in parts:
        # Along the longer side, and in the middle of the shorter one.
        top = (height - size) * part // total if height > width else (height - size) // 2
        left = (width - size) * part // total if width >= height else (width - size) // 2
        found.append(frames[..., top : top + size, left : left + size])
    return found


def _span(options: ClipOptions) -> int:
    return (options.num_frames - 1) * options.stride + 1


def _dense(options: ClipOptions, count: int, start: int) -> list[int]:
    return [min(start + i * options.stride, count - 1) for i in range(options.num_frames)]


def _uniform(options: ClipOptions, count: int, at: list[float]) -> list[int]:
    """The frame at the part `at[i]` in [0, 1) of segment i."""
    length = count / options.num_frames
    return [min(int((i + part) * length), count - 1) for i, part in enumerate(at)]


def _fitted(side: int, size: int) -> int:
    """Replace a side within 3 pixels of the crop's size by that size, like TSN, to avoid resizing by a pixel."""
    return size if abs(side - size) < 3 else side


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
