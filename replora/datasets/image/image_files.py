"""Labeled image files, which are decoded on access."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageDataset, ImageForm, ImageSample


class ImageFiles(ImageDataset):
    """Labeled image files. A subclass sets the attributes."""

    home: Path  # folder that the paths are relative to
    paths: Sequence[PurePosixPath]  # path of each image
    reader: ImageReader
    form: ImageForm = "square"  # other forms are for an augmentation

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: pixels as `ImageReader.read` returns them.

        Raises:
            CorruptImageError: The file cannot be decoded.
        """
        index = range(len(self))[index]
        image = self.reader.read(self.home / self.paths[index], self.form)
        return {"image": image, "label": self.labels[index], "index": index}
