"""CSV files of paths, labels and splits."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import get_args

from replora.datasets.common.labeled_files import FileKind, FileSplit, FileTableError, split_of_name
from replora.datasets.common.paths import listed_path, missing_files
from replora.datasets.common.text_files import read_text
from replora.datasets.errors import ListFileError
from replora.errors import nearest

log = logging.getLogger(__name__)

Named = dict[PurePosixPath, tuple[str, FileSplit | None]]  # path -> class, split

SEPARATORS = (",", ";", "\t")
# Meaning of a column -> accepted names, without regard to case; the meaning itself comes first.
COLUMNS = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "relative_path", "rel_path"),
        *("image", "image_path", "image_name", "image_file", "img", "img_path", "img_name"),
        *("video", "video_path", "video_name", "video_file", "clip"),
    ),
    "label": ("label", "class", "class_name", "classname", "category", "target", "label_name"),
    "split": ("split", "subset", "set", "partition", "phase", "usage", "fold", "dataset", "data_set"),
}


def read_csv(file: Path, kind: FileKind) -> Named:
    """Read a list of files with their classes and, optionally, splits.

    Args:
        file: Text file with columns separated by `,`, `;` or tabs. The first line names the columns (`COLUMNS`).
        kind: Kind of the listed files.

    Raises:
        FileTableError: A column is missing or ambiguous, or a line has no label, an unknown split, or a repeated path.
        ListFileError: The file is not text, a path leaves the data, or a listed file is missing.
    """
    text = read_text(file, ListFileError)
    try:
        return _read(file, text, kind)
    except csv.Error as error:
        raise ListFileError(f"{file} cannot be read as a CSV file: {error}.") from error


def _read(file: Path, text: str, kind: FileKind) -> Named:
    separator, columns, headed = _first_line(text, file.parent)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = []
    for cells in reader:
        if any(cell.strip() for cell in cells):
            rows.append((reader.line_num, [cell.strip() for cell in cells]))
    rows = rows[headed:]
    place = _meanings(file, columns, [cells for _, cells in rows])
    named: Named = {}
    for number, cells in rows:
        where = f"{file}, line {number}"
        if any(cells[len(columns) :]):
            raise FileTableError(
                f"{where} has {len(cells)} cells, but the first line has {len(columns)}. Quote each cell that "
                f"contains the separator {separator!r}."
            )
        values = {meaning: cells[at] if at < len(cells) else "" for meaning, at in place.items()}
        path = listed_path(values["path"], where, file.parent)
        label, split = values["label"], values.get("split", "")
        if not label:
            raise FileTableError(f"{where}: {path} has no label.")
        if split and split_of_name(split) is None:
            raise FileTableError(f"{where}: there is no split {split!r}. {nearest(split, get_args(FileSplit))}")
        if path in named:
            raise FileTableError(f"{where}: {path} is listed twice. Keep one label and one split for each path.")
        named[path] = (label, split_of_name(split) if split else None)
    if not named:
        raise FileTableError(f"{file} lists no {kind.name}.")
    if missing := missing_files(file.parent, named, kind.folders):
        listed = ", ".join(map(str, missing[:3]))
        raise ListFileError(
            f"{file}: {len(missing):,} of {len(named):,} {kind.name}s are missing, the first: {listed}. Paths "
            f"are relative to {file.parent.resolve()}."
        )
    partly = Counter(split is None for _, split in named.values())
    if len(partly) == 2:
        raise FileTableError(
            f"{file}: {partly[True]:,} of {len(named):,} {kind.name}s have no split, but the others do. Fill the "
            f"column {columns[place['split']]!r} in every line, or remove it."
        )
    return named


def _first_line(text: str, home: Path) -> tuple[str, list[str], bool]:
    """The separator, the names of the columns, and whether the first line holds them."""
    best: tuple[int, str, list[str]] | None = None
    for separator in SEPARATORS:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        cells = [cell.strip() for cell in next((line for line in lines if any(map(str.strip, line))), [])]
        known = sum(any(_plain(cell) in COLUMNS[meaning] for cell in cells) for meaning in ("path", "label"))
        # Without a header, the first line names a file and its label. (*) Path.exists raises for invalid names.
        if not known and len(cells) in (2, 3) and cells[0] and os.path.exists(home / cells[0]):  # noqa: PTH110 (*)
            return separator, ["path", "label", "split"][: len(cells)], False
        if best is None or known > best[0]:
            best = known, separator, cells
    assert best is not None
    return best[1], best[2], True


def _meanings(file: Path, columns: list[str], rows: list[list[str]]) -> dict[str, int]:
    """Meaning -> number of its column."""
    place: dict[str, int] = {}
    for meaning, names in COLUMNS.items():
        found = [i for i, column in enumerate(columns) if _plain(column) in names]
        if own := [i for i in found if _plain(columns[i]) == meaning]:
            found = own
        elif meaning == "split":  # a column `set` may be about something else
            found = [i for i in found if any(split_of_name(cells[i]) for cells in rows if i < len(cells))]
        if len(found) > 1:
            raise FileTableError(
                f"{file} has {len(found)} columns that may be the {meaning}: "
                f"{', '.join(repr(columns[i]) for i in found)}. Rename the right one to {meaning!r}."
            )
        if found:
            place[meaning] = found[0]
        elif meaning != "split":
            raise FileTableError(
                f"{file} has no column {meaning!r}; its first line names {', '.join(map(repr, columns)) or 'none'}. "
                f"{nearest(meaning, columns) if columns else ''} The first line must be: path,label"
            )
    if any(columns[at] != meaning for meaning, at in place.items()):
        log.warning("%s: %s", file, ", ".join(f"{columns[at]!r} is the {meaning}" for meaning, at in place.items()))
    return place


def _plain(column: str) -> str:
    return column.casefold().replace(" ", "_").replace("-", "_")
