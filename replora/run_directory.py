"""The directory of a run: unique when it is new, never shared by two runs, locked while a verb writes in it."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from replora.errors import RepLoRAError

LOCK = ".lock"
HOLDER = ".lock.holder"
# What a verb writes before there is anything to keep.
BEGINNINGS = (LOCK, HOLDER, "*.yaml", "events.out.tfevents.*")

_made: list[Path] = []  # directories that this process made, parents first


class RunDirectoryError(RepLoRAError):
    """A run directory is in use, or holds another run."""


def last_checkpoint(run_dir: Path) -> Path:
    """Where a fit keeps its newest state."""
    return run_dir / "checkpoints" / "last.ckpt"


def create_unique(folder: Path) -> Path:
    """Create `folder`, or `folder-2`, `folder-3`, ... if it exists. Two processes never get the same one."""
    _make(folder.parent)
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        _made.append(candidate)
        return candidate
    raise AssertionError("unreachable")


def check_unused(run_dir: Path) -> None:
    """Refuse a directory in which a new fit would replace an earlier one.

    Raises:
        RunDirectoryError: It holds a checkpoint or the results of a fit. The message has the command that resumes it.
    """
    checkpoint = last_checkpoint(run_dir)
    if checkpoint.exists():
        raise RunDirectoryError(
            f"{run_dir} holds a run: its state is in {checkpoint}, and a new fit would replace it. Resume it with the "
            f"same command and --ckpt_path {checkpoint}, choose a new directory with --run_dir, or delete {run_dir}."
        )
    if (run_dir / "adapter.safetensors").exists():
        raise RunDirectoryError(
            f"{run_dir} holds a finished run ({run_dir / 'adapter.safetensors'}), and a new fit would replace it. "
            f"Choose a new directory with --run_dir, or delete {run_dir}."
        )


@contextmanager
def locked(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Keep other processes that ask for the same folder out, by a lock on `folder/.lock`.

    The system releases the lock when the process ends, however it ends, so a killed process leaves none behind. What
    ends by an error before there is a metric, checkpoint or result leaves the folder as it was.

    Args:
        folder: The directory of a run or of a sweep; it is created if it does not exist.
        what: What runs in it, for the message of the other process: "A fit".
        remedy: What the other process can do instead, as a sentence.

    Raises:
        RunDirectoryError: Another process has it.
    """
    before = _entries(folder)
    _make(folder)
    holder = folder / HOLDER
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        by = holder.read_text(encoding="utf-8").strip() if holder.is_file() else "an unknown process"
        raise RunDirectoryError(f"{folder} is in use by {by}. {remedy}") from None
    try:
        holder.write_text(f"{what} of process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    except BaseException:
        _undo(folder, before)
        raise
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _make(folder: Path) -> None:
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _made.extend(reversed(absent))


def _entries(folder: Path) -> dict[Path, bytes | None]:
    """What is in the directory of a run and its `logs`: path -> content of a configuration, None for others."""
    found = sorted([*folder.glob("*"), *folder.glob("logs/*")])
    return {path: path.read_bytes() if path.suffix == ".yaml" and path.is_file() else None for path in found}


def _undo(folder: Path, before: dict[Path, bytes | None]) -> None:
    """Restore a directory to which nothing but `BEGINNINGS` was added, and remove it if it was made for this."""
    new = [path for path in _entries(folder) if path not in before]
    files = [file for path in new for file in (path, *path.rglob("*")) if file.is_file()]
    if not all(any(fnmatch(file.name, pattern) for pattern in BEGINNINGS) for file in files):
        return
    with suppress(OSError):  # the error that led here is the one to tell
        for path in new:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path, content in before.items():
            if content is not None and path.read_bytes() != content:
                path.write_bytes(content)
    for path in reversed(_made):
        with suppress(OSError):  # it is not empty, or gone
            path.rmdir()
