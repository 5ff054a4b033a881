"""A report as one HTML file with its pictures inside. It needs no script and loads nothing."""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Sequence

from replora.reports.render.document import (
    Answer,
    Block,
    Bullets,
    Contents,
    Heading,
    Paragraph,
    Picture,
    Table,
    anchors,
)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 0.5em; }
.answer { border: 1px solid #999; border-left: 8px solid #777; padding: 0.6em 1em; margin: 0.8em 0; }
.answer p { margin: 0; }
.answer .outcome { font-size: 1.15em; }
.better { border-left-color: #009E73; }
.worse { border-left-color: #D55E00; }
table { border-collapse: collapse; margin: 0.3em 0 0.6em; font-variant-numeric: tabular-nums; font-size: 14px; }
.caption { margin: 1em 0 0.3em; font-size: 14px; color: #444; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25em 0.6em; text-align: left; vertical-align: top; }
td { white-space: nowrap; }
th.number, td.number { text-align: right; }
td.long { white-space: normal; min-width: 16em; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #666; vertical-align: bottom; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; border: 1px solid #ddd; }
figure { margin: 1em 0 1.5em; }
figcaption, details { font-size: 14px; color: #444; }
details { margin: 0 0 1.2em; max-width: 46em; }
details.table { max-width: none; }
summary { cursor: pointer; }
nav ul { padding-left: 1.2em; }
@media (max-width: 500px) {
  body { margin: 1em auto; padding: 0 0.6em; }
  table { font-size: 13px; }
  th:first-child, td:first-child { white-space: normal; overflow-wrap: break-word; border-right: 1px solid #ccc; }
  th:first-child, td:first-child { min-width: 7em; max-width: 7em; }
}
"""
LONG = 40  # characters of a text cell beyond which its column wraps
FIGURE_SPACE, POINT_SPACE = "\u2007", "\u2008"  # as wide as a digit, and as a point
NUMBERS = re.compile(r"([+-]?)([\d,]+)(\.\d+)?")


def page(blocks: Sequence[Block], title: str) -> str:
    """The blocks as an HTML page."""
    names = iter([name for _, name in anchors(blocks)])
    body = "\n".join(
        f'<h{b.level} id="{next(names)}">{html.escape(b.text)}</h{b.level}>'
        if isinstance(b, Heading)
        else _html(b, blocks)
        for b in blocks
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, blocks: Sequence[Block]) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(texts):
            return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"
        case Contents():
            listed = "".join(
                f'<li style="margin-left: {heading.level - 2}em"><a href="#{name}">{html.escape(heading.text)}</a></li>'
                for heading, name in anchors(blocks)
                if heading.level > 1
            )
            return f"<nav><details><summary>Contents</summary><ul>{listed}</ul></details></nav>"
        case Answer(text, detail, sign):
            kind = {1: " better", -1: " worse"}.get(sign, "")
            words = f'<p class="outcome">{html.escape(text)}</p><p>{html.escape(detail)}</p>'
            return f'<div class="answer{kind}">{words}</div>'
        case Picture(file, caption, note):
            data = base64.b64encode(file.read_bytes()).decode("ascii")
            words = html.escape(caption)
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{words}">'
                f"<figcaption>{words}</figcaption></figure>{_note(note)}"
            )
        case Table(_, caption, _, _, note, folded):
            if folded:
                words = f"<p>{html.escape(note)}</p>" if note else ""
                return (
                    f'<details class="table"><summary>{html.escape(caption)}</summary>{words}{_table(block)}</details>'
                )
            return f"{_table(block)}{_note(note)}"
    raise AssertionError(f"{block} has no form in HTML")


def _note(note: str) -> str:
    return f"\n<details><summary>How to read it</summary><p>{html.escape(note)}</p></details>" if note else ""


def _table(table: Table) -> str:
    lengths = [max((len(row[place]) for row in table.rows), default=0) for place in range(len(table.columns))]
    kinds = [
        ' class="number"' if number else ' class="long"' if length > LONG else ""
        for number, length in zip(table.numeric, lengths, strict=True)
    ]
    columns = [
        _aligned([row[place] for row in table.rows]) if number else [row[place] for row in table.rows]
        for place, number in enumerate(table.numeric)
    ]
    head = "".join(f"<th{kind}>{html.escape(cell)}</th>" for kind, cell in zip(kinds, table.columns, strict=True))
    lines = []
    for cells, link in itertools.zip_longest(zip(*columns, strict=True), table.links, fillvalue=""):
        texts = [html.escape(cell) for cell in cells]
        if link:
            texts[0] = f'<a href="{html.escape(link)}">{texts[0]}</a>'
        cells_of = zip(kinds, texts, strict=True)
        lines.append("<tr>" + "".join(f"<td{kind}>{text}</td>" for kind, text in cells_of) + "</tr>")
    caption = "" if table.folded else f'<p class="caption">{html.escape(table.caption)}</p>\n'
    return (
        f'{caption}<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _aligned(cells: Sequence[str]) -> list[str]:
    """Cells padded with spaces as wide as digits, so that their numbers lie above each other at the point."""
    forms = {NUMBERS.sub("#", cell) for cell in cells if cell}
    if len(forms) != 1:
        return list(cells)
    found = [[match.groups("") for match in NUMBERS.finditer(cell)] for cell in cells]
    widths = [
        (max(len(sign + whole) for sign, whole, _ in place), max(len(part) for *_, part in place))
        for place in zip(*filter(None, found), strict=True)
    ]

    def padded(cell: str) -> str:
        sizes = iter(widths)

        def one(match: re.Match[str]) -> str:
            sign, whole, part = match.groups("")
            before, after = next(sizes)
            missing = after - len(part)
            space = (POINT_SPACE if missing and not part else "") + FIGURE_SPACE * (
                missing - (not part and missing > 0)
            )
            return FIGURE_SPACE * (before - len(sign + whole)) + sign + whole + part + space

        return NUMBERS.sub(one, cell)

    return [padded(cell) for cell in cells]
