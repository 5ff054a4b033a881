"""Small gray images in memory, which are resized on access."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageDataset, ImageSample

READER = ImageReader(32)
GrayPixels = np.ndarray[Any, np.dtype[np.uint8]]  # (N, H, W)


class GrayImages(ImageDataset):
    """Labeled gray images.

    Args:
        gray: Pixels, uint8 (N, H, W).
        labels: Labels of the N images.
        class_names: Names of the classes.
        reader: Reader of the images.
    """

    def __init__(self, gray: GrayPixels, labels: list[int], class_names: list[str], reader: ImageReader) -> None:
        self.gray = gray
        self.labels = labels
        self.class_names = class_names
        self.reader = reader

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: pixels (3, image_size, image_size), three equal channels."""
        index = range(len(self))[index]
        image = self.reader.frame(Image.fromarray(self.gray[index]).convert("RGB"))
        return {"image": image, "label": self.labels[index], "index": index}
