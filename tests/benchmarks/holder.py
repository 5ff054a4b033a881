"""What a process holds for a while; alone in this file, so that a new process starts fast."""

from __future__ import annotations

import multiprocessing
import time


def hold(megabytes: int, child: int) -> None:
    """In this process, and `child` of them in one that it starts, both at once."""
    held = b"x" * (megabytes * 10**6)
    if child:
        other = multiprocessing.get_context("spawn").Process(target=hold, args=(child, 0))
        other.start()
        other.join()
    time.sleep(0.6)
    assert held
