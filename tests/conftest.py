"""Fixtures and checks that every test shares."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Before torch is imported, and inherited by the processes that tests start: tests run beside each other, and the last
# digits of a sum do not depend on the number of cores.
os.environ["OMP_NUM_THREADS"] = "1"

# What Lightning's launcher of processes writes into the environment of the process that calls it.
LAUNCHER_VARIABLES = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True, scope="session")
def interrupts_arrive() -> None:
    """A shell without job control lets what it starts in the background, and all it starts in turn, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A function that imports a file of benchmarks/ as running it would."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.fixture(autouse=True)
def launcher_leaves_nothing_behind() -> Iterator[None]:
    """A later run with several processes would take them for its own, and wait for a process that nobody starts."""
    yield
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
