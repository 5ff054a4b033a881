"""Labeled image files, which are decoded on access."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from replora.datasets.image.read import Framing, Interpolation, read_image, read_uncropped
from replora.datasets.samples import ImageDataset, ImageSample


class ImageFiles(ImageDataset):
    """Labeled image files. A subclass sets the attributes.

    Attributes:
        home: Folder that the paths are relative to.
        paths: Path of each image.
        image_size: Height and width of the images, in pixels (>= 1).
        interpolation: Filter that resizes an image.
        framing: How an image becomes a square, see `read_image`; None leaves it uncropped, see `read_uncropped`.
        upright: Whether to rotate images by their EXIF orientation.
    """

    home: Path
    paths: list[PurePosixPath]
    image_size: int
    interpolation: Interpolation
    framing: Framing | None = "squash"
    upright: bool = False

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: uint8 (3, image_size, image_size), or (3, H, W) if it is not cropped.

        Raises:
            CorruptImageError: The file cannot be decoded.
        """
        index = range(len(self))[index]
        path = self.home / self.paths[index]
        if self.framing is None:
            image = read_uncropped(path, self.image_size, self.interpolation, self.upright)
        else:
            image = read_image(path, self.image_size, self.interpolation, self.framing, self.upright)
        return {"image": image, "label": self.labels[index], "index": index}
