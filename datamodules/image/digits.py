"""scikit-learn's digits, the data of the quickstart: nothing to download."""

from __future__ import annotations

from typing import Any

from datamodules.base import Split
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.image.digits import Digits


class DigitsDataModule(ImageDataModule):
    """Handwritten digits of 8 x 8 pixels, enlarged; 800 + 200 + 797 images in ten classes.

    Args:
        image_size: Height and width of the images, in pixels (>= 1); they are enlarged from 8 x 8.
        normalization: `imagenet`, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).
        options: Options of `ImageDataModule`.
    """

    def __init__(
        self,
        image_size: int = 32,
        normalization: Normalization = "half",
        **options: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            normalization=normalization,
            **options,
        )
        self.num_classes = 10
        self.class_names = [str(digit) for digit in range(10)]

    def build_dataset(self, split: Split) -> Digits:
        return Digits(split, self.reader)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"task": "digits", "source": "scikit-learn"}
