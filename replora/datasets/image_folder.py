"""Images of one's own: a folder with a folder for each class, or a CSV file of paths and labels.

    root/cat/a.jpg  root/dog/b.png                          no splits: they are made
    root/train/cat/a.jpg  root/val/...  root/test/...       val (also valid, validation) and test may be absent
    images.csv with the header path,label                   paths relative to the file; a column `split` may be added

A split that is absent is taken from the training images: stratified, and chosen by a hash of each image's relative
path, so it is the same on every machine and does not depend on where the folder lies.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from replora.datasets import ImageDataset, ImageSample
from replora.datasets.cache import usable_cpus
from replora.datasets.errors import CorruptImageError, DatasetNotFoundError, ListFileError
from replora.datasets.files import inner_path, missing_files, stay_inside
from replora.datasets.images import IMAGE_SUFFIXES, Interpolation, check_header, read_image, read_uncropped
from replora.errors import RepLoRAError, nearest

ImageSplit = Literal["train", "val", "test"]

# Names of the folders and values of the column, and the split they mean.
SPLIT_NAMES: dict[str, ImageSplit] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
LAYOUT = (
    "Expected is a folder for each class (ROOT/cat/1.jpg, ROOT/dog/2.jpg), or such folders inside ROOT/train, ROOT/val "
    "and ROOT/test, or a CSV file with the header path,label"
)


class ImageFolderError(RepLoRAError):
    """A folder of images or its CSV file has no images, no labels, one class alone, or splits that do not agree."""


@dataclass(frozen=True)
class ImageTable:
    """What a folder or a CSV file holds, not split yet.

    Attributes:
        home: The folder that the paths are relative to.
        paths: Of every image, in alphabetical order.
        labels: The class of every image, an index into `class_names`.
        class_names: In alphabetical order.
        splits: The user's own split of every image, None where there is none.
    """

    home: Path
    paths: list[PurePosixPath]
    labels: list[int]
    class_names: list[str]
    splits: list[ImageSplit | None]

    def assign(self, val_fraction: float, test_fraction: float, seed: int) -> list[ImageSplit]:
        """The split of every image: the user's own, and for a split that is absent a part of the training images.

        Of a class with n training images `val` and `test` get round(fraction * n) each, at least one where n allows
        (n = 2 leaves one for `test`), and `train` at least one.

        Args:
            val_fraction, test_fraction: parts of the training images, in [0, 1); used where the split is absent.
            seed: which images; any integer.

        Raises:
            ImageFolderError: the fractions leave nothing to train on, or a split would be empty.
        """
        if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise ImageFolderError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction}: both are in [0, 1), and their sum is "
                "below 1, or nothing is left to train on."
            )
        parts: dict[ImageSplit, float] = {"test": test_fraction, "val": val_fraction}
        parts = {split: part for split, part in parts.items() if split not in self.splits and part > 0}
        assigned: list[ImageSplit] = [split or "train" for split in self.splits]
        for label in range(len(self.class_names)):
            pool = [i for i, own in enumerate(assigned) if own == "train" and self.labels[i] == label]
            pool.sort(key=lambda i: hashlib.sha256(f"{seed} {self.paths[i]}".encode()).digest())
            free = len(pool) - 1  # one image stays for training
            for split, part in parts.items():
                count = min(free, max(1, round(part * len(pool))))
                free -= count
                for _ in range(count):
                    assigned[pool.pop()] = split
        return assigned


def read_image_table(root: Path) -> ImageTable:
    """Scan a folder of class folders, or read a CSV file of paths and labels.

    Args:
        root: the folder, or the file.

    Raises:
        DatasetNotFoundError: `root` does not exist.
        ImageFolderError: there is no image, a class without one, one class alone, no column of labels, or a class that
            only validation or test images have.
        ListFileError: a path of the CSV file, or a link, leaves the data, or an image is missing.
        CorruptImageError: files are no images as far as their first bytes tell; all are named.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        home, named = root, _scan(root)
    elif root.is_file():
        home, named = root.parent, _read_csv(root)
    else:
        raise DatasetNotFoundError(f"There is no folder and no CSV file {root} (looked in {Path.cwd()}). {LAYOUT}.")
    named = dict(sorted(named.items()))
    class_names = sorted({name for name, _ in named.values()})
    if len(class_names) < 2:
        raise ImageFolderError(
            f"{root} holds {len(named):,} images of one class alone, {class_names[0]!r}; telling classes apart needs "
            f"two. {LAYOUT}."
        )
    trained = {name for name, split in named.values() if split in (None, "train")}
    if untrained := [name for name in class_names if name not in trained]:
        others = sorted({str(split) for name, split in named.values() if name == untrained[0]})
        raise ImageFolderError(
            f"{root}: the class {untrained[0]!r} has images in {' and '.join(others)}, but none to train on. "
            f"{nearest(untrained[0], trained)} Classes are the same in every split."
        )
    _require_readable(home, list(named))
    number = {name: label for label, name in enumerate(class_names)}
    labels = [number[name] for name, _ in named.values()]
    return ImageTable(home, list(named), labels, class_names, [split for _, split in named.values()])


class ImageFolder(ImageDataset):
    """The images of one or more splits; photos are turned as their EXIF orientation says.

    Args:
        table: from `read_image_table`.
        positions: which of its images, in this order.
        image_size: height and width of the images given, in pixels.
        interpolation: the resize filter.
        cropped: cut out the middle; otherwise the images keep their shape, the shorter side being 256/224 of
            `image_size`, for an augmentation to cut from.
    """

    def __init__(
        self,
        table: ImageTable,
        positions: list[int],
        image_size: int = 224,
        interpolation: Interpolation = "bilinear",
        cropped: bool = True,
    ) -> None:
        self.home = table.home
        self.class_names = table.class_names
        self.paths = [table.paths[i] for i in positions]
        self.labels = [table.labels[i] for i in positions]
        self.image_size = image_size
        self.interpolation: Interpolation = interpolation
        self.cropped = cropped

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: uint8 (3, image_size, image_size), or (3, H, W) where it is not cropped.

        Raises:
            CorruptImageError: the file cannot be decoded.
        """
        index = range(len(self))[index]
        path = self.home / self.paths[index]
        if self.cropped:
            image = read_image(path, self.image_size, self.interpolation, "crop", upright=True)
        else:
            image = read_uncropped(path, self.image_size, self.interpolation, upright=True)
        return {"image": image, "label": self.labels[index], "index": index}


Named = dict[PurePosixPath, tuple[str, ImageSplit | None]]  # path -> class, split


def _scan(root: Path) -> Named:
    folders = _folders(root)
    # `train` may also be a class, beside `car`. It is a split where it has folders and all beside it are splits.
    if "train" in folders and all(name in SPLIT_NAMES for name in folders) and _folders(root / "train"):
        named: Named = {}
        for name in folders:
            named |= _scan_classes(root, root / name, SPLIT_NAMES[name])
        return named
    return _scan_classes(root, root, None)


def _scan_classes(root: Path, parent: Path, split: ImageSplit | None) -> Named:
    classes = _folders(parent)
    if not classes:
        files = _images(parent)
        found = f"{len(files):,} images but no folders in it" if files else "no folders and no images in it"
        raise ImageFolderError(
            f"{parent} has {found}, so the classes are not known. {LAYOUT}. Images without classes are for "
            "`replora-cli predict-files`."
        )
    named: Named = {}
    home = root.resolve()
    for name in classes:
        images = _images(parent / name)
        if not images:
            raise ImageFolderError(
                f"The class folder {parent / name} has no images (files ending in {', '.join(IMAGE_SUFFIXES)}). Put "
                "some there, or remove the folder."
            )
        for image in images:
            stay_inside(image, home)
            named[PurePosixPath(image.relative_to(root).as_posix())] = (name, split)
    return named


def _folders(parent: Path) -> list[str]:
    """The folders in `parent`, hidden ones and what macOS leaves in archives apart."""
    return sorted(
        entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )


def _images(folder: Path) -> list[Path]:
    """The image files in `folder` and the folders inside it."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _read_csv(file: Path) -> Named:
    try:
        text = file.read_text(encoding="utf-8-sig")  # with or without the byte order mark that spreadsheets write
    except UnicodeDecodeError as error:
        raise ListFileError(f"{file} is not UTF-8 text ({error}). It has to be a CSV file, saved as UTF-8.") from error
    reader = csv.DictReader(text.splitlines())
    columns = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    for needed in ("path", "label"):
        if needed not in columns:
            raise ImageFolderError(
                f"{file} has no column {needed!r}; its first line names {', '.join(map(repr, columns)) or 'none'}. "
                f"{nearest(needed, columns) if columns else ''} The first line has to be: path,label"
            )
    named: Named = {}
    for row in reader:
        where = f"{file}, line {reader.line_num}"
        path = inner_path((row["path"] or "").strip(), where)
        label, split = (row["label"] or "").strip(), (row.get("split") or "").strip()
        if not label:
            raise ImageFolderError(f"{where}: {path} has no label.")
        if split and split not in SPLIT_NAMES:
            raise ImageFolderError(f"{where}: there is no split {split!r}. {nearest(split, get_args(ImageSplit))}")
        if path in named:
            raise ImageFolderError(f"{where}: {path} is listed twice. An image has one label and one split.")
        named[path] = (label, SPLIT_NAMES.get(split))
    if not named:
        raise ImageFolderError(f"{file} lists no image.")
    if missing := missing_files(file.parent, named):
        listed = ", ".join(map(str, missing[:3]))
        raise ListFileError(
            f"{file}: {len(missing):,} of {len(named):,} images are missing, the first: {listed}. Paths are relative "
            f"to {file.parent.resolve()}."
        )
    partly = Counter(split is None for _, split in named.values())
    if len(partly) == 2:
        raise ImageFolderError(
            f"{file}: {partly[True]:,} of {len(named):,} images have no split and the others do. Fill the column "
            "`split` in every line, or leave it out."
        )
    return named


def _require_readable(home: Path, paths: list[PurePosixPath]) -> None:
    with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
        reasons = list(threads.map(lambda path: check_header(home / path), paths))
    damaged = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    if damaged:
        listed = "\n  ".join(f"{home / path}: {reason}" for path, reason in damaged[:20])
        more = f"\n  and {len(damaged) - 20:,} more" if len(damaged) > 20 else ""
        raise CorruptImageError(
            f"{len(damaged):,} of {len(paths):,} images cannot be read:\n  {listed}{more}\nCopy them again from their "
            "source, or remove them."
        )
