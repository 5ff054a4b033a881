"""Detection of files with the same content in two splits."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from replora.datasets.common.files import printable
from replora.memory import usable_cpus

log = logging.getLogger(__name__)

END = 4096  # bytes to compare before complete files are hashed


def across_splits(files: Sequence[Path], splits: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of files with equal content in different splits; few files are read completely.

    Args:
        files: Files to compare. Folders and files that cannot be read are ignored.
        splits: Split of each file.

    Returns:
        For each file that repeats an earlier one of another split, the positions of both, the earlier one first.
    """
    suspects = list(range(len(files)))
    groups: list[list[int]] = [suspects]
    for key in (_size, _end, _digest):
        finer: list[list[int]] = []
        members = [position for group in groups for position in group]
        with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
            keys = dict(zip(members, threads.map(key, [files[i] for i in members]), strict=True))
        for group in groups:
            parts: dict[Hashable, list[int]] = defaultdict(list)
            for position in group:
                if keys[position] is not None:
                    parts[keys[position]].append(position)
            finer += [part for part in parts.values() if len({splits[i] for i in part}) > 1]
        groups = finer
    return sorted(
        (next(first for first in group if splits[first] != splits[i]), i)
        for group in groups
        for i in group
        if splits[i] != splits[group[0]]
    )


def log_duplicates(home: Path, files: Sequence[Path], splits: Sequence[str]) -> None:
    """Log how many files have copies in another split, with an example, if any have."""
    pairs = across_splits(files, splits)
    if pairs:
        one, other = pairs[0]
        log.warning(
            "%s: %s files are copies of a file in another split, such as %s (%s) and %s (%s). A model would be tested "
            "on what it was trained on. Remove the copies, or move all copies of a file to one split.",
            *(printable(home), f"{len(pairs):,}", printable(files[one]), splits[one]),
            *(printable(files[other]), splits[other]),
        )


def _read(reads: Callable[[Path], Hashable]) -> Callable[[Path], Hashable]:
    def read(file: Path) -> Hashable:
        try:
            return reads(file)
        except OSError:  # reported when the file is used
            return None

    return read


@_read
def _size(file: Path) -> Hashable:
    return file.stat().st_size if file.is_file() else None


@_read
def _end(file: Path) -> Hashable:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - END))
        return stream.read()


@_read
def _digest(file: Path) -> Hashable:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
