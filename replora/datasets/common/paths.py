"""Paths in the lists of a data set."""

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
    """`text`, written with `/` or backslashes, as a relative path. `where` is file and line or key, for the error.

    Raises:
        ListFileError: The path is empty or absolute, or contains `..`.
    """
    windows = PureWindowsPath(text)  # splits at / and at \, knows drives
    if not text.strip() or windows.anchor or ".." in windows.parts:
        raise ListFileError(f"{where}: the path {text!r} leaves the data. Paths must be relative and without `..`.")
    return PurePosixPath(windows.as_posix())


def missing_files(
    folder: Path, paths: Iterable[PurePosixPath], folders: bool = False, root: Path | None = None
) -> list[PurePosixPath]:
    """Those of `paths` that are not files in `folder`. Each folder is listed once, instead of one call per file.

    Args:
        folder: Folder of the files.
        paths: Paths relative to `folder`.
        folders: Whether a folder counts as a file, like a video of single images.
        root: Folder that links must not leave. Default: `folder`.

    Raises:
        ListFileError: A link leaves `folder` and `root`.
    """
    homes = [place.resolve() for place in (folder, root) if place is not None]
    files: dict[PurePosixPath, set[str]] = {}
    missing: list[PurePosixPath] = []
    for path in paths:
        if path.parent not in files:
            files[path.parent] = _files_in(folder / path.parent, homes, folders)
        if path.name not in files[path.parent]:
            missing.append(path)
    return missing


def check_inside(path: Path, *homes: Path) -> None:
    """Check that `path` is inside one of `homes` (resolved paths) after its links are followed.

    Raises:
        ListFileError: `path` is outside.
    """
    target = path.resolve()
    if not any(map(target.is_relative_to, homes)) and not is_allowed(target):
        raise ListFileError(
            f"{path} is a link that leaves the data ({target} is not inside {' or '.join(map(str, homes))}). Copy the "
            f"files there, or {how_to_allow(target)}"
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
    """Whether `allowing` or the environment variable REPLORA_ALLOWED_ROOTS allows data at `target`.

    The variable names folders, separated as in PATH. The links of a Hugging Face cache, of DVC and git-annex need it.
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
    """Same as `inner_path`, but also accepts absolute paths that are inside `home` or allowed (`is_allowed`)."""
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


def _files_in(directory: Path, homes: list[Path], folders: bool) -> set[str]:
    if not os.path.isdir(directory):  # noqa: PTH112 (Path.is_dir raises for names that are too long or contain NUL)
        return set()
    check_inside(directory, *homes)
    names = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file() or (folders and entry.is_dir()):
                names.add(entry.name)
                if entry.is_symlink():
                    check_inside(Path(entry.path), *homes)
    return names


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """The folder of the data: `root`, else the environment variable REPLORA_DATA, else `data`. `~` is expanded."""
    return Path(root or os.environ.get("REPLORA_DATA") or "data").expanduser()
