"""Small gray images in memory, which are resized on access."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from replora.datasets.image.read import Interpolation, square_tensor
from replora.datasets.samples import ImageDataset, ImageSample

GrayPixels = np.ndarray[Any, np.dtype[np.uint8]]  # (N, H, W)


class GrayImages(ImageDataset):
    """Labeled gray images.

    Args:
        gray: Pixels, uint8 (N, H, W).
        labels: Labels of the N images.
        class_names: Names of the classes.
        image_size: Height and width of the images, in pixels (>= 1).
        interpolation: Filter that resizes an image.
    """

    def __init__(
        self, gray: GrayPixels, labels: list[int], class_names: list[str], image_size: int, interpolation: Interpolation
    ) -> None:
        self.gray = gray
        self.labels = labels
        self.class_names = class_names
        self.image_size = image_size
        self.interpolation = interpolation

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: uint8 (3, image_size, image_size), three equal channels."""
        index = range(len(self))[index]
        image = square_tensor(Image.fromarray(self.gray[index]), self.image_size, self.interpolation)
        return {"image": image, "label": self.labels[index], "index": index}
