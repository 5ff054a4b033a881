"""Labeled image files, which are decoded on access."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageDataset, ImageSample


class ImageFiles(ImageDataset):
    """Labeled image files. A subclass sets the attributes."""

    home: Path  # folder that the paths are relative to
    paths: Sequence[PurePosixPath]  # path of each image
    reader: ImageReader
    cropped: bool = True  # whether to return squares; otherwise larger images, for an augmentation that crops

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: uint8 (3, image_size, image_size), or (3, H, W) if it is not cropped.

        Raises:
            CorruptImageError: The file cannot be decoded.
        """
        index = range(len(self))[index]
        path = self.home / self.paths[index]
        image = self.reader.read(path) if self.cropped else self.reader.read_uncropped(path)
        return {"image": image, "label": self.labels[index], "index": index}
