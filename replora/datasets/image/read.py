"""One image file -> one uint8 tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from replora.datasets.errors import CorruptImageError

Interpolation = Literal["bilinear", "bicubic"]
# How an image becomes a square: its aspect ratio ignored, or the middle cut out at the ratio 224 : 256.
Framing = Literal["squash", "crop"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_image(
    path: Path,
    size: int,
    interpolation: Interpolation = "bicubic",
    framing: Framing = "squash",
    upright: bool = False,
) -> Tensor:
    """Read an image as an RGB square.

    Equal, pixel for pixel, to torchvision on a PIL image: `Resize((size, size), interpolation)` with `squash`;
    `Resize(s, interpolation)` and `CenterCrop(size)` with `crop`, where s is `short_side(size)`.

    Args:
        path: an image file of any format that Pillow reads.
        size: height and width of the result, in pixels.
        interpolation: the resize filter; both filters are antialiased when they make an image smaller.
        framing: `squash` ignores the aspect ratio, `crop` keeps it and loses the borders.
        upright: turn photos as their EXIF orientation says; the loaders of the benchmarks do not.

    Returns:
        uint8 (3, size, size).

    Raises:
        CorruptImageError: the file is absent, empty, truncated, or not an image.
    """
    if framing == "squash":
        return _read(path, lambda image: square_tensor(image, size, interpolation), upright)
    image = read_uncropped(path, size, interpolation, upright)
    top, left = (round((side - size) / 2) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size].contiguous()


def read_uncropped(path: Path, size: int, interpolation: Interpolation = "bicubic", upright: bool = False) -> Tensor:
    """Read an image as RGB, its shorter side resized to `short_side(size)`, for a crop of `size` to be cut out.

    Args:
        path, size, interpolation, upright: as of `read_image`.

    Returns:
        uint8 (3, H, W), min(H, W) = short_side(size).

    Raises:
        CorruptImageError: as `read_image` says.
    """

    def convert(image: Image.Image) -> Tensor:
        short = short_side(size)
        width, height = image.size
        # As torchvision: the longer side is rounded down.
        shape = (short, short * height // width) if width <= height else (short * width // height, short)
        return _tensor(image.convert("RGB").resize(shape, _FILTERS[interpolation]))

    return _read(path, convert, upright)


def short_side(size: int) -> int:
    """The shorter side of an image from which a crop of `size` pixels is cut: 256 for 224."""
    return round(size * 256 / 224)


def check_header(path: Path) -> str | None:
    """What is wrong with an image file as far as its first bytes tell, or None. Does not decode it."""
    try:
        with Image.open(path):
            return None
    except _DAMAGED as error:
        return _reason(path, error)


# Pillow raises all of these on damaged files (SyntaxError: broken PNG chunks).
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def _read(path: Path, convert: Callable[[Image.Image], Tensor], upright: bool) -> Tensor:
    try:
        with Image.open(path) as image:
            return convert(ImageOps.exif_transpose(image) if upright else image)
    except _DAMAGED as error:
        raise CorruptImageError(
            f"The image {path} cannot be read: {_reason(path, error)}. Copy or extract this file again from its source."
        ) from error


def _reason(path: Path, error: BaseException) -> str:
    return "the file is empty (0 bytes)" if path.is_file() and path.stat().st_size == 0 else str(error)


def square_tensor(image: Image.Image, size: int, interpolation: Interpolation) -> Tensor:
    """A PIL image of any mode and shape -> uint8 (3, size, size)."""
    return _tensor(image.convert("RGB").resize((size, size), _FILTERS[interpolation]))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)
