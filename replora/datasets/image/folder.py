"""Custom images: a folder with a folder for each class, or a CSV file of paths and labels (`file_table.py`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from replora.datasets.common.file_table import read_file_table
from replora.datasets.common.files import LeftOut, files_of, printable
from replora.datasets.common.in_memory import usable_cpus
from replora.datasets.common.labelled_files import FileKind, FileTable
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.read import IMAGE_SUFFIXES, ImageReader, check_header
from replora.datasets.samples import ImageDataset, ImageSample


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """The image files in `folder` and the folders inside it, as `files_of` says."""
    return files_of(folder, IMAGE_SUFFIXES, left_out)


IMAGES = FileKind(
    "image", IMAGE_SUFFIXES, image_files, hint="Images without classes are for `replora-cli predict-files`."
)


READER = ImageReader(interpolation="bilinear", framing="crop", upright=True)


def read_image_table(root: Path, skip_corrupt: bool = False) -> FileTable:
    """Scan a folder of class folders, or read a CSV file of paths and labels, and look at every image's first bytes.

    Args:
        root: the folder, or the file.
        skip_corrupt: Whether images may be unreadable, so that there is no need to look at them.

    Raises:
        RepLoRAError: as `read_file_table` says.
        CorruptImageError: files are no images as far as their first bytes tell; 20 are named.
    """
    table = read_file_table(root, IMAGES)
    if not skip_corrupt:
        _require_readable(table.home, table.paths)
    return table


class ImageFolder(ImageDataset):
    """The images of one or more splits.

    Args:
        table: from `read_image_table`.
        positions: which of its images, in this order.
        reader: what makes a tensor of an image file.
        cropped: give squares; otherwise larger images, for an augmentation to cut from.
    """

    def __init__(
        self,
        table: FileTable,
        positions: list[int],
        reader: ImageReader = READER,
        cropped: bool = True,
    ) -> None:
        self.home = table.home
        self.class_names = table.class_names
        self.paths = [table.paths[i] for i in positions]
        self.labels = [table.labels[i] for i in positions]
        self.reader = reader
        self.cropped = cropped

    def __getitem__(self, index: int) -> ImageSample:
        """The sample: uint8 (3, image_size, image_size), or (3, H, W) where it is not cropped.

        Raises:
            CorruptImageError: the file cannot be decoded.
        """
        index = range(len(self))[index]
        path = self.home / self.paths[index]
        image = self.reader.read(path) if self.cropped else self.reader.read_uncropped(path)
        return {"image": image, "label": self.labels[index], "index": index}


def _require_readable(home: Path, paths: list[PurePosixPath]) -> None:
    with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
        reasons = list(threads.map(lambda path: check_header(home / path), paths))
    damaged = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    if damaged:
        listed = "\n  ".join(f"{printable(home / path)}: {reason}" for path, reason in damaged[:20])
        more = f"\n  and {len(damaged) - 20:,} more" if len(damaged) > 20 else ""
        raise CorruptImageError(
            f"{len(damaged):,} of {len(paths):,} images cannot be read:\n  {listed}{more}\nRepair them as said, copy "
            "damaged ones again from their source, or remove them. Or leave them out, counted in the results: "
            f"--data.skip_corrupt true. All of them are listed by: replora-cli prepare images {printable(home)}"
        )
