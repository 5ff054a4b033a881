"""What several threads that use one model share or must not share. A copy of a model begins with none of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch


class PerThread(threading.local):
    """Attributes of which each thread has its own."""

    def __reduce__(self) -> Any:
        return type(self), ()


class Lock:
    """A reentrant lock in an object that can be copied and pickled."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> Any:
        return type(self), ()


class MergedBlocks:
    """The open `with replora.merged(model)`, in all threads together.

    Attributes:
        count: How many there are.
        stays: Whether the adapter stays merged after the last of them, because it was before the first.
    """

    count = 0
    stays = False

    def __reduce__(self) -> Any:
        return type(self), ()


class _Depth(PerThread):
    disabled = 0


class Switch:
    """Whether an adapter is switched on: not in the threads that are inside `replora.disabled`.

    Attributes:
        lock: Held while merging and while switching off.
        disabled: How many such blocks are open, in all threads together.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.disabled = 0
        self._here = _Depth()
        self._version = 0  # odd while the weights change

    def enter(self) -> None:
        """A block of `disabled` begins in this thread. The caller holds the adapter's lock."""
        self.disabled += 1
        self._here.disabled += 1

    def leave(self) -> None:
        """It ends."""
        self.disabled -= 1
        self._here.disabled -= 1

    @property
    def on(self) -> bool:
        if not self.disabled:
            return True
        return not (self._here.disabled or (not torch.compiler.is_compiling() and in_autograd_thread()))

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, weights change from frozen to merged or back. The caller holds the lock."""
        self._version += 1
        try:
            yield
        finally:
            self._version += 1

    def steadily(self, compute: Callable[[], Any]) -> Any:
        """What `compute` gives while no weights change, in whichever thread: again if they did meanwhile."""
        if torch.compiler.is_compiling():
            return compute()
        while True:
            before = self._version
            if before % 2:
                with self.lock:
                    continue
            result = compute()
            if self._version == before:
                return result

    def __reduce__(self) -> Any:
        return type(self), ()


def in_backward() -> bool:
    """Whether the code runs inside a backward pass, as what gradient checkpointing computes again."""
    return torch._C._current_graph_task_id() != -1


def in_autograd_thread() -> bool:
    """Whether that pass runs in a thread of autograd, as on a GPU, and not in the one that called `backward`."""
    return in_backward() and isinstance(threading.current_thread(), threading._DummyThread)
