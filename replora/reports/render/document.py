"""Writes a list of blocks as Markdown with pictures and CSV files beside it, and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from replora.io import csv_text, markdown, replace_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 0.5em; }
table { border-collapse: collapse; margin: 0.6em 0 1.2em; font-variant-numeric: tabular-nums; font-size: 14px; }
caption { text-align: left; font-weight: 600; padding: 0.3em 0; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25em 0.6em; text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #666; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; border: 1px solid #ddd; }
figure { margin: 1em 0 1.5em; }
figcaption { font-size: 14px; color: #444; }
code { background: #f2f2f2; padding: 0 0.2em; }
"""


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
class Table:
    """A table, also written as a CSV file.

    Attributes:
        name: Name of the CSV file, without its suffix.
        caption: Description of the numbers.
        columns: Headings of the columns.
        rows: Cells as they are shown; an empty cell means that there is no run.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file in the report's directory.

    Attributes:
        file: Its path.
        caption: Description of the picture.
    """

    file: Path
    caption: str


Block = Heading | Paragraph | Table | Picture


def write_document(blocks: Sequence[Block], folder: Path, title: str) -> list[Path]:
    """Write `report.md`, `report.html` and a CSV file for each table.

    Args:
        blocks: What to write, in order.
        folder: Directory to write to; it already holds the pictures.
        title: Title of the HTML page.

    Returns:
        The files.
    """
    files = [folder / "report.md", folder / "report.html"]
    replace_text(files[0], "\n\n".join(_markdown(block) for block in blocks) + "\n")
    replace_text(files[1], _page(blocks, title))
    for block in blocks:
        if isinstance(block, Table):
            files.append(folder / f"{block.name}.csv")
            replace_text(files[-1], _csv(block))
    return files


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {markdown(text)}"
        case Paragraph(text):
            return markdown(text)
        case Picture(file, caption):
            return f"![{markdown(caption)}]({quote(file.name)})\n\n{markdown(caption)}"
        case Table(_, caption, columns, rows):
            lines = [_row(columns), "|---" + "|---:" * (len(columns) - 1) + "|", *map(_row, rows)]
            return f"**{markdown(caption)}**\n\n" + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown(cell) for cell in cells) + " |"


def _page(blocks: Sequence[Block], title: str) -> str:
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Picture(file, caption):
            data = base64.b64encode(file.read_bytes()).decode("ascii")
            words = html.escape(caption)
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{words}">'
                f"<figcaption>{words}</figcaption></figure>"
            )
        case Table(_, caption, columns, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in columns)
            lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
            return (
                f'<div class="wide"><table>\n<caption>{html.escape(caption)}</caption>\n'
                f"<thead><tr>{head}</tr></thead>\n<tbody>\n"
                + "\n".join(f"<tr>{line}</tr>" for line in lines)
                + "\n</tbody></table></div>"
            )


def _csv(table: Table) -> str:
    return csv_text([table.columns, *table.rows])
