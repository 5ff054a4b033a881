"""Generated scenes of colored shapes with questions and captions, without a download.

A scene is a 4 x 4 grid of cells, two of which hold a shape. Its features are its pixels, cell by cell, so that a model
must learn to see. Everything follows from (seed, split, index); no scene is in two splits.

    question                       answer
    what color is the circle ?     red
    what shape is blue ?           square
    is there a red circle ?        yes, no
    is the circle left of the square ?   yes, no
    caption                        a red circle left of a blue square
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from replora.datasets.image.read import ImageReader
from replora.datasets.vision_language.tasks import VLRecord

Split = Literal["train", "val", "test"]

COLORS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.9, 0.8, 0.1),
    "purple": (0.6, 0.1, 0.7),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("left of", "right of", "above", "below")
WORDS = [
    *COLORS, *SHAPES, "yes", "no", "a", "the", "and", "of", "is", "there", "what", "color", "shape",
    "left", "right", "above", "below", "picture", "with",
]  # fmt: skip

SIDE = 4  # cells
CELL = 8  # pixels
FEATURE_SIZE = CELL * CELL * 3
SCENES: dict[Split, int] = {"train": 3000, "val": 300, "test": 300}
FOLDS = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}  # of ten


@dataclass(frozen=True)
class Scene:
    """Two shapes of different kind and color, in different rows and columns or in one of them."""

    shapes: tuple[str, str]  # their kinds
    colors: tuple[str, str]  # their colors
    cells: tuple[tuple[int, int], tuple[int, int]]  # (row, column) of each, counted from the top left

    def relations(self) -> list[str]:
        """How the first lies to the second."""
        (r1, c1), (r2, c2) = self.cells
        sides = [("left of", c1 < c2), ("right of", c1 > c2), ("above", r1 < r2), ("below", r1 > r2)]
        return [name for name, holds in sides if holds]

    def captions(self) -> list[str]:
        """Sentences that describe it, the shape that comes first in reading order first."""
        first, second = (f"a {color} {shape}" for color, shape in zip(self.colors, self.shapes, strict=True))
        return [*(f"{first} {place} {second}" for place in self.relations()), f"a picture of {first} and {second}"]

    def features(self) -> Tensor:
        """Pixels of the cells (16, 192), row by row, in [-0.5, 0.5]."""
        return self._pixels().reshape(SIDE * SIDE, FEATURE_SIZE) - 0.5

    def picture(self) -> np.ndarray:
        """The scene as an RGB image, uint8 (32, 32, 3)."""
        pixels = self._pixels().permute(0, 2, 1, 3, 4).reshape(SIDE * CELL, SIDE * CELL, 3)
        return (pixels * 255).round().byte().numpy()

    def _pixels(self) -> Tensor:
        """Rows of cells, cells, rows of pixels, pixels, RGB: (4, 4, 8, 8, 3) in [0, 1]."""
        cells = torch.zeros(SIDE, SIDE, CELL, CELL, 3)
        for shape, color, (row, column) in zip(self.shapes, self.colors, self.cells, strict=True):
            cells[row, column] = _mask(shape)[..., None] * torch.tensor(COLORS[color])
        return cells


class DemoFeatures:
    """The features of scenes, by their names in `VLRecord.images`."""

    def __init__(self, scenes: dict[str, Scene]) -> None:
        self.scenes = scenes
        self.extraction: dict[str, Any] = {}

    def read(self, name: str) -> Tensor:
        """The features (16, 192) of a scene."""
        return self.scenes[name].features()


class PictureFeatures:
    """The features of image files, as those of scenes: the pixels of 4 x 4 cells. The name of a file is its path.

    Args:
        upright: Whether to turn photos as their EXIF orientation says.
    """

    def __init__(self, upright: bool = False) -> None:
        self.extraction: dict[str, Any] = {}
        self.reader = ImageReader(SIDE * CELL, upright=upright)

    def read(self, name: str) -> Tensor:
        """The features (16, 192) of a file. Raises CorruptImageError if it cannot be decoded."""
        pixels = self.reader.read(Path(name)).float() / 255  # (3, 32, 32)
        cells = pixels.view(3, SIDE, CELL, SIDE, CELL).permute(1, 3, 2, 4, 0)
        return cells.reshape(SIDE * SIDE, FEATURE_SIZE) - 0.5


@functools.cache
def demo_scenes(split: Split, seed: int = 0) -> dict[str, Scene]:
    """Name -> scene; what a scene shows decides its split, so that none is in two."""
    random = np.random.default_rng((seed, list(SCENES).index(split)))
    scenes: dict[str, Scene] = {}
    while len(scenes) < SCENES[split]:
        scene = _draw(random)
        fold = int.from_bytes(hashlib.sha256(repr(scene).encode()).digest()[:4], "big") % 10
        if fold in FOLDS[split]:
            scenes[f"{split}-{len(scenes):05}"] = scene
    return scenes


def demo_records(task: str, split: Split, scenes: dict[str, Scene], seed: int = 0) -> list[VLRecord]:
    """Records of the task `vqa` (one question per scene) or `coco` (captions), in the form of those benchmarks."""
    random = np.random.default_rng((seed, 10 + list(SCENES).index(split)))
    records: list[VLRecord] = []
    for name, scene in scenes.items():
        index = len(records)
        if task == "vqa":
            question, answer = _question(scene, random)
            truth = {"answers": [answer] * 10, "scores": {answer: 1.0}}
            records.append(VLRecord(index, index, question, (name,), (answer,), (1.0,), truth))
        else:
            captions = scene.captions()
            learned = captions[int(random.integers(len(captions)))]
            records.append(VLRecord(index, index, "", (name,), (learned,), (1.0,), captions))
    return records


def _draw(random: np.random.Generator) -> Scene:
    shapes = random.choice(len(SHAPES), 2, replace=False)
    colors = random.choice(len(COLORS), 2, replace=False)
    cells = np.sort(random.choice(SIDE * SIDE, 2, replace=False))
    names = list(COLORS)
    (a, b), (p, q), (x, y) = shapes.tolist(), colors.tolist(), cells.tolist()
    return Scene((SHAPES[a], SHAPES[b]), (names[p], names[q]), (divmod(x, SIDE), divmod(y, SIDE)))


def _question(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    """A question of one of four kinds, and its answer."""
    kind, which = int(random.integers(4)), int(random.integers(2))
    shape, color = scene.shapes[which], scene.colors[which]
    if kind == 0:
        return f"what color is the {shape} ?", color
    if kind == 1:
        return f"what shape is {color} ?", shape
    if kind == 2:
        if random.integers(2):
            return f"is there a {color} {shape} ?", "yes"
        return f"is there a {scene.colors[1 - which]} {shape} ?", "no"  # both are there, but not together
    place = PLACES[int(random.integers(4))]
    holds = place in scene.relations()
    return f"is the {scene.shapes[0]} {place} the {scene.shapes[1]} ?", "yes" if holds else "no"


def _mask(shape: str) -> Tensor:
    """Which pixels (8, 8) a shape covers."""
    y, x = torch.meshgrid(torch.arange(CELL) - 3.5, torch.arange(CELL) - 3.5, indexing="ij")
    covered = {
        "circle": x**2 + y**2 <= 9.5,
        "square": (x.abs() <= 3) & (y.abs() <= 3),
        "triangle": (x.abs() <= (y + 4) / 2) & (y.abs() <= 3.5),
        "cross": (x.abs() <= 1) | (y.abs() <= 1),
    }
    return covered[shape].float()
