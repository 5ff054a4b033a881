"""Custom images: a folder with a folder for each class, or a CSV file of paths and labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from replora.datasets.common.file_table import read_file_table
from replora.datasets.common.files import LeftOut, files_of, printable
from replora.datasets.common.labeled_files import FileKind, FileTable
from replora.datasets.common.packed import pack_paths
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.image_files import ImageFiles
from replora.datasets.image.read import IMAGE_SUFFIXES, ImageReader, check_header
from replora.datasets.samples import ImageForm
from replora.memory import usable_cpus


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """The image files below `folder`, see `files_of`."""
    return files_of(folder, IMAGE_SUFFIXES, left_out)


IMAGES = FileKind(
    "image", IMAGE_SUFFIXES, image_files, hint="Images without classes are for `replora-cli predict-files`."
)


READER = ImageReader(interpolation="bilinear", framing="crop", upright=True)


def read_image_table(root: Path, skip_corrupt: bool = False) -> FileTable:
    """The table of a folder or CSV file (`read_file_table`), after a check of every header unless `skip_corrupt`.

    Raises:
        CorruptImageError: Files have no header of an image; the message names 20 of them.
    """
    table = read_file_table(root, IMAGES)
    if not skip_corrupt:
        _check_readable(table.home, table.paths)
    return table


class ImageFolder(ImageFiles):
    """The images of one or more splits.

    Args:
        table: Table from `read_image_table`.
        positions: Positions of the images in the table, in order.
        reader: Reader of the images.
        form: How the images are read; other forms than squares are for an augmentation.
    """

    def __init__(
        self,
        table: FileTable,
        positions: list[int],
        reader: ImageReader = READER,
        form: ImageForm = "square",
    ) -> None:
        self.home = table.home
        self.class_names = table.class_names
        self.paths = pack_paths(table.paths[i] for i in positions)
        self.labels = [table.labels[i] for i in positions]
        self.reader = reader
        self.form = form


def _check_readable(home: Path, paths: list[PurePosixPath]) -> None:
    with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
        reasons = list(threads.map(lambda path: check_header(home / path), paths))
    corrupt = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    if corrupt:
        listed = "\n  ".join(f"{printable(home / path)}: {reason}" for path, reason in corrupt[:20])
        more = f"\n  and {len(corrupt) - 20:,} more" if len(corrupt) > 20 else ""
        raise CorruptImageError(
            f"{len(corrupt):,} of {len(paths):,} images cannot be read:\n  {listed}{more}\nFix them as said, copy "
            "corrupt files again from their source, or remove them. Or skip them, counted in the results: "
            f"--data.skip_corrupt true. All of them are listed by: replora-cli prepare images {printable(home)}"
        )
