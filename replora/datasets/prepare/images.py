"""`replora-cli prepare fgvc` and `prepare images`: is every image there, can it be read, and what is there?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from replora.datasets.errors import CorruptImageError
from replora.datasets.image.fgvc import FGVC, FGVCSplit, FGVCTask
from replora.datasets.image.folder import read_image_table
from replora.datasets.image.read import ImageReader
from replora.datasets.prepare.report import DataReport, Labeled
from replora.datasets.vtab.verify import in_threads
from replora.errors import RepLoRAError
from replora.memory import usable_cpus
from replora.progress import progress_bar

SMALL = 32  # pixels: images are decoded whole, then made small, so that the check needs no memory


def check_fgvc(root: Path, tasks: list[FGVCTask], check_sizes: bool) -> list[DataReport]:
    """Check the split files and every image of `tasks`."""
    return [_check(task.name, partial(_fgvc_images, root, task, check_sizes)) for task in tasks]


def check_image_folder(root: Path, val_fraction: float, test_fraction: float, seed: int) -> list[DataReport]:
    """Check every image of a folder of class folders or of a CSV file, and show the splits that a run would make."""

    def read() -> Labeled:
        table = read_image_table(root, skip_corrupt=True)
        assigned = table.assign(val_fraction, test_fraction, seed)
        return [
            (table.home / path, table.class_names[label], split)
            for path, label, split in zip(table.paths, table.labels, assigned, strict=True)
        ]

    return [_check(root.name, read)]


def _fgvc_images(root: Path, task: FGVCTask, check_sizes: bool) -> Labeled:
    splits: tuple[FGVCSplit, ...] = ("train", "val", "test")
    found: Labeled = []
    for split in splits:
        data = FGVC(root, task.name, split, check_sizes=check_sizes)
        found += [
            (data.home / path, data.class_names[label], split)
            for path, label in zip(data.paths, data.labels, strict=True)
        ]
    return found


def _check(name: str, read: Callable[[], Labeled]) -> DataReport:
    report = DataReport(name)
    try:
        images = read()
    except RepLoRAError as error:
        report.problems.append(str(error))
        return report
    report.describe_files(images)
    sizes, modes = [], Counter[str]()
    with progress_bar(f"check {name}", len(images)) as advance, ThreadPoolExecutor(min(16, usable_cpus())) as threads:
        for found in in_threads(threads, _examine, (path for path, _, _ in images)):
            advance()
            if isinstance(found, str):
                report.unreadable.append(found)
            else:
                sizes.append(found[0])
                modes[found[1]] += 1
    if sizes:
        sizes.sort(key=lambda size: (size[0] * size[1], size))
        small, median, large = (
            f"{width} x {height}" for width, height in (sizes[0], sizes[len(sizes) // 2], sizes[-1])
        )
        report.notes.append(
            f"width x height: {small} to {large} pixels, the median {median}; modes: "
            + ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
        )
    report.name_unreadable(len(images), "images cannot be read")
    return report


def _examine(path: Path) -> tuple[tuple[int, int], str] | str:
    """Size and mode of an image file; what is wrong with it, if it cannot be read."""
    try:
        ImageReader(SMALL).read(path)
    except CorruptImageError as error:
        return str(error)
    with Image.open(path) as image:
        return image.size, image.mode
