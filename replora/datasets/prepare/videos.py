"""`replora-cli prepare ssv2`, `prepare hmdb51` and `prepare videos`: is every video there, and can it be decoded?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

from replora.datasets.common.in_memory import usable_cpus
from replora.datasets.common.labeled_files import FileSplit, FileTable
from replora.datasets.errors import CorruptVideoError
from replora.datasets.prepare.images import DataReport
from replora.datasets.video.decode import count_frames
from replora.datasets.video.folder import read_video_table
from replora.datasets.video.hmdb51 import OfficialSplit, read_hmdb51
from replora.datasets.video.ssv2 import read_ssv2
from replora.datasets.vtab.verify import in_threads
from replora.errors import RepLoRAError
from replora.progress import progress_bar

NAMED = 20  # damaged videos that a report names


def check_ssv2(root: Path, check_sizes: bool, decode: bool) -> list[DataReport]:
    """Check the lists of Something-Something-V2, and decode every video if `decode`."""
    report, table = _read("ssv2", lambda: read_ssv2(root, check_sizes))
    return [_checked(report, table, decode)]


def check_hmdb51(root: Path, check_sizes: bool, decode: bool) -> list[DataReport]:
    """Check the three splits of HMDB51; the videos of the first one are nearly all, and are decoded if `decode`."""
    reports = []
    seen: set[Path] = set()
    splits: tuple[OfficialSplit, ...] = (1, 2, 3)
    for split in splits:
        report, table = _read(f"hmdb51 split {split}", lambda split=split: read_hmdb51(root, split, check_sizes))  # type: ignore[misc]
        reports.append(_checked(report, table, decode, seen))
    return reports


def check_video_folder(
    root: Path, val_fraction: float, test_fraction: float, seed: int, decode: bool
) -> list[DataReport]:
    """Check a folder of class folders or a CSV file, and show the splits that a run would make."""
    report, table = _read(root.name, lambda: read_video_table(root))
    if table is not None:
        _count(report, table.assign(val_fraction, test_fraction, seed))
    return [_checked(report, table, decode)]


def _read(name: str, read: Callable[[], FileTable]) -> tuple[DataReport, FileTable | None]:
    report = DataReport(name)
    try:
        table = read()
    except RepLoRAError as error:
        report.problems.append(str(error))
        return report, None
    report.classes = len(table.class_names)
    _count(report, [split or "train" for split in table.splits])
    return report, table


def _count(report: DataReport, splits: list[FileSplit]) -> None:
    report.sizes = {split: splits.count(split) for split in get_args(FileSplit) if split in splits}


def _checked(report: DataReport, table: FileTable | None, decode: bool, seen: set[Path] | None = None) -> DataReport:
    """The report, with the videos that cannot be decoded; those of `seen` are not decoded again."""
    if table is None or not decode:
        return report
    seen = set() if seen is None else seen
    videos = [path for path in (table.home / path for path in table.paths) if path not in seen]
    seen.update(videos)
    faults = []
    with (
        progress_bar(f"decode {report.name}", len(videos)) as advance,
        ThreadPoolExecutor(min(16, usable_cpus())) as threads,
    ):
        for fault in in_threads(threads, _fault, videos):
            advance()
            if fault:
                faults.append(fault)
    if faults:
        listed = "\n  ".join(faults[:NAMED]) + (f"\n  and {len(faults) - NAMED:,} more" if len(faults) > NAMED else "")
        report.problems.append(
            f"{len(faults):,} of {len(videos):,} videos cannot be decoded:\n  {listed}\n  A run stops at such a video; "
            "--data.skip_corrupt true leaves them out and counts them."
        )
    return report


def _fault(video: Path) -> str:
    """What is wrong with a video; nothing, if it can be decoded to its end."""
    try:
        count_frames(video)
    except CorruptVideoError as error:
        return str(error)
    return ""
