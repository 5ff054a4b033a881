"""Paths that a data set names: inside its folder, and there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath, PureWindowsPath

from replora.datasets.errors import ListFileError

ALLOWED = "REPLORA_ALLOWED_ROOTS"
_allowed: ContextVar[tuple[Path, ...]] = ContextVar("allowed", default=())


def inner_path(text: str, where: str) -> PurePosixPath:
    """The relative path that `text` writes, with `/` or with backslashes.

    Args:
        text: the path.
        where: file and line or key, for the error.

    Raises:
        ListFileError: it is empty, absolute or has `..`.
    """
    windows = PureWindowsPath(text)  # splits at / and at \, knows drives
    if not text.strip() or windows.anchor or ".." in windows.parts:
        raise ListFileError(f"{where}: the path {text!r} leaves the data. Paths are relative, without `..`.")
    return PurePosixPath(windows.as_posix())


def missing_files(folder: Path, paths: Iterable[PurePosixPath], folders: bool = False) -> list[PurePosixPath]:
    """Those of `paths` that are no files in `folder`. Each folder is listed once, not one call a file.

    Args:
        folder: where to look.
        paths: relative to it.
        folders: take a folder for a file, as for videos of single images.

    Raises:
        ListFileError: a link leads out of `folder`.
    """
    home = folder.resolve()
    files: dict[PurePosixPath, set[str]] = {}
    missing: list[PurePosixPath] = []
    for path in paths:
        if path.parent not in files:
            files[path.parent] = _files_in(folder / path.parent, home, folders)
        if path.name not in files[path.parent]:
            missing.append(path)
    return missing


def stay_inside(path: Path, home: Path) -> None:
    """Raise if `path`, its links followed, is not in `home` (resolved).

    Raises:
        ListFileError: it is not.
    """
    target = path.resolve()
    if not target.is_relative_to(home) and not is_allowed(target):
        raise ListFileError(
            f"{path} is a link that leaves the data ({target} is not inside {home}). Copy the files there, or "
            f"{how_to_allow(target)}"
        )


@contextmanager
def allowing(roots: list[Path] | Path | None) -> Iterator[None]:
    """Allow data in further folders while the lists of a data set are read: the option `--data.allowed_roots`."""
    further = () if roots is None else (roots,) if isinstance(roots, Path) else tuple(roots)
    token = _allowed.set((*_allowed.get(), *further))
    try:
        yield
    finally:
        _allowed.reset(token)


def is_allowed(target: Path) -> bool:
    """Whether the user allows data in the folder of `target`, by `allowing` or the variable REPLORA_ALLOWED_ROOTS.

    Several folders in the variable are separated as in PATH. Links of a Hugging Face cache, of DVC and of git-annex
    need this.
    """
    named = [Path(root) for root in os.environ.get(ALLOWED, "").split(os.pathsep) if root]
    return any(target.is_relative_to(root.expanduser().resolve()) for root in (*_allowed.get(), *named))


def how_to_allow(target: Path) -> str:
    """The remedy for a path that leaves the data, as the end of a sentence."""
    return (
        f"allow the folder that it leads to: --data.allowed_roots {target.parent} in a run, or the environment "
        f"variable {ALLOWED}={target.parent}"
    )


def listed_path(text: str, where: str, home: Path) -> PurePosixPath:
    """As `inner_path`; an absolute path is accepted too if it is inside `home`, or where `is_allowed` says.

    Args:
        text, where: as of `inner_path`.
        home: what relative paths are relative to.
    """
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or "\0" in text:
        return inner_path(text, where)
    for root in (home.absolute(), home.resolve()):
        if path.is_relative_to(root) and path != root:
            return PurePosixPath(path.relative_to(root).as_posix())
    if is_allowed(path.resolve()):
        return PurePosixPath(path.as_posix())
    raise ListFileError(
        f"{where}: the path {text!r} leaves the data. Make it relative, without `..`, or {how_to_allow(path)}"
    )


def _files_in(directory: Path, home: Path, folders: bool) -> set[str]:
    if not os.path.isdir(directory):  # noqa: PTH112 (Path.is_dir raises for names that are too long or hold a NUL)
        return set()
    stay_inside(directory, home)
    names = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file() or (folders and entry.is_dir()):
                names.add(entry.name)
                if entry.is_symlink():
                    stay_inside(Path(entry.path), home)
    return names


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """The folder of the data: `root`, else the environment variable REPLORA_DATA, else `data`; `~` is expanded."""
    return Path(root or os.environ.get("REPLORA_DATA") or "data").expanduser()
