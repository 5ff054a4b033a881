"""`replora-cli prepare ssv2`, `prepare hmdb51` and `prepare videos`: is every video there, and can it be decoded?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from replora.datasets.common.labeled_files import FileSplit, FileTable
from replora.datasets.errors import CorruptVideoError
from replora.datasets.prepare.report import DataReport
from replora.datasets.video.decode import count_frames
from replora.datasets.video.folder import read_video_table
from replora.datasets.video.hmdb51 import OfficialSplit, read_hmdb51
from replora.datasets.video.ssv2 import read_ssv2
from replora.datasets.vtab.verify import in_threads
from replora.errors import RepLoRAError
from replora.memory import usable_cpus
from replora.progress import progress_bar


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
    report, table = _read(
        root.name, lambda: read_video_table(root), lambda table: table.assign(val_fraction, test_fraction, seed)
    )
    return [_checked(report, table, decode)]


def _official(table: FileTable) -> list[FileSplit]:
    return [split or "train" for split in table.splits]


def _read(
    name: str, read: Callable[[], FileTable], assign: Callable[[FileTable], list[FileSplit]] = _official
) -> tuple[DataReport, FileTable | None]:
    report = DataReport(name)
    try:
        table = read()
        splits = assign(table)
    except RepLoRAError as error:
        report.problems.append(str(error))
        return report, None
    names = [table.class_names[label] for label in table.labels]
    report.describe_files(list(zip(map(table.home.joinpath, table.paths), names, splits, strict=True)))
    return report, table


def _checked(report: DataReport, table: FileTable | None, decode: bool, seen: set[Path] | None = None) -> DataReport:
    """The report, with the videos that cannot be decoded; those of `seen` are not decoded again."""
    if table is None or not decode:
        return report
    seen = set() if seen is None else seen
    videos = [path for path in (table.home / path for path in table.paths) if path not in seen]
    seen.update(videos)
    with (
        progress_bar(f"decode {report.name}", len(videos)) as advance,
        ThreadPoolExecutor(min(16, usable_cpus())) as threads,
    ):
        for fault in in_threads(threads, _fault, videos):
            advance()
            if fault:
                report.unreadable.append(fault)
    report.name_unreadable(len(videos), "videos cannot be decoded")
    return report


def _fault(video: Path) -> str:
    """What is wrong with a video; nothing, if it can be decoded to its end."""
    try:
        count_frames(video)
    except CorruptVideoError as error:
        return str(error)
    return ""
