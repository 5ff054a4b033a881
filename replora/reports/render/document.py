"""The blocks of a report, and their form in Markdown and CSV. `page.py` has their form in HTML, `latex.py` in LaTeX."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from replora.io import csv_text, markdown

WORDS = re.compile(r"[^\W\d_]+|%|\d-\d")
WORDS_OF_NUMBERS = {"n", "x", "e", "to", "at", "most", "more", "than"}  # `4.1 (n=3)`, `at most 8 to 9.4 (0.9 x)`


@dataclass(frozen=True)
class Heading:
    """A heading of a level from 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Contents:
    """The list of all headings of levels 2 and 3."""


@dataclass(frozen=True)
class Answer:
    """The outcome of a comparison.

    Attributes:
        text: The outcome with its interval.
        detail: What else belongs to it.
        sign: 1 if the first is significantly better, -1 if it is significantly worse, 0 if neither.
    """

    text: str
    detail: str
    sign: int


@dataclass(frozen=True)
class Table:
    """A table, also written as a CSV file.

    Attributes:
        name: Name of the CSV file, without its suffix.
        caption: What the numbers are, in a few words.
        columns: Headings of the columns.
        rows: Cells as they are shown; an empty cell means that there is no run.
        note: How to read the table, which unfolds.
        folded: Whether the table unfolds as well.
        links: Target of the first cell of each row, relative to the report; empty for none. A table with links is only
            on the HTML page, because runs may lie elsewhere when the report is made again.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False
    links: Sequence[str] = ()

    @property
    def numeric(self) -> list[bool]:
        """Whether each column after the first holds numbers."""
        columns = [[row[place] for row in self.rows if row[place]] for place in range(1, len(self.columns))]
        return [False, *(bool(cells) and all(map(_is_number, cells)) for cells in columns)]


@dataclass(frozen=True)
class Picture:
    """A PNG file in the report's directory.

    Attributes:
        file: Its path.
        caption: What it shows, in a few words.
        note: How to read it, which unfolds.
    """

    file: Path
    caption: str
    note: str = ""


Block = Heading | Paragraph | Bullets | Contents | Answer | Table | Picture


def _is_number(cell: str) -> bool:
    return any(map(str.isdigit, cell)) and set(WORDS.findall(cell)) <= WORDS_OF_NUMBERS


def anchor(text: str) -> str:
    """Name of a heading in links, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def anchors(blocks: Sequence[Block]) -> list[tuple[Heading, str]]:
    """Each heading with its name in links; repeated ones are numbered, as GitHub does it."""
    seen: dict[str, int] = {}
    found = []
    for block in blocks:
        if isinstance(block, Heading):
            name = anchor(block.text)
            seen[name] = seen.get(name, -1) + 1
            found.append((block, f"{name}-{seen[name]}" if seen[name] else name))
    return found


def as_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, with pictures beside it."""
    texts = [_markdown(block, blocks) for block in blocks if not (isinstance(block, Table) and block.links)]
    return "\n\n".join(filter(None, texts)) + "\n"


def _markdown(block: Block, blocks: Sequence[Block]) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {markdown(text)}"
        case Paragraph(text):
            return markdown(text)
        case Bullets(texts):
            return "\n".join(f"- {markdown(text)}" for text in texts)
        case Contents():
            listed = [(heading, name) for heading, name in anchors(blocks) if heading.level > 1]
            return "\n".join(f"{'  ' * (h.level - 2)}- [{markdown(h.text)}](#{name})" for h, name in listed)
        case Answer(text, detail, _):
            return f"> {markdown(text)}\n>\n> {markdown(detail)}"
        case Picture(file, caption, note):
            return f"![{markdown(caption)}]({quote(file.name)})\n\n{markdown(caption)}{_folded_note(note)}"
        case Table(_, caption, columns, rows, note, folded):
            rule = "|" + "|".join("---:" if number else "---" for number in block.numeric) + "|"
            text = "\n".join([_row(columns), rule, *map(_row, rows)])
            if folded:
                return f"<details><summary>{html.escape(caption)}</summary>\n\n{markdown(note)}\n\n{text}\n\n</details>"
            return f"{markdown(caption)}\n\n{text}{_folded_note(note)}"


def _folded_note(note: str) -> str:
    return f"\n\n<details><summary>How to read it</summary>\n\n{markdown(note)}\n\n</details>" if note else ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"


def as_csv(table: Table) -> str:
    """The cells of a table."""
    return csv_text([table.columns, *table.rows])
