"""Augmentation without state: each change follows from (seed, epoch, example) alone.

A resumed run therefore sees the same examples as an uninterrupted one, with any number of processes and loader workers.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from replora.datasets.samples import ImageForm, ImageSample


class Augmentation(Protocol):
    """A random change of one training image."""

    @property
    def form(self) -> ImageForm:
        """How the images are read that it takes."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels (3, H, W) and the generator to draw from -> pixels (3, size, size)."""


class RandomCropFlip:
    """Random crop and horizontal flip, the training augmentation of VPT (`src/data/transforms.py`).

    Args:
        size: Height and width of the crop, in pixels.
        flip: Probability of a horizontal flip, in [0, 1].
    """

    form: ImageForm = "uncropped"

    def __init__(self, size: int, flip: float = 0.5) -> None:
        self.size = size
        self.flip = flip

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels (3, H, W), both sides at least `size` -> pixels (3, size, size)."""
        top, left = (int(torch.randint(side - self.size + 1, (), generator=generator)) for side in image.shape[1:])
        crop = image[:, top : top + self.size, left : left + self.size]
        mirrored = bool(torch.rand((), generator=generator) < self.flip)
        return crop.flip(-1) if mirrored else crop.contiguous()


class PerEpoch:
    """A training set that is indexed by (epoch, position), as the training sampler yields them.

    Other samplers, such as Lightning's for `overfit_batches`, yield the position alone, which means epoch 0.
    """

    @staticmethod
    def _epoch_and_position(drawn: tuple[int, int] | int) -> tuple[int, int]:
        return drawn if isinstance(drawn, tuple) else (0, drawn)


def generator_of(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator for the augmentation of example `index` in `epoch`."""
    key = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key) >> 1)


class Augmented(Dataset[ImageSample], PerEpoch):
    """`dataset` with an augmentation of each image.

    Args:
        dataset: Original images.
        augmentation: Augmentation of one image.
        seed: Random seed (>= 0) of the augmentation.
    """

    def __init__(self, dataset: Dataset[ImageSample], augmentation: Augmentation, seed: int) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, drawn: tuple[int, int] | int) -> ImageSample:
        epoch, position = self._epoch_and_position(drawn)
        sample = self.dataset[position]
        # The image's own index, not its position in a subset or process.
        generator = generator_of(self.seed, epoch, sample["index"])
        return {**sample, "image": self.augmentation(sample["image"], generator)}
