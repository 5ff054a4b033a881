"""Directories of runs: unique when new, never shared by two runs, locked while a verb writes in them, and searched."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from replora.errors import RepLoRAError

LOCK = ".lock"
HOLDER = ".lock.holder"


class RunDirectoryError(RepLoRAError):
    """A run directory is in use, or holds another run."""


def last_checkpoint(run_dir: Path) -> Path:
    """Where a fit keeps its newest state."""
    return run_dir / "checkpoints" / "last.ckpt"


def create_unique(folder: Path) -> Path:
    """Create `folder`, or `folder-2`, `folder-3`, ... if it exists. Two processes never get the same one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
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
def left_as_found(
    run_dir: Path, verb: str, fresh: bool, started: Callable[[], bool], lock: AbstractContextManager[None]
) -> Iterator[None]:
    """Hold a lock, and remove what a verb has written if it ends in an error before it starts.

    That is its configuration, and empty logs. A process that the lock keeps out removes nothing.

    Args:
        run_dir: Directory of the run, which need not exist.
        verb: Name of the verb.
        fresh: Whether `create_unique` has just made the directory, and the one in which it lies if that is empty.
        started: Whether the verb has begun its work, after which everything stays. In the directory of an earlier run,
            whose record tells nothing of this verb, a log of metrics tells.
        lock: That of the directory (`locked`).

    Raises:
        RunDirectoryError: Another process has the lock.
    """
    before = {run_dir, *run_dir.rglob("*")} if run_dir.exists() and not fresh else set()
    file = run_dir / f"{verb}.yaml"
    former = file.read_bytes() if file.is_file() else None
    recorded = (run_dir / "results.json").exists()
    parents = [run_dir.parent] if fresh else [folder for folder in run_dir.parents if not folder.exists()]
    with lock:
        try:
            yield
        except Exception:
            new = sorted({run_dir, *run_dir.rglob("*")} - before, reverse=True)  # a folder after what lies in it
            own = {f"{verb}.yaml", "logs", LOCK, HOLDER}
            others = [path for path in new if path.is_file() and path.relative_to(run_dir).parts[0] not in own]
            begun = any(path.name == "metrics.csv" for path in new) if recorded else started()
            if not begun and not others:
                for path in new:
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
                if former is not None:
                    file.write_bytes(former)
                for folder in parents:
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()
            raise


@contextmanager
def locked(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Keep other processes that ask for the same folder out, by a lock on `folder/.lock`.

    The system releases the lock when the process ends, however it ends, so a killed process leaves none behind.

    Args:
        folder: The directory of a run or of a sweep; it is created if it does not exist.
        what: What runs in it, for the message of the other process: "A fit".
        remedy: What the other process can do instead, as a sentence.

    Raises:
        RunDirectoryError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked_workplace(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """`locked` for a directory of many runs, which goes again if a command ends in an error before it holds a file.

    Args:
        folder: The directory; it is created if it does not exist. If it was there before, it is emptied and stays.
        what: What runs in it, for the message of the other process: "A sweep".
        remedy: What the other process can do instead, as a sentence.

    Raises:
        RunDirectoryError: Another process has it.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    with locked(folder, what, remedy):  # first: a process that it keeps out removes nothing
        try:
            yield
        except Exception:
            if not any({*files} - {LOCK, HOLDER} for _, _, files in os.walk(folder)):
                for path in (*sorted(folder.rglob("*"), reverse=True), *made):
                    with suppress(OSError):  # another process may begin there in the same moment
                        if path.is_dir():
                            path.rmdir()
                        elif path.name in (LOCK, HOLDER):
                            path.unlink()
            raise


def files_named(name: str, folder: Path) -> Iterator[Path]:
    """What has one name in a folder and all below it, while other processes write and delete there.

    `Path.rglob` of Python 3.11 ends in an error at a folder that is deleted meanwhile. A folder of that name is found
    too, so that whoever reads it can say that it is no file.
    """
    for parent, folders, files in os.walk(folder):
        if name in folders or name in files:
            yield Path(parent, name)
