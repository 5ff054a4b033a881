"""The state of each trial, as its files and its lock tell it to any process that sees the directory.

A process that runs a trial holds the lock of the trial, below `.locks` in the directory of the sweep. The system
releases it when the process ends, however it ends. The file beside it, which names the process, then stays behind.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from replora.io import UnreadableFileError
from replora.sweeps.plan import Trial
from replora.sweeps.trial import results_there

State = Literal["done", "running", "failed", "waiting"]
LOCKS = ".locks"
PATIENCE = 0.5  # seconds; whoever asks for the state of a trial holds its lock for an instant


@contextmanager
def claimed(home: Path, trial: Trial, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a trial.

    Args:
        home: Directory of the sweep.
        trial: The trial.
        wait: Whether to wait while another process holds it.

    Yields:
        Whether this process holds it now.
    """
    file = _lock_file(home, trial)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    holder = file.with_suffix(".holder")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        try:
            lock.acquire(timeout=0 if holder.exists() else PATIENCE)
        except Timeout:
            yield False
            return
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield True
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def holder_of(home: Path, trial: Trial) -> str | None:
    """The process that runs a trial, such as `process 12 on node3`; None if no process does."""
    file = _lock_file(home, trial)
    try:
        holder = file.with_suffix(".holder").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    try:
        with FileLock(file).acquire(timeout=0):
            file.with_suffix(".holder").unlink(missing_ok=True)  # it was killed
            return None
    except Timeout:
        return holder or "another process"
    except PermissionError:  # the directory of another user, whose locks cannot be tried
        return f"{holder or 'another process'}, or was when it was killed"


def recorded(home: Path, trial: Trial) -> dict[str, Any] | None:
    """Like `finished`, but also for final trials whose point is not selected yet."""
    try:
        results = results_there(home / trial.folder)
    except UnreadableFileError:  # it runs again
        return None
    return results if "sweep" in results else None


def state_of(home: Path, trial: Trial) -> State:
    """What has become of a trial. One whose process was killed waits: it resumes."""
    if recorded(home, trial) is not None:
        return "done"
    if holder_of(home, trial) is not None:
        return "running"
    return "failed" if (home / trial.folder / "error.txt").is_file() else "waiting"


def _lock_file(home: Path, trial: Trial) -> Path:
    return home / LOCKS / f"{trial.folder}.lock"  # a trial that starts again deletes its own directory
