"""Verification of a VTAB-1K task: its lists, sizes, labels and images, and the agreement of its training lists."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from PIL import Image

from replora.datasets.errors import DatasetNotFoundError
from replora.datasets.vtab.dataset import SPLITS, VTAB, VTABSplit, VTABTask, find_task_folder, lists_sha256
from replora.datasets.vtab.tracks import MARKER, TRACKS, Track, read_marker, track_of_format
from replora.errors import RepLoRAError
from replora.memory import usable_cpus

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class TaskReport:
    """The result of the verification of one task."""

    task: VTABTask
    track_wanted: Track | None = None
    folder: Path | None = None
    track: Track | None = None  # track of the record or, without one, of the format of the images
    sizes: dict[VTABSplit, int] = field(default_factory=dict)
    classes_seen: int = 0  # number of classes in the test list
    problems: list[str] = field(default_factory=list)  # reasons why the copy is unusable
    notes: list[str] = field(default_factory=list)  # remarks
    unreadable: list[str] = field(default_factory=list)  # images that cannot be decoded, with the reasons

    @property
    def name(self) -> str:
        return self.task.name

    def columns(self) -> dict[str, str]:
        """Heading -> cell in the table of `prepare`."""
        sizes: dict[str, str] = {split: f"{self.sizes[split]:,}" if split in self.sizes else "-" for split in SPLITS}
        classes = f"{self.classes_seen}/{self.task.num_classes}" if self.folder else "-"
        return {"track": self.track or "-", **sizes, "classes": classes}

    @property
    def state(self) -> Literal["complete", "missing", "corrupt", "other track"]:
        """The verdict."""
        if self.folder is None:
            return "missing"
        if self.problems:
            return "corrupt"
        return "complete" if self.track_wanted in (None, self.track) else "other track"


@dataclass(frozen=True)
class _Decoded:
    image_format: str | None
    digest: bytes  # of the pixels
    error: str = ""


class TaskCheck:
    """The verification of one task: of the lists at construction, of the images in `run`.

    Args:
        root: Folder of the tasks, as for `VTAB`.
        task: The task.
        track: Required track. Default: both are accepted.
        check_sizes: Whether to compare the number of images with the table and to require every class in the test list.
    """

    def __init__(self, root: Path, task: VTABTask, track: Track | None = None, check_sizes: bool = True) -> None:
        self.report = TaskReport(task, track)
        self._splits: dict[VTABSplit, VTAB] = {}
        try:
            folder = self.report.folder = find_task_folder(root, task)
        except DatasetNotFoundError:
            for partial in root.glob(f".{task.name}-*.partial"):
                self.report.notes.append(f"{partial} contains an interrupted build; the same command continues it")
            return
        self._note_names(folder)
        for split in SPLITS:
            try:
                dataset = VTAB(root, task.name, split, check_sizes=False)
            except RepLoRAError as error:
                self.report.problems.append(str(error))
                continue
            self._splits[split] = dataset
            self.report.sizes[split] = len(dataset)
            if check_sizes and len(dataset) != task.size(split):
                self.report.problems.append(self._wrong_size(dataset))
        if test := self._splits.get("test"):
            unseen = sorted(set(range(task.num_classes)) - set(test.labels))
            self.report.classes_seen = task.num_classes - len(unseen)
            if check_sizes and len(test) == task.size("test") and unseen:
                self.report.problems.append(
                    f"test.txt has no images of {len(unseen)} of the {task.num_classes} classes (labels "
                    f"{', '.join(map(str, unseen[:5]))}{', ...' if len(unseen) > 5 else ''}): the labels are wrong"
                )
        self._check_marker(folder)

    def __len__(self) -> int:
        """The number of image files to decode."""
        return len(self._files())

    def run(self, advance: Callable[[], object] = lambda: None) -> TaskReport:
        """Decode every image, and call `advance` after each."""
        folder = self.report.folder
        if folder is None:
            return self.report
        decoded: dict[PurePosixPath, _Decoded] = {}
        with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
            files = self._files()
            for path, result in zip(files, in_threads(threads, _decode, (folder / p for p in files)), strict=True):
                decoded[path] = result
                advance()
        corrupt = {path: result.error for path, result in decoded.items() if result.error}
        if corrupt:
            self.report.unreadable = [f"{folder / path} cannot be read: {error}" for path, error in corrupt.items()]
            first = "; ".join(f"{path} ({error})" for path, error in list(corrupt.items())[:3])
            self.report.problems.append(
                f"{len(corrupt):,} of {len(decoded):,} images cannot be decoded, the first: {first}"
            )
        self._check_formats({result.image_format for result in decoded.values() if not result.error})
        self._check_training_lists(decoded)
        self._note_tested_training_images(decoded)
        return self.report

    def _files(self) -> list[PurePosixPath]:
        return list(dict.fromkeys(path for dataset in self._splits.values() for path in dataset.paths))

    def _note_names(self, folder: Path) -> None:
        task = self.report.task
        if folder.name != task.name:
            self.report.notes.append(f"found under its other name {folder.name}")
        for other in task.folders:
            if other != folder.name and (folder.parent / other).is_dir():
                self.report.notes.append(f"{folder.parent / other} contains the same task and is not used")

    def _wrong_size(self, dataset: VTAB) -> str:
        task, expected = self.report.task, dataset.task.size(dataset.split)
        note = sun397_note(task, len(dataset))
        return f"{dataset.split}.txt lists {len(dataset):,} images, but {expected:,} are expected.{note}"

    def _check_marker(self, folder: Path) -> None:
        try:
            marker = read_marker(folder)
        except RepLoRAError as error:
            self.report.problems.append(str(error))
            return
        if marker is None:
            return
        self.report.track = marker["track"]
        if marker.get("lists_sha256") != lists_sha256(folder):
            self.report.problems.append(
                f"the list files were changed after they were written (by their hash in {MARKER})"
            )

    def _check_formats(self, formats: set[str | None]) -> None:
        report = self.report
        if len(formats) == 1:
            report.track = report.track or track_of_format(next(iter(formats)))
        elif formats:
            report.problems.append(f"the images have different formats: {_names(formats)}")
        if report.track is None:
            return
        expected = TRACKS[report.track].image_format
        if formats and formats != {expected}:
            report.problems.append(f"images of the track {report.track} are {expected}; found: {_names(formats)}")

    def _check_training_lists(self, decoded: dict[PurePosixPath, _Decoded]) -> None:
        """Check that train800val200 has the images and labels of train800 and val200, in any order."""
        counts: dict[VTABSplit, Counter[tuple[bytes, int]]] = {
            split: Counter(
                (decoded[path].digest, label) for path, label in zip(dataset.paths, dataset.labels, strict=True)
            )
            for split, dataset in self._splits.items()
            if split != "test"
        }
        if len(counts) < 3 or any(result.error for result in decoded.values()):
            return
        together = counts["train800"] + counts["val200"]
        differing = ((together - counts["train800val200"]) | (counts["train800val200"] - together)).total()
        if differing:
            self.report.problems.append(
                f"train800val200 is not train800 and val200 together: {differing:,} images or labels differ"
            )
        if shared := (counts["train800"] & counts["val200"]).total():
            self.report.notes.append(f"{shared} images are both in train800 and in val200")

    def _note_tested_training_images(self, decoded: dict[PurePosixPath, _Decoded]) -> None:
        """Note test images that are also training images: some original data sets contain copies."""
        test, train = self._splits.get("test"), self._splits.get("train800val200")
        if test is None or train is None:
            return
        trained = {decoded[path].digest for path in train.paths if not decoded[path].error}
        if shared := sum(decoded[path].digest in trained for path in test.paths):
            self.report.notes.append(
                f"{shared:,} of {len(test):,} test images have the pixels of an image in train800val200"
            )


def sun397_note(task: VTABTask, count: int) -> str:
    """An explanation if SUN397 lacks one test image, else an empty text."""
    if task.name == "sun397" and count == 21_749:
        return " Some versions of TensorFlow cannot decode sun_aophkoiosslinihb.jpg, which is then left out."
    return ""


def in_threads(
    threads: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 256
) -> Iterator[Result]:
    """`map` in threads that takes at most `ahead` items at a time, to bound the memory."""
    source = iter(items)
    while chunk := list(islice(source, ahead)):
        yield from threads.map(function, chunk)


def _decode(file: Path) -> _Decoded:
    try:
        with Image.open(file) as image:
            pixels = image.convert("RGB")
            digest = hashlib.blake2b(repr(pixels.size).encode() + pixels.tobytes(), digest_size=16).digest()
            return _Decoded(image.format, digest)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises almost any error for corrupt files
        empty = file.is_file() and file.stat().st_size == 0
        return _Decoded(None, b"", "the file is empty" if empty else str(error).replace(f" {str(file)!r}", ""))


def _names(formats: set[str | None]) -> str:
    return ", ".join(sorted(map(str, formats)))
