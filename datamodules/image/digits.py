"""scikit-learn's digits, the data of the quickstart: nothing to download."""

from __future__ import annotations

from typing import Any

from datamodules.base import Protocol, Split
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.image.digits import Digits
from replora.datasets.image.read import Interpolation


class DigitsDataModule(ImageDataModule):
    """Handwritten digits of 8 x 8 pixels, enlarged; 800 + 200 + 797 images in ten classes.

    Args:
        batch_size: training images per batch and process; two processes with 32 see the batches of one with 64.
        eval_batch_size: images per batch and process elsewhere; twice `batch_size` by default.
        num_workers: loader processes of each training process. By default none, for the images are held in memory.
        train_fraction: the part of the training images used, in (0, 1]; stratified, nested for one `subset_seed`.
        shots: training images per class instead of a fraction.
        subset_seed: which images a fraction or shots choose.
        protocol: `tune` trains on 800 images and validates on 200, `final` trains on the 1,000 and tests; `holdout`
            trains on 800, validates on 200 and tests.
        drop_last: leave out the last, incomplete training batch of an epoch.
        shuffle_seed: the order of the training images; it changes every epoch.
        cache_bytes: bound on decoded images held in memory by each process, in bytes; 0 holds nothing.
        image_size: height and width of the images, in pixels.
        interpolation: the filter that enlarges an image.
        normalization: `imagenet` mean and standard deviation, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_fraction: float = 1.0,
        shots: int | None = None,
        subset_seed: int = 0,
        protocol: Protocol = "final",
        drop_last: bool = True,
        shuffle_seed: int = 0,
        cache_bytes: int = 2 * 2**30,
        image_size: int = 32,
        interpolation: Interpolation = "bicubic",
        normalization: Normalization = "half",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_fraction=train_fraction,
            shots=shots,
            subset_seed=subset_seed,
            protocol=protocol,
            drop_last=drop_last,
            shuffle_seed=shuffle_seed,
            cache_bytes=cache_bytes,
            image_size=image_size,
            interpolation=interpolation,
            normalization=normalization,
        )
        self.num_classes = 10
        self.class_names = [str(digit) for digit in range(10)]

    def build_dataset(self, split: Split) -> Digits:
        return Digits(split, self.image_size, self.interpolation)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"task": "digits", "source": "scikit-learn"}
