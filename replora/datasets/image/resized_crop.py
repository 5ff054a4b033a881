"""The training augmentation of Adapter+ on FGVC."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from replora.datasets.image.resize import PILLOW, resize
from replora.datasets.samples import ImageForm

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


class RandomResizedCropFlip:
    """A random part of an image, resized to a square with a random filter, and mirrored or not.

    The part has 8 to 100 % of the area and a ratio of width to height of 3/4 to 4/3; one that does not fit is drawn
    again, and after ten attempts the middle is taken. The filter is Pillow's bilinear or bicubic. The same as timm's
    `RandomResizedCropAndInterpolation(size, interpolation="random")` and torchvision's `RandomHorizontalFlip`, from
    another stream of random numbers.

    Args:
        size: Height and width of the result, in pixels.
        flip: Probability of a horizontal flip, in [0, 1].
    """

    form: ImageForm = "original"

    def __init__(self, size: int, flip: float = 0.5) -> None:
        self.size = size
        self.flip = flip

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, size, size)."""
        top, left, height, width = self._part(image.shape[1], image.shape[2], generator)
        part = Image.fromarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
        interpolation = tuple(PILLOW)[_integer(len(PILLOW), generator)]
        square = resize(part, self.size, self.size, interpolation)
        return square.flip(-1) if _uniform(0, 1, generator) < self.flip else square

    def _part(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part that is kept."""
        for _ in range(ATTEMPTS):
            area = _uniform(*AREA, generator) * height * width
            ratio = math.exp(_uniform(math.log(RATIO[0]), math.log(RATIO[1]), generator))
            w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
            if w <= width and h <= height:
                return _integer(height - h + 1, generator), _integer(width - w + 1, generator), h, w
        w, h = min(width, max(1, round(height * RATIO[1]))), min(height, max(1, round(width / RATIO[0])))
        return (height - h) // 2, (width - w) // 2, h, w


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))


def _integer(count: int, generator: torch.Generator) -> int:
    """One of 0 ... count - 1."""
    return int(torch.randint(count, (), generator=generator))
