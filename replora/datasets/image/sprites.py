"""White shapes on black, generated from the factors of dSprites, for two tasks of VTAB-1K.

dSprites (Matthey et al. 2017, github.com/google-deepmind/dsprites-dataset) has 3 shapes x 6 scales x 40 orientations x
32 x 32 positions in 64 x 64 pixels. Shapes and sizes differ here in detail, so results are not comparable with
those on dSprites. The classes are VTAB-1K's: 16 columns of two positions each for `location`, and 16 sectors,
floor(orientation / 2.5), for `orientation`. As in dSprites, a square looks the same after a quarter turn and an ellipse
after half a turn, so no method can recognize every orientation.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from replora.datasets.image.pixels import READER, PixelImages, Pixels, PixelSplit
from replora.datasets.image.read import ImageReader

Corners = np.ndarray[Any, np.dtype[np.float64]]  # (K, 2): x to the right, y down

SIDE = 64  # pixels
SHAPES = ("square", "ellipse", "heart")
SCALES, ORIENTATIONS, POSITIONS = 6, 40, 32
CLASSES = 16
COUNTS = {"train": 800, "val": 200, "test": 2_000}
FINER = 4  # factor of supersampling; a pixel is white if at least half of it is covered


class Sprites(PixelImages):
    """Shapes with random factors: 800 + 200 + 2,000 images, the same on every machine (up to Pillow's drawing).

    Args:
        split: `train`, `val`, `trainval` or `test`.
        task: `location` (the column of the shape's center) or `orientation`.
        reader: Reader of the images.
    """

    def __init__(
        self,
        split: PixelSplit,
        task: Literal["location", "orientation"],
        reader: ImageReader = READER,
    ) -> None:
        parts = ["train", "val"] if split == "trainval" else [split]
        factors = np.concatenate([_factors(part) for part in parts])  # (N, 5)
        gray = np.concatenate([_drawn(part) for part in parts])
        labels = factors[:, 3] // 2 if task == "location" else (factors[:, 2] / 2.5).astype(int)
        super().__init__(gray, labels.tolist(), [str(number) for number in range(CLASSES)], reader)


def _factors(part: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(N, 5): shape, scale, orientation, x, y."""
    rng = np.random.default_rng(list(COUNTS).index(part))
    return rng.integers(0, [len(SHAPES), SCALES, ORIENTATIONS, POSITIONS, POSITIONS], (COUNTS[part], 5))


@functools.cache
def _drawn(part: str) -> Pixels:
    """(N, 64, 64). Both tasks, and a sweep's trials of one process, share the images."""
    return np.stack([draw(*row) for row in _factors(part).tolist()])


def draw(shape: int, scale: int, orientation: int, x: int, y: int) -> Pixels:
    """One image.

    Args:
        shape: Index into `SHAPES`, 0 to 2.
        scale: Size, from 0 (half size) to 5 (full size).
        orientation: Rotation, from 0 (none) to 39 (a full turn, which looks like none, as in dSprites).
        x, y: Position of the center, 0 to 31. The shape is completely inside the image at every position.

    Returns:
        uint8 (64, 64), 0 or 255.
    """
    radius = 0.5 + 0.5 * scale / (SCALES - 1)  # relative to full size
    angle = 2 * np.pi * orientation / (ORIENTATIONS - 1)
    outline = _outline(SHAPES[shape]) * radius * 12  # pixels
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    center = 14 + np.array([x, y]) * (36 / (POSITIONS - 1))
    corners = (outline @ turn + center) * FINER
    canvas = Image.new("L", (SIDE * FINER, SIDE * FINER))
    ImageDraw.Draw(canvas).polygon([(float(u), float(v)) for u, v in corners], fill=255)
    covered = np.asarray(canvas, dtype=np.float32).reshape(SIDE, FINER, SIDE, FINER).mean(axis=(1, 3))
    return np.where(covered >= 127.5, 255, 0).astype(np.uint8)


def _outline(shape: str) -> Corners:
    """Corners (K, 2) of a shape that fits into the circle of radius 1 around (0, 0)."""
    if shape == "square":
        corners: Corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.5**0.5
        return corners
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    if shape == "ellipse":
        return np.stack([np.cos(t), 0.5 * np.sin(t)], axis=1)
    across = 16 * np.sin(t) ** 3
    down = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    heart = np.stack([across, down], axis=1)  # the standard heart curve
    return heart * float(1 / np.linalg.norm(heart, axis=1).max())
