"""Reading the annotation files of the vision-and-language tasks, with errors that name file and record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from replora.datasets.errors import DatasetNotFoundError, RecordError


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
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix != ".jsonl":
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise RecordError(f"{file} is damaged: {error}") from error


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
