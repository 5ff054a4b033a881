"""Small grey images that are held in memory as they come, and enlarged or made smaller when they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from replora.datasets.image.read import Interpolation, square_tensor
from replora.datasets.samples import ImageDataset, ImageSample

GreyPixels = np.ndarray[Any, np.dtype[np.uint8]]  # (N, H, W)


class GreyImages(ImageDataset):
    """Labelled grey images.

    Args:
        grey: uint8 (N, H, W).
        labels: N numbers of classes.
        class_names: the classes.
        image_size: height and width of the images given, in pixels.
        interpolation: the filter that resizes them.
    """

    def __init__(
        self,
        grey: GreyPixels,
        labels: list[int],
        class_names: list[str],
        image_size: int,
        interpolation: Interpolation,
    ) -> None:
        self.grey = grey
        self.labels = labels
        self.class_names = class_names
        self.image_size = image_size
        self.interpolation = interpolation

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: uint8 (3, image_size, image_size), three equal channels."""
        index = range(len(self))[index]
        image = square_tensor(Image.fromarray(self.grey[index]), self.image_size, self.interpolation)
        return {"image": image, "label": self.labels[index], "index": index}
