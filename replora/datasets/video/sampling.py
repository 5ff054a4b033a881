"""Which frames and which part of them make a clip: `ClipOptions`, at random in training and fixed elsewhere.

With n frames in the file and T wanted:

    dense     T frames, `stride` apart. Training starts anywhere; view k of K starts at k (n - span) / (K - 1), and a
              single view in the middle, with span = (T - 1) stride + 1.
    uniform   the file in T equal segments, one frame of each (TSN, Wang et al. 2016). Training takes any frame of a
              segment; view k of K the one at (2 k + 1) / (2 K) of it.

Where the file is too short, dense clips repeat its last frame and uniform ones repeat frames in between.
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

# The crops of TSN, as V-PETL trains on: sides as parts of the shorter side, neighbours in this list at most; at one of
# 13 places, given in quarters of the free width and height.
SCALES = (1.0, 0.875, 0.75, 0.66)
PLACES = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3),
)  # fmt: skip


class ClipError(RepLoRAError):
    """An option of the clips is out of its range, or contradicts another one."""


@dataclass(frozen=True)
class ClipOptions:
    """What a clip is.

    Args:
        num_frames: frames of a clip, at least 1.
        sampling: `dense` takes frames `stride` apart, `uniform` one frame of each of `num_frames` equal segments.
        stride: distance of two frames of a dense clip, at least 1.
        image_size: height and width of the clips, in pixels.
        short_side: shorter side of the frames before they are cropped, in pixels; `image_size` by default.
        crop: of the training clips. `multi_scale`: a rectangle of 0.66 to 1 times the shorter side, resized (TSN);
            `random`: a square anywhere; `centre`.
        flip: probability in [0, 1] of mirroring a training clip left and right.
        test_clips: clips in time that the test takes of each video and averages, at least 1.
        test_crops: squares that the test takes of each of these: 1 in the middle, or 3 along the longer side.

    Raises:
        ClipError: an option is out of its range.
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
                raise ClipError(f"clips.{name}={getattr(self, name)} is too small: it is at least 1.")
        for name, choices in (("sampling", get_args(Sampling)), ("crop", get_args(TrainCrop))):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise ClipError(f"clips.{name}={value!r} is not an option. {nearest(value, choices)}")
        if not 0 <= self.flip <= 1:
            raise ClipError(f"clips.flip={self.flip} is not in [0, 1].")
        if self.test_crops not in (1, 3):
            raise ClipError(f"clips.test_crops={self.test_crops}: 1 takes the middle, 3 take the whole longer side.")
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
    """The frames of view `clip` of `clips`, for evaluation: `num_frames` ascending positions."""
    if options.sampling == "dense":
        free = max(count - _span(options), 0)
        return _dense(options, count, free // 2 if clips == 1 else clip * free // (clips - 1))
    return _uniform(options, count, [(2 * clip + 1) / (2 * clips)] * options.num_frames)


def random_crop(options: ClipOptions, frames: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 (T, 3, H, W), its shorter side `options.side` -> uint8 (T, 3, image_size, image_size); one crop for all."""
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
    """The 1 or 3 squares (T, 3, image_size, image_size) of frames (T, 3, H, W) that are not cropped yet.

    Three of them lie at both ends and in the middle of the longer side. (V-PETL cuts out the middle first, so its three
    crops are one and the same.)
    """
    return _squares(frames, options.image_size, crops)


def _squares(frames: Tensor, size: int, crops: int) -> list[Tensor]:
    height, width = frames.shape[-2:]
    parts = [(1, 2)] if crops == 1 else [(0, 2), (1, 2), (2, 2)]
    found = []
    for part, whole in parts:
        # Along the longer side; always in the middle of the shorter one.
        top = (height - size) * part // whole if height > width else (height - size) // 2
        left = (width - size) * part // whole if width >= height else (width - size) // 2
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
    """Sides within 3 pixels of the crop's size are taken as that size, as TSN does: no resizing by a pixel."""
    return size if abs(side - size) < 3 else side


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
