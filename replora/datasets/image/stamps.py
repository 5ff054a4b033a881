"""Small pictures, most of them photographs, from the stamps of Tux Paint, a drawing program for children.

Debian ships them as `tuxpaint-stamps-default` (Bill Kendrick and others 2002 to 2022, GPL-2). The classes are six of
its folders. Its drawings in SVG are not used.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from replora.datasets.common.subsample import stratified_order
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.pixels import READER, PixelImages, Pixels, PixelSplit, not_found
from replora.datasets.image.read import ImageReader

CLASSES = ("animals", "food", "household", "plants", "town", "vehicles")
DEBIAN = Path("/usr/share/tuxpaint/stamps")
SIDE = 64  # pixels
TRAIN, VAL = 0.5, 0.125  # parts of all images; the others are the test set


class Stamps(PixelImages):
    """Pictures on white, fitted into 64 x 64 pixels.

    In a stratified order of all images with seed 0, the first half is `train`, the next eighth `val`, both together
    `trainval`, and the others `test`. Version 2022.06.04 of the package has 202 + 50 + 151 images.

    Args:
        split: `train`, `val`, `trainval` or `test`.
        root: Folder that contains `tuxpaint/stamps` or the folders of the classes. Debian's is used otherwise.
        reader: Reader of the images.

    Raises:
        DatasetNotFoundError: The folders are not found.
        CorruptImageError: A file is no image.
    """

    def __init__(
        self,
        split: PixelSplit,
        root: Path,
        reader: ImageReader = READER,
    ) -> None:
        pixels, every_label = _decoded(find_stamps(root))
        order = stratified_order(every_label, seed=0)
        first, second = round(TRAIN * len(order)), round((TRAIN + VAL) * len(order))
        parts = {"train": order[:first], "val": order[first:second], "trainval": order[:second], "test": order[second:]}
        super().__init__(pixels, every_label, CLASSES, reader)
        self.keep(parts[split])


def find_stamps(root: Path) -> Path:
    """The folder of the classes.

    Raises:
        DatasetNotFoundError: There is none.
    """
    places = [root, root / "tuxpaint" / "stamps", DEBIAN]
    for place in places:
        if all((place / name).is_dir() for name in CLASSES):
            return place
    raise not_found(
        "The stamps of Tux Paint were",
        f"folders {', '.join(CLASSES)}",
        places,
        "tuxpaint-stamps-default",
        "unpack that package and set its usr/share/tuxpaint/stamps",
    )


@functools.cache
def _decoded(folder: Path) -> tuple[Pixels, list[int]]:
    """All images (N, 64, 64, 3) and their labels, by class and path. A sweep's trials of one process share them."""
    files = [(file, label) for label, name in enumerate(CLASSES) for file in sorted((folder / name).rglob("*.png"))]
    return np.stack([_read(file) for file, _ in files]), [label for _, label in files]


def _read(file: Path) -> Pixels:
    try:
        with Image.open(file) as image:
            image.load()
            picture = image.convert("RGBA")
    except OSError as error:
        raise CorruptImageError(f"{file} cannot be decoded: {error}. Install its package again.") from error
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return np.asarray(square.convert("RGB"))
