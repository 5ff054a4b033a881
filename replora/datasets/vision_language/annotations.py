"""Reading the annotation files of the vision-and-language tasks, with errors that name file and record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replora.datasets.common.text_files import parse_json_lines, parse_json_or_lines, read_text
from replora.datasets.errors import DatasetNotFoundError, RecordError
from replora.errors import RepLoRAError


def read_json(file: Path, layout: str) -> Any:
    """The content of a JSON file, or of a file of one JSON object a line (`.jsonl`) as a list.

    Args:
        file: The file.
        layout: What the data's folder must look like, for the error.

    Raises:
        DatasetNotFoundError: There is no such file.
        RecordError: It is damaged.
    """
    if not file.is_file():
        raise DatasetNotFoundError(f"There is no {file}. The folder of the data (--data.root) holds {layout}")
    try:
        text = read_text(file, RecordError)
        return parse_json_lines(text) if file.suffix == ".jsonl" else parse_json_or_lines(text)
    except RecordError:
        raise
    except (OSError, ValueError) as error:
        line, found, reason = str(error).partition(": ")
        where = f"{file}, {line}" if found and line.startswith("line ") else str(file)
        raise RecordError(
            f"{where} is damaged: {reason if where != str(file) else error}. Copy the file again."
        ) from error


def read_records(file: Path, layout: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records of a file, each of which has `fields`.

    Raises:
        DatasetNotFoundError: There is no such file.
        RecordError: It is damaged, or a record lacks a field.
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
    """Around what makes something of a record.

    Raises:
        RecordError: That failed; it names file and record.
    """
    try:
        yield
    except RepLoRAError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise RecordError(f"{file}, record {number}: {reason} in {record!r:.200}") from error


def words(record: Mapping[str, Any], name: str) -> str:
    """A field that must be a string."""
    if not isinstance(record[name], str):
        raise TypeError(f"{name!r} is {record[name]!r:.50}, not a string,")
    return str(record[name])


def scores(record: Mapping[str, Any], name: str = "label") -> dict[str, float]:
    """A field that must be answers with a score in [0, 1] each."""
    found = {str(answer): float(score) for answer, score in record[name].items()}
    if wrong := [score for score in found.values() if not 0 <= score <= 1]:
        raise ValueError(f"{name!r} has the score {wrong[0]}, which is not in [0, 1],")
    return found
