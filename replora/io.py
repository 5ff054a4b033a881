"""Atomic writes of files and folders: readers see the old version or the new one, never a part."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replora.errors import RepLoRAError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary file next to `file` to write to, which replaces it at the end and is deleted after an error.

    Args:
        file: File to write. Its folder is created if it does not exist.

    Raises:
        OSError: The file cannot be written; an earlier file is unchanged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder to write to, which becomes `folder` at the end and is deleted after an error.

    Raises:
        RepLoRAError: `folder` exists and is not empty, or lies below a file.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RepLoRAError(f"{folder} already exists and is not overwritten. Choose another name, or remove it.")
    check_not_a_file(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_not_a_file(path: Path) -> None:
    """Check that no parent of a path is a file. Raises RepLoRAError if a parent is a file."""
    if files := [parent for parent in path.parents if parent.is_file()]:
        raise RepLoRAError(f"{path} cannot be written: {files[0]} is a file, not a folder. Choose another name.")


def replace_text(file: Path, text: str) -> None:
    """Write `text` as UTF-8 without translating line ends."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def cache_folder() -> Path:
    """`$REPLORA_CACHE`, by default `replora` in the user's cache folder; it may not exist yet."""
    base = os.environ.get("REPLORA_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "replora"
