"""Annotation files of the vision-and-language tasks, with errors that name file and record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replora.datasets.common.packed import Packed
from replora.datasets.common.text_files import parse_json_lines, parse_json_or_lines, read_text
from replora.datasets.errors import DatasetNotFoundError, RecordError
from replora.datasets.vision_language.tasks import VLRecord, pack_records
from replora.errors import RepLoRAError


def read_json(file: Path, layout: str) -> Any:
    """The content of a JSON file, or a list for a file with one JSON object per line. `layout` is for the error.

    Raises:
        DatasetNotFoundError: The file is not found.
        RecordError: The file is corrupt.
    """
    if not file.is_file():
        raise DatasetNotFoundError(f"There is no {file}. The data folder (--data.root) must contain {layout}")
    try:
        text = read_text(file, RecordError)
        return parse_json_lines(text) if file.suffix == ".jsonl" else parse_json_or_lines(text)
    except RecordError:
        raise
    except (OSError, ValueError) as error:
        line, found, reason = str(error).partition(": ")
        where = f"{file}, {line}" if found and line.startswith("line ") else str(file)
        raise RecordError(
            f"{where} is corrupt: {reason if where != str(file) else error}. Copy the file again."
        ) from error


def read_records(file: Path, layout: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records of a file, each of which has `fields`.

    Raises:
        DatasetNotFoundError: There is no such file.
        RecordError: The file is corrupt, or a record lacks a field.
    """
    records = read_json(file, layout)
    if not isinstance(records, list):
        raise RecordError(f"{file} holds a {type(records).__name__}, not a list of records.")
    for number, record in enumerate(records):
        missing = [name for name in fields if not isinstance(record, dict) or name not in record]
        if missing:
            raise RecordError(f"{file}, record {number}: {', '.join(map(repr, missing))} is missing in {record!r:.200}")
    return records


@contextmanager
def reading(file: Path, number: int, record: Any) -> Iterator[None]:
    """Turn an error of the body into one that names file and record. Raises RecordError if the record is invalid."""
    try:
        yield
    except RepLoRAError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise RecordError(f"{file}, record {number}: {reason} in {record!r:.200}") from error


def build(found: Iterable[tuple[Path, int, Any]], make: Callable[[int, Any], list[VLRecord]]) -> Packed[VLRecord]:
    """The records that `make` builds from an index and an entry, for entries with their file and number in it."""

    def records() -> Iterator[VLRecord]:
        count = 0
        for file, number, item in found:
            with reading(file, number, item):
                made = make(count, item)
            count += len(made)
            yield from made

    return pack_records(records())


def words(record: Mapping[str, Any], name: str) -> str:
    """A field that must be a string."""
    if not isinstance(record[name], str):
        raise TypeError(f"{name!r} is {record[name]!r:.50}, not a string,")
    return str(record[name])


def scores(record: Mapping[str, Any], name: str = "label") -> dict[str, float]:
    """A field that must map answers to scores in [0, 1]."""
    found = {str(answer): float(score) for answer, score in record[name].items()}
    if wrong := [score for score in found.values() if not 0 <= score <= 1]:
        raise ValueError(f"{name!r} has the score {wrong[0]}, which is not in [0, 1],")
    return found
