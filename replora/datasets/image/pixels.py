"""Small images in memory, which are resized on access."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from replora.datasets.errors import DatasetNotFoundError
from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageDataset, ImageSample

READER = ImageReader(32)
PixelSplit = Literal["train", "val", "trainval", "test"]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (N, H, W) gray, or (N, H, W, 3)


class PixelImages(ImageDataset):
    """Labeled images in memory.

    Args:
        pixels: Pixels, uint8 (N, H, W) if they are gray, else (N, H, W, 3).
        labels: Labels of the N images.
        class_names: Names of the classes.
        reader: Reader of the images.
    """

    def __init__(self, pixels: Pixels, labels: list[int], class_names: Sequence[str], reader: ImageReader) -> None:
        self.pixels = pixels
        self.labels = labels
        self.class_names = list(class_names)
        self.reader = reader

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: pixels (3, image_size, image_size), three equal channels if they are gray."""
        index = range(len(self))[index]
        image = self.reader.frame(Image.fromarray(self.pixels[index]).convert("RGB"))
        return {"image": image, "label": self.labels[index], "index": index}

    def keep(self, places: Sequence[int]) -> None:
        """Drop all images but those at these positions."""
        self.pixels = self.pixels[places]
        self.labels = [self.labels[place] for place in places]


def not_found(what: str, lacking: str, places: Sequence[Path], packages: str, elsewhere: str) -> DatasetNotFoundError:
    """The error that data which Debian ships are not there.

    Args:
        what: The data, with the verb: `Fashion-MNIST was`.
        lacking: What no place has.
        places: Where it was looked for.
        packages: Debian's packages of the data.
        elsewhere: What to do on another system before a folder is named.
    """
    looked = ", ".join(str(place) for place in places)
    return DatasetNotFoundError(
        f"{what} not found: no {lacking} in {looked}. On Debian and Ubuntu: apt install {packages}. Elsewhere "
        f"{elsewhere} with --data.root or the environment variable REPLORA_DATA."
    )
