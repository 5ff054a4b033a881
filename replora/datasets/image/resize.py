"""The filters that resize an image."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Those of Pillow are antialiased where they make an image smaller; that of TensorFlow 1 is not.
Interpolation = Literal["bilinear", "bicubic", "tf1_bilinear"]
PILLOW: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

Pixels = np.ndarray[Any, np.dtype[np.float32]]


def resize(image: Image.Image, width: int, height: int, interpolation: Interpolation) -> Tensor:
    """An RGB image -> (3, height, width): uint8 with a filter of Pillow, float32 in [0, 255] with `tf1_bilinear`."""
    if interpolation == "tf1_bilinear":
        pixels = tf1_bilinear(np.asarray(image), width, height)
    else:
        pixels = np.array(image.resize((width, height), PILLOW[interpolation]))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def tf1_bilinear(image: np.ndarray[Any, np.dtype[np.uint8]], width: int, height: int) -> Pixels:
    """TensorFlow 1's `tf.image.resize`, equal to the bit: what VPT and Adapter+ resize VTAB-1K with.

    Row y of the result lies at y * H / height of the image, without half a pixel for the centers, between the two rows
    around it. All others count for nothing, so where an image shrinks the result has aliases. It is not rounded.

    Args:
        image: Pixels, (H, W, 3).
        width, height: Size of the result, in pixels.

    Returns:
        float32 (height, width, 3) in [0, 255].
    """
    above, below, down = _neighbors(image.shape[0], height)
    left, right, along = _neighbors(image.shape[1], width)

    def between(rows: Pixels) -> Pixels:
        start, end = rows[:, left], rows[:, right]
        return start + (end - start) * along[:, None]

    top, bottom = between(image[above].astype(np.float32)), between(image[below].astype(np.float32))
    found: Pixels = top + (bottom - top) * down[:, None, None]
    return found


def _neighbors(length: int, wanted: int) -> tuple[Any, Any, Pixels]:
    """The two pixels around each of `wanted` places on a side, and the distance from the first, in [0, 1)."""
    places = np.arange(wanted, dtype=np.float32) * (np.float32(length) / np.float32(wanted))
    first = np.floor(places)
    second = np.minimum(np.ceil(places), length - 1)
    return first.astype(np.int64), second.astype(np.int64), places - first
