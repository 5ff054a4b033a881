"""Write a file or folder whole or not at all: readers see the old one or the new one, never a part."""

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
    """A temporary file beside `file` to write to, which takes its place at the end and is deleted after an error.

    Args:
        file: What to write; its folder is made if absent.

    Raises:
        OSError: It cannot be written; a file that was there before is still whole.
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
        RepLoRAError: `folder` exists and is not empty, or would lie in a file.
        OSError: It cannot be written.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RepLoRAError(f"{folder} exists already, and nothing is overwritten. Choose another name, or remove it.")
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
    """Refuse a path that leads through a file.

    Raises:
        RepLoRAError: It does.
    """
    if files := [parent for parent in path.parents if parent.is_file()]:
        raise RepLoRAError(f"{path} cannot be written: {files[0]} is a file, not a folder. Choose another name.")


def replace_text(file: Path, text: str) -> None:
    """Write `text` as UTF-8, its line ends as they are."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def cache_folder() -> Path:
    """`$REPLORA_CACHE`, by default `replora` in the user's cache folder; it may not exist yet."""
    base = os.environ.get("REPLORA_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "replora"
