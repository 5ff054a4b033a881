"""Fashion-MNIST as a task like those of VTAB-1K: 800 + 200 of its training images, and its complete test set.

Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; MIT license. Debian ships the four files as `dataset-fashion-mnist`.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from replora.datasets.common.subsample import stratified_order
from replora.datasets.errors import DatasetNotFoundError, ListFileError
from replora.datasets.image.pixels import READER, PixelImages, Pixels, PixelSplit, not_found
from replora.datasets.image.read import ImageReader

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SIZES = {"train": 60_000, "t10k": 10_000}
SIDE = 28


class FashionMNIST(PixelImages):
    """Gray images of 28 x 28 pixels, ten kinds of clothes.

    In a stratified order of the 60,000 training images with seed 0, the first 800 are `train`, the next 200 `val`, both
    together `trainval`; `test` is the 10,000 test images. The other training images are not used.

    Args:
        split: `train`, `val`, `trainval` or `test`.
        root: Folder with the four files `train-images-idx3-ubyte.gz` ... `t10k-labels-idx1-ubyte.gz`, directly or in
            `fashion-mnist/` or `FashionMNIST/raw/` (torchvision's). Debian's folder is used otherwise.
        reader: Reader of the images.

    Raises:
        DatasetNotFoundError: The files are not found.
        ListFileError: A file is corrupt or another data set.
    """

    def __init__(
        self,
        split: PixelSplit,
        root: Path,
        reader: ImageReader = READER,
    ) -> None:
        folder, part = find_fashion_mnist(root), "t10k" if split == "test" else "train"
        count = SIZES[part]
        gray = _read(folder / f"{part}-images-idx3-ubyte.gz", (count, SIDE, SIDE))
        every_label = _read(folder / f"{part}-labels-idx1-ubyte.gz", (count,))
        if every_label.max() >= len(CLASSES):
            raise ListFileError(f"{folder}: the label {every_label.max()} is out of range; it must be 0 to 9.")
        labels = every_label.tolist()
        if split != "test":
            order = stratified_order(labels, seed=0)
            chosen = {"train": order[:800], "val": order[800:1000], "trainval": order[:1000]}[split]
            gray, labels = gray[chosen], [labels[position] for position in chosen]
        super().__init__(gray, labels, CLASSES, reader)


def find_fashion_mnist(root: Path) -> Path:
    """The folder of the four files.

    Raises:
        DatasetNotFoundError: There is none.
    """
    places = [root, root / "fashion-mnist", root / "FashionMNIST" / "raw", DEBIAN]
    for place in places:
        if (place / "train-images-idx3-ubyte.gz").is_file():
            return place
    raise not_found(
        "Fashion-MNIST was",
        "train-images-idx3-ubyte.gz",
        places,
        "dataset-fashion-mnist",
        "download the four .gz files of github.com/zalandoresearch/fashion-mnist and set their folder",
    )


def _read(path: Path, shape: tuple[int, ...]) -> Pixels:
    """A file in the IDX format of MNIST: magic number, lengths as big-endian int32, then bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DatasetNotFoundError(f"There is no {path}, but there are others of the four files.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ListFileError(f"{path} cannot be read: {error}. Copy it again from its source.") from error
    header = np.array([0x0800 + len(shape), *shape], dtype=">i4").tobytes()
    if content[: len(header)] != header or len(content) != len(header) + int(np.prod(shape)):
        sizes = " x ".join(map(str, shape))
        raise ListFileError(f"{path} does not hold {sizes} bytes in the IDX format. Copy it again from its source.")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)
