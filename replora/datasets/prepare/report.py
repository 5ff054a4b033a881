"""What every `replora-cli prepare` verb found, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table


class Report(Protocol):
    """What was found of one task, data set or file."""

    @property
    def name(self) -> str: ...

    @property
    def problems(self) -> list[str]:
        """What makes it unusable, each with its reason."""

    @property
    def notes(self) -> list[str]:
        """What is worth knowing all the same."""

    @property
    def state(self) -> str:
        """The verdict, in a word."""

    def columns(self) -> dict[str, str]:
        """Heading -> cell of its row in the table, in order; the same headings for all reports of a verb."""


def print_reports(reports: Sequence[Report], heading: str, remedy: str = "") -> None:
    """Print a table of what was found, the notes, everything that is wrong, and what to do about it.

    Args:
        reports: One for each row.
        heading: Heading of the first column, which holds their names.
        remedy: What to do, with the commands to copy.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column(heading)
    for name in reports[0].columns() if reports else ():
        table.add_column(name, justify="left" if name == "track" else "right")
    table.add_column("state")
    for report in reports:
        table.add_row(report.name, *report.columns().values(), report.state)
    # Wide enough for every row, whatever the terminal: a cut table cannot be copied into an issue.
    Console(width=max(100, Console().width), markup=False, highlight=False, soft_wrap=True).print(table)
    for kind in ("note", "problem"):
        for report in reports:
            for text in report.notes if kind == "note" else report.problems:
                print(f"{kind}: {report.name}: {text}")
    if remedy:
        print(remedy)


def counts(sizes: dict[str, int], splits: Sequence[str]) -> dict[str, str]:
    """Split -> its size for a table, `-` for one that is absent."""
    return {split: f"{sizes[split]:,}" if split in sizes else "-" for split in splits}
