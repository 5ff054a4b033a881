"""What several threads that use one model share or must not share. A copy of a model begins with none of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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


class Passes:
    """The forward passes that run, in all threads: merging waits for those of other threads, and new ones for it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running: dict[int, int] = {}  # thread -> passes inside one another
        self._changing: int | None = None

    def begin(self) -> None:
        """A pass begins in this thread."""
        here = threading.get_ident()
        with self._condition:
            if here not in self._running:
                self._condition.wait_for(lambda: self._changing in (None, here))
            self._running[here] = self._running.get(here, 0) + 1

    def end(self) -> None:
        """It is over, or has failed before it began."""
        here = threading.get_ident()
        with self._condition:
            if self._running.get(here, 0) > 1:
                self._running[here] -= 1
            else:
                self._running.pop(here, None)
            if self._changing is not None:
                self._condition.notify_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other thread runs a pass inside. A thread that is in one itself does not wait: nor could others for it."""
        here = threading.get_ident()
        if here in self._running or self._changing == here:
            yield
            return
        with self._condition:
            self._condition.wait_for(lambda: self._changing is None)
            self._changing = here
        try:
            with self._condition:
                self._condition.wait_for(lambda: not self._running)
            yield
        finally:
            with self._condition:
                self._changing = None
                self._condition.notify_all()

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
        disabled: How many such blocks are open, in all threads together.
        layers: The layers of the `peft` library that the first of them has switched off, for all threads.
    """

    def __init__(self) -> None:
        self.disabled = 0
        self.layers: list[Any] = []
        self._here = _Depth()

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

    def __reduce__(self) -> Any:
        return type(self), ()


def in_backward() -> bool:
    """Whether the code runs inside a backward pass, as what gradient checkpointing computes again."""
    return torch._C._current_graph_task_id() != -1


def in_autograd_thread() -> bool:
    """Whether that pass runs in a thread of autograd, as on a GPU, and not in the one that called `backward`."""
    return in_backward() and isinstance(threading.current_thread(), threading._DummyThread)
