"""The videos that the lists of a benchmark name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from replora.datasets.common.labeled_files import FileSplit, FileTable
from replora.datasets.common.paths import missing_files
from replora.datasets.errors import DatasetNotFoundError, ListFileError

# Suffixes of re-encoded videos; a video without a suffix is a folder of frames.
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", "")


def listed_videos(
    root: Path,
    folders: Sequence[str],
    videos: dict[PurePosixPath, tuple[int, FileSplit]],
    class_names: list[str],
    source: str,
) -> FileTable:
    """The table of listed videos, in the first folder that has all of them with one suffix.

    Args:
        root: Folder of the benchmark.
        folders: Names of the folders in `root` that may contain the videos; "" is `root` itself.
        videos: Listed path -> label and split.
        class_names: Names of the classes.
        source: Source of the data, for errors.

    Raises:
        DatasetNotFoundError: No folder contains any of the videos.
        ListFileError: Videos are missing, or none is listed.
    """
    listed = list(videos)
    if not listed:
        raise ListFileError(f"The lists in {root} contain no videos. {source}")
    best: tuple[int, str] | None = None
    for home in (root / name for name in folders):
        for paths in (listed, *([path.with_suffix(suffix) for path in listed] for suffix in SUFFIXES)):
            missing = missing_files(home, paths, folders=not paths[0].suffix) if home.is_dir() else paths
            if not missing:
                labels, splits = [label for label, _ in videos.values()], [split for _, split in videos.values()]
                return FileTable(home, paths, labels, class_names, list(splits))
            if len(missing) < len(paths) and (best is None or len(missing) < best[0]):
                found = f"{len(missing):,} of {len(paths):,} videos are missing in {home}: {missing[0]}, ..."
                best = (len(missing), found)
    if best is not None:
        raise ListFileError(f"{best[1]} Unpack all archives. {source}")
    raise DatasetNotFoundError(
        f"{root} contains none of the {len(listed):,} videos; looked for {listed[0]}, other suffixes such as .mp4, and "
        f"a folder of frames {listed[0].with_suffix('')}, in "
        f"{', '.join(name or 'the folder itself' for name in folders)}. {source}"
    )
