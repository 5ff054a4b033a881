"""`replora-cli prepare fgvc` and `prepare images`: is every image there, and can it be read?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

from replora.datasets.common.in_memory import usable_cpus
from replora.datasets.common.labeled_files import FileSplit
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.fgvc import FGVC, FGVCSplit, FGVCTask
from replora.datasets.image.folder import ImageFolder, read_image_table
from replora.datasets.prepare.report import counts
from replora.datasets.samples import ImageDataset
from replora.datasets.vtab.verify import in_threads
from replora.errors import RepLoRAError
from replora.progress import progress_bar

SMALL = 32  # pixels: images are decoded whole, then made small, so that the check needs no memory


@dataclass
class DataReport:
    """What was found of one data set.

    Attributes:
        name: Name of the data set.
        classes: How many it has.
        sizes: Number of images of each split.
        problems: What makes it unusable, each with its reason.
        notes: What is worth knowing all the same.
    """

    name: str
    classes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The verdict."""
        return "damaged" if self.problems else "whole"

    def columns(self) -> dict[str, str]:
        """Heading -> cell of the table."""
        return {"classes": str(self.classes or "-"), **counts(self.sizes, ("train", "val", "test"))}


def check_fgvc(root: Path, tasks: list[FGVCTask], check_sizes: bool) -> list[DataReport]:
    """Check the split files and every image of `tasks`."""
    return [_check(task.name, partial(_fgvc_splits, root, task, check_sizes)) for task in tasks]


def check_image_folder(root: Path, val_fraction: float, test_fraction: float, seed: int) -> list[DataReport]:
    """Check every image of a folder of class folders or of a CSV file, and show the splits that a run would make."""

    def splits() -> dict[str, ImageDataset]:
        table = read_image_table(root)
        assigned = table.assign(val_fraction, test_fraction, seed)
        return {
            split: ImageFolder(table, [i for i, name in enumerate(assigned) if name == split], SMALL)
            for split in get_args(FileSplit)
        }

    return [_check(root.name, splits)]


def _fgvc_splits(root: Path, task: FGVCTask, check_sizes: bool) -> dict[str, ImageDataset]:
    splits: tuple[FGVCSplit, ...] = ("train", "val", "test")
    return {split: FGVC(root, task.name, split, SMALL, check_sizes=check_sizes) for split in splits}


def _check(name: str, build: Callable[[], Mapping[str, ImageDataset]]) -> DataReport:
    report = DataReport(name)
    try:
        splits = build()
    except RepLoRAError as error:
        report.problems.append(str(error))
        return report
    report.sizes = {split: len(dataset) for split, dataset in splits.items()}
    report.classes = len(next(iter(splits.values())).class_names)
    images = [(dataset, index) for dataset in splits.values() for index in range(len(dataset))]
    damaged = []
    with progress_bar(f"check {name}", len(images)) as advance, ThreadPoolExecutor(min(16, usable_cpus())) as threads:
        for fault in in_threads(threads, _read, images):
            advance()
            if fault:
                damaged.append(fault)
    if damaged:
        report.problems.append(f"{len(damaged):,} of {len(images):,} images cannot be read, the first: {damaged[0]}")
    return report


def _read(image: tuple[ImageDataset, int]) -> str:
    """What is wrong with an image; nothing, if it can be read."""
    dataset, index = image
    try:
        dataset[index]
    except CorruptImageError as error:
        return str(error)
    return ""
