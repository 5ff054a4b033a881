"""Small grey images that are held in memory as they come, and enlarged or made smaller when they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageDataset, ImageSample

READER = ImageReader(32)
GreyPixels = np.ndarray[Any, np.dtype[np.uint8]]  # (N, H, W)


class GreyImages(ImageDataset):
    """Labelled grey images.

    Args:
        grey: uint8 (N, H, W).
        labels: N numbers of classes.
        class_names: the classes.
        reader: what makes a tensor of an image.
    """

    def __init__(
        self,
        grey: GreyPixels,
        labels: list[int],
        class_names: list[str],
        reader: ImageReader,
    ) -> None:
        self.grey = grey
        self.labels = labels
        self.class_names = class_names
        self.reader = reader

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: uint8 (3, image_size, image_size), three equal channels."""
        index = range(len(self))[index]
        image = self.reader.frame(Image.fromarray(self.grey[index]).convert("RGB"))
        return {"image": image, "label": self.labels[index], "index": index}
