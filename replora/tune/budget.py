"""A time budget: how it is written, what is left of it, and an alarm that ends a fit."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from replora.errors import RepLoRAError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class OutOfTimeError(BaseException):
    """The alarm went off inside a fit. No `Exception`, as the fit has not failed."""


def parse_budget(text: str) -> float:
    """`90s`, `20m`, `1.5h`, `1h30m` -> seconds.

    Raises:
        RepLoRAError: It is of another form, or no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    whole = re.fullmatch(r"(\d+(\.\d+)?\s*[smhd]\s*)+", text.strip().lower())
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not whole or seconds <= 0:
        raise RepLoRAError(f"--time_budget {text} is no time: write 90s, 20m, 1.5h or 1h30m.")
    return seconds


class Signals:
    """Remembers Ctrl-C and SIGTERM, as a context manager.

    The exception that they raise may be lost inside a library, in a destructor for example; `stop` raises it again
    before anything else begins.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Signals:
        heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        self.former = {number: signal.signal(number, self._raise) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _raise(self, number: int, _: object) -> None:
        self.number = number
        raise KeyboardInterrupt(number)

    def stop(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self.number is not None:
            raise KeyboardInterrupt(self.number)


class Clock:
    """What is left of a budget, from the moment that it is made.

    Args:
        budget: Seconds; None for no limit.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.begin = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.begin

    def left(self, reserved: float = 0.0) -> float:
        """Seconds that are left beside those reserved; infinity without a budget."""
        return float("inf") if self.budget is None else self.budget - self.spent - reserved

    @contextmanager
    def alarm(self, reserved: float) -> Iterator[None]:
        """Raise `OutOfTimeError` in this, the main thread, when nothing is left beside the seconds reserved."""
        if self.budget is None:
            yield
            return

        def ring(*_: object) -> None:
            raise OutOfTimeError

        former = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, self.left(reserved)))
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
