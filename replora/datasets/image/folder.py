"""Custom images: a folder with a folder for each class, or a CSV file of paths and labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from replora.datasets.common.file_table import read_file_table
from replora.datasets.common.files import LeftOut, files_of, printable
from replora.datasets.common.in_memory import usable_cpus
from replora.datasets.common.labeled_files import FileKind, FileTable
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.image_files import ImageFiles
from replora.datasets.image.read import IMAGE_SUFFIXES, Interpolation, check_header


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """The image files below `folder`, see `files_of`."""
    return files_of(folder, IMAGE_SUFFIXES, left_out)


IMAGES = FileKind(
    "image", IMAGE_SUFFIXES, image_files, hint="Images without classes are for `replora-cli predict-files`."
)


def read_image_table(root: Path) -> FileTable:
    """The table of a folder or CSV file (`read_file_table`), after a check of every image's header.

    Raises:
        CorruptImageError: Files have no header of an image; the message names them.
    """
    table = read_file_table(root, IMAGES)
    _check_readable(table.home, table.paths)
    return table


class ImageFolder(ImageFiles):
    """The images of one or more splits, rotated by their EXIF orientation.

    Args:
        table: Table from `read_image_table`.
        positions: Positions of the images in the table, in order.
        image_size: Height and width of the images, in pixels (>= 1).
        interpolation: Filter that resizes an image.
        cropped: Whether to crop the center. Otherwise images keep their aspect ratio, with a shorter side of 256/224 of
            `image_size`, for an augmentation that crops.
    """

    upright = True

    def __init__(
        self,
        table: FileTable,
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
        self.interpolation = interpolation
        self.framing = "crop" if cropped else None


def _check_readable(home: Path, paths: list[PurePosixPath]) -> None:
    with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
        reasons = list(threads.map(lambda path: check_header(home / path), paths))
    corrupt = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    if corrupt:
        listed = "\n  ".join(f"{printable(home / path)}: {reason}" for path, reason in corrupt[:20])
        more = f"\n  and {len(corrupt) - 20:,} more" if len(corrupt) > 20 else ""
        raise CorruptImageError(
            f"{len(corrupt):,} of {len(paths):,} images cannot be read:\n  {listed}{more}\nFix them as said, copy "
            "corrupt files again from their source, or remove them."
        )
