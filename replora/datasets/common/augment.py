"""Random changes of training examples that need no state: each follows from (seed, epoch, example) alone.

So a resumed run sees the examples of an uninterrupted one, and several processes those of one process, with any number
of loader workers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from replora.datasets.samples import ImageSample

# uint8 (3, H, W) and the generator to draw from -> uint8 (3, size, size)
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class RandomCropFlip:
    """A random square, mirrored or not; what VPT trains on (`src/data/transforms.py`: RandomCrop, horizontal flip).

    Args:
        size: height and width of the square, in pixels.
        flip: the probability of mirroring left and right, in [0, 1].
    """

    def __init__(self, size: int, flip: float = 0.5) -> None:
        self.size = size
        self.flip = flip

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (3, H, W), both sides at least `size` -> uint8 (3, size, size)."""
        top, left = (int(torch.randint(side - self.size + 1, (), generator=generator)) for side in image.shape[1:])
        crop = image[:, top : top + self.size, left : left + self.size]
        mirrored = bool(torch.rand((), generator=generator) < self.flip)
        return crop.flip(-1) if mirrored else crop.contiguous()


class PerEpoch:
    """A training set that is asked for by (epoch, position), which the training sampler then yields.

    A sampler of others, as Lightning's for `overfit_batches`, yields the position alone: then it is always epoch 0.
    """

    @staticmethod
    def _epoch_and_position(drawn: tuple[int, int] | int) -> tuple[int, int]:
        return drawn if isinstance(drawn, tuple) else (0, drawn)


def generator_of(seed: int, epoch: int, index: int) -> torch.Generator:
    """What the random changes of example `index` in `epoch` are drawn from."""
    key = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key) >> 1)


class Augmented(Dataset[ImageSample], PerEpoch):
    """`dataset` with each image changed.

    Args:
        dataset: the images before the change.
        augmentation: the change.
        seed: of all changes.
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
