"""One sweep at a time in a directory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replora.errors import RepLoRAError


class LockedError(RepLoRAError):
    """Another process runs a sweep in the same directory."""


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Keep other processes that ask for the same directory out, by a lock on `home/.lock`.

    The system gives the lock back when the process ends, however it ends, so a killed one leaves none behind.

    Args:
        home: The directory of a sweep; made if absent.

    Raises:
        LockedError: Another process has it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("a+", encoding="utf-8") as file:
        if not _taken(file.fileno()):
            file.seek(0)
            raise LockedError(
                f"A sweep runs in {home} already ({file.read().strip() or 'its process is not known'}). Wait until it "
                "ends, stop it, or choose another directory with --out."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _taken(file: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
