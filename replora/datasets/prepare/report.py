"""What every `replora-cli prepare` verb found, and how it is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.table import Table

from replora.errors import visible
from replora.progress import table_console

Labeled = list[tuple[Path, str, str]]  # file, class and split
NAMED = 20  # classes or files that a line names


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
    def unreadable(self) -> list[str]:
        """Every file that cannot be read, with its reason."""

    @property
    def state(self) -> str:
        """The verdict, in a word."""

    def columns(self) -> dict[str, str]:
        """Heading -> cell of its row in the table, in order; the same headings for all reports of a verb."""


@dataclass
class DataReport:
    """What was found of one data set of images or videos.

    Attributes:
        name: Name of the data set.
        classes: How many it has.
        sizes: Number of files of each split.
        problems: What makes it unusable, each with its reason.
        notes: What is worth knowing all the same.
        unreadable: Every file that cannot be read, with its reason.
    """

    name: str
    classes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The verdict."""
        return "corrupt" if self.problems else "complete"

    def columns(self) -> dict[str, str]:
        """Heading -> cell of the table."""
        return {"classes": str(self.classes or "-"), **counts(self.sizes, ("train", "val", "test"))}

    def describe_files(self, files: Labeled) -> None:
        """Count the files of each split and class."""
        of_split = Counter(split for _, _, split in files)
        self.sizes = {split: of_split[split] for split in ("train", "val", "test") if split in of_split}
        found = Counter(name for _, name, _ in files).most_common()
        self.classes = len(found)
        listed = [f"{name} {count:,}" for name, count in found]
        if len(listed) > NAMED:
            listed = [*listed[: NAMED // 2], "...", *listed[-NAMED // 2 :]]
        smallest, count = found[-1]
        splits = Counter(split for _, name, split in files if name == smallest)
        self.notes.append(
            f"files per class: {', '.join(listed)}; the smallest is {smallest} with {count:,} "
            f"({', '.join(f'{splits[split]:,} {split}' for split in self.sizes)})"
        )

    def name_unreadable(self, count: int, words: str) -> None:
        """Say how many of `count` files cannot be read, and which.

        Args:
            count: Number of files.
            words: What they cannot, such as `images cannot be read`.
        """
        if self.unreadable:
            more = len(self.unreadable) - NAMED
            listed = "\n  ".join(self.unreadable[:NAMED]) + (f"\n  and {more:,} more" if more > 0 else "")
            self.problems.append(
                f"{len(self.unreadable):,} of {count:,} {words}:\n  {listed}\n  A run stops at the first "
                "one; --data.skip_corrupt true leaves them out and counts them."
            )


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
    table_console().print(table)
    for kind in ("note", "problem"):
        for report in reports:
            for text in report.notes if kind == "note" else report.problems:
                print(visible(f"{kind}: {report.name}: {text}"))
    if remedy:
        print(remedy)


def counts(sizes: dict[str, int], splits: Sequence[str]) -> dict[str, str]:
    """Split -> its size for a table, `-` for one that is absent."""
    return {split: f"{sizes[split]:,}" if split in sizes else "-" for split in splits}
