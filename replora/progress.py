"""The one progress bar of all verbs, on the standard error stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Advances a progress bar by `count` and may change its description."""

    def __call__(self, count: int = 1, description: str | None = None) -> None: ...


@contextmanager
def progress_bar(description: str, total: int | None, enabled: bool = True) -> Iterator[Advance]:
    """Show a progress bar for the duration of the context.

    Args:
        description: Text before the bar.
        total: Number of steps; None if it is not known.
        enabled: Whether to show the bar at all.

    Yields:
        A function that advances the bar.
    """
    # Only here: the light verbs of the command line do not wait for rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as bars:
        bar = bars.add_task(description, total=total)

        def advance(count: int = 1, description: str | None = None) -> None:
            bars.update(bar, advance=count, description=description)

        yield advance
