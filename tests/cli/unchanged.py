"""A folder as it is: what a refused call leaves untouched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Everything below a folder: path -> mode, and the bytes of a file, the target of a link or nothing."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(folder))] = path.lstat().st_mode, content
    return found


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Assert that the block leaves a folder as it was: names, modes, bytes, no empty folder and no temporary file."""
    before = snapshot(folder)
    yield
    after = snapshot(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert changed == [], changed
