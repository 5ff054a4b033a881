"""The one progress bar of all verbs, on the standard error stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 60  # smallest number of columns of a terminal that shows more than the counts


class Advance(Protocol):
    """Advances a progress bar by `count` and may change its description."""

    def __call__(self, count: int = 1, description: str | None = None) -> None: ...


@contextmanager
def progress_bar(
    description: str, total: int | None, enabled: bool = True, done: int = 0, transient: bool = False
) -> Iterator[Advance]:
    """Show a progress bar for the duration of the context, in one line of any terminal.

    A log gets no bar, but one line for each description.

    Args:
        description: Text before the bar.
        total: Number of steps; None if it is not known.
        enabled: Whether to show the bar at all.
        done: Number of steps that are done already.
        transient: Whether the bar vanishes at the end; it leaves nothing in a log.

    Yields:
        A function that advances the bar.
    """
    if not enabled or not is_terminal():
        yield _lines(description) if enabled and not transient else _nothing
        return
    # Only here: the light verbs of the command line do not wait for rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    console = Console(stderr=True)
    whole = Column(no_wrap=True, overflow="ellipsis")  # never a second line
    counted = [
        TextColumn("{task.description}", markup=False, table_column=whole),
        MofNCompleteColumn(table_column=whole),
    ]
    drawn = [BarColumn(20, table_column=whole), TimeElapsedColumn(table_column=whole)]
    wide = console.width >= WIDE
    columns = [counted[0], drawn[0], counted[1], drawn[1]] if wide else counted
    room = console.width - 2 * len(str(total or 0)) - (32 if wide else 2)

    def fitting(text: str) -> str:
        return text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"

    with Progress(*columns, console=console, transient=transient) as bars:
        bar = bars.add_task(fitting(description), total=total, completed=done)

        def advance(count: int = 1, description: str | None = None) -> None:
            bars.update(bar, advance=count, description=None if description is None else fitting(description))

        yield advance


def table_console() -> Console:
    """The standard output stream for a table of rich: colored on a terminal alone.

    It is wide enough for every row, whatever the terminal: a cut table cannot be copied into an issue.
    """
    # As above.
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(100, Console().width)
    return Console(width=width, force_terminal=terminal, markup=False, highlight=False, soft_wrap=True)


def _lines(first: str) -> Advance:
    """What a log gets: each description once."""
    written = {""}

    def advance(count: int = 1, description: str | None = None) -> None:  # noqa: ARG001
        text = description or ""
        if text not in written:
            written.add(text)
            print(text, file=sys.stderr)

    advance(description=first)
    return advance


def _nothing(count: int = 1, description: str | None = None) -> None:
    """The bar that is not shown."""


def is_terminal() -> bool:
    """Whether a person looks at the standard error stream: a log gets no bars and no colors, whatever is forced."""
    return sys.stderr is not None and sys.stderr.isatty()
