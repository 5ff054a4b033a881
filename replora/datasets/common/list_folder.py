"""The folder of a benchmark with its list files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from replora.datasets.errors import DatasetNotFoundError


def find_folder(
    root: Path, names: Sequence[str], parent: str, lists: Sequence[str], layout: str, source: str = ""
) -> Path:
    """The folder of a data set in `root` or in `root/parent`.

    Args:
        root: Folder to search.
        names: Names of the folder in order of preference, without regard to case.
        parent: Name of a folder in `root` that may contain it, without regard to case.
        lists: Names of the list files in the folder.
        layout: Expected content of the folder, for the error.
        source: Source of the data, for the error.

    Raises:
        DatasetNotFoundError: There is none; the message shows what was found and the expected layout.
    """
    root = root.expanduser()
    parents = [root, *(entry for entry in _folders(root) if entry.name.lower() == parent)]
    for folder in parents:
        there = {entry.name.lower(): entry for entry in _folders(folder)}
        for name in names:
            if (folder / name).is_dir():
                return folder / name
            if name.lower() in there:
                return there[name.lower()]
    if not root.is_dir():
        found = f"{root} is not a folder" if root.exists() else f"the folder {root} does not exist"
    elif any((root / name).is_file() for name in lists):
        found = f"{root} is itself such a folder: use its parent folder, {root.resolve().parent}"
    else:
        found = "; ".join(f"{folder} contains {listed([e.name for e in _folders(folder)])}" for folder in parents)
    source = f"\n  source:    {source}" if source else ""
    raise DatasetNotFoundError(
        f"The data of {names[0]!r} were not found.\n"
        f"  requested: a folder {' or '.join(names)} in {root} or in {root / parent}\n"
        f"  found:     {found}\n"
        f"  expected:  {layout}\n"
        f"  remedy:    set root to the parent folder of {names[0]} (--data.root, or the environment variable "
        f"REPLORA_DATA){source}"
    )


def hash_lists(folder: Path, lists: Sequence[str]) -> str:
    """SHA-256 of the list files of a folder, which identifies the images and labels of a result."""
    digest = hashlib.sha256()
    for file in (folder / name for name in lists):
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def listed(names: Sequence[str]) -> str:
    """Names as text, at most 30 of them."""
    return (", ".join(names[:30]) + (", ..." if len(names) > 30 else "")) or "nothing"


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
