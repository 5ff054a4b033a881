"""Listing of the files of a data set, with counts of what is left out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from replora.datasets.errors import DatasetNotFoundError

log = logging.getLogger(__name__)

# Folders created by file servers, operating systems and programs. Names that begin with a dot are foreign as well.
FOREIGN = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "@__thumb", "@tmp", "#snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
}
# Folders of small copies. A class may have such a name, so they are left out only inside the folder of a class.
PREVIEWS = {"thumbs", "thumbnails", "_thumbs", "_thumbnails"}

LeftOut = Counter[str]  # what was left out, such as `.heic` or `broken link` -> how often


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or was created by a system rather than the user."""
    return name.startswith(".") or name.lower() in FOREIGN


def printable(path: Path | str) -> str:
    """A path for messages and text files. Bytes that are not UTF-8 are escaped like `\\xe9`."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_unicode(path: Path | str) -> bool:
    """Whether a path can be encoded as UTF-8, like every list and record of a run."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def walk(folder: Path, left_out: LeftOut, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, list[Path]]]:
    """The folders in `folder`, itself first, each with its files in alphabetical order.

    Links to folders are followed, except to one that holds the link. Hidden, foreign and preview folders, hidden files
    and broken links are left out, and counted in `left_out`. `above` are the parent folders of the walk.

    Raises:
        DatasetNotFoundError: A folder cannot be listed.
    """
    chain = (*above, folder)
    files, folders = [], []
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_dir():
            if is_foreign(entry.name) or entry.name.lower() in PREVIEWS:
                left_out["hidden, foreign or preview folder"] += 1
            elif entry.is_symlink() and os.path.realpath(path) in map(os.path.realpath, chain):
                left_out["link to a folder above"] += 1
            else:
                folders.append(path)
        elif is_foreign(entry.name):
            left_out["hidden file"] += 1
        elif not entry.is_file():
            left_out["broken link" if entry.is_symlink() else "device"] += 1
        else:
            files.append(path)
    yield folder, files
    for path in folders:
        yield from walk(path, left_out, chain)


def files_of(folder: Path, suffixes: Iterable[str], left_out: LeftOut) -> list[Path]:
    """The files below `folder` that end in one of `suffixes` (lower case, with the dot), in any case, sorted.

    Other files are counted in `left_out` by their suffix.
    """
    known = set(suffixes)
    found = []
    for _, files in walk(folder, left_out):
        for file in files:
            if file.suffix.lower() in known:
                found.append(file)
            else:
                left_out[file.suffix.lower() or "file without a suffix"] += 1
    return sorted(found)


def log_left_out(where: Path, left_out: LeftOut) -> None:
    """Log what was left out, in descending order of frequency."""
    if left_out:
        listed = ", ".join(f"{count:,} {name}" for name, count in left_out.most_common())
        log.warning("%s: left out: %s", printable(where), listed)


def subfolders(parent: Path, left_out: LeftOut | None = None) -> list[str]:
    """The names of the folders in `parent`, sorted, without hidden and foreign ones.

    Raises:
        DatasetNotFoundError: `parent` cannot be listed.
    """
    names = []
    for entry in _entries(parent):
        if entry.is_dir():
            if not is_foreign(entry.name):
                names.append(entry.name)
            elif left_out is not None:
                left_out["hidden, foreign or preview folder"] += 1
    return names


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as opened:
            return sorted(opened, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetNotFoundError(
            f"The folder {printable(folder)} cannot be listed ({error.strerror}). Change its permissions, or remove it."
        ) from error
