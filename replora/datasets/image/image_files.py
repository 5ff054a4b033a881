"""Labeled image files, which are decoded on access."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from replora.datasets.image.read import Framing, Interpolation, read_image, read_uncropped
from replora.datasets.samples import ImageDataset, ImageSample


class ImageFiles(ImageDataset):
    """Labeled image files. A subclass sets the attributes."""

    home: Path  # folder that the paths are relative to
    paths: list[PurePosixPath]  # path of each image
    image_size: int  # height and width of the images, in pixels (>= 1)
    interpolation: Interpolation  # filter that resizes an image
    # how an image becomes a square, see `read_image`; None leaves it uncropped, see `read_uncropped`
    framing: Framing | None = "squash"
    upright: bool = False  # whether to rotate images by their EXIF orientation

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
