"""Reading of text and JSON files in any Unicode encoding."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replora.datasets.common.files import printable
from replora.errors import RepLoRAError

# UTF-32 comes first, because its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# Encoding -> a pattern of its texts: kana; two Chinese characters in a row, which Western text does not give; anything.
_LETTERS = {"shift_jis": "[\u3040-\u30ff]", "gb18030": "[\u4e00-\u9fff]{2}", "cp1252": ""}


def read_text(file: Path, error: type[RepLoRAError]) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. All line ends become newlines.

    Args:
        file: File to read.
        error: Type of the error to raise if the file is not such a text.

    Raises:
        OSError: The file cannot be read.
    """
    content = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as wrong:
        guess = _guess(content)
        found = f"; it looks like {guess}: iconv -f {guess} -t UTF-8" if guess else ""
        raise error(f"{printable(file)} is not UTF-8 text ({wrong}){found}. Save it as UTF-8.") from wrong


def _guess(content: bytes) -> str | None:
    """A likely encoding that is not Unicode, or None for a binary file."""
    if b"\0" in content[:4096]:
        return None
    for name, letters in _LETTERS.items():
        try:
            if re.search(letters, content.decode(name)):
                return name
        except UnicodeDecodeError:
            continue
    return None


def read_json(
    file: Path, error: type[RepLoRAError], remedy: str = "", parse: Callable[[str], Any] | None = None
) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: The file cannot be read.
        error: The file is not JSON; the message ends with `remedy`.
    """
    text = read_text(file, error)
    try:
        return (parse or parse_json)(text)
    except ValueError as wrong:
        raise error(f"{file} is not JSON ({wrong}). {remedy}".rstrip()) from wrong


def parse_json(text: str, unique: bool = False) -> Any:
    """The value of a JSON text. `unique` forbids repeated keys of a table, of which Python keeps the last value.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or has thousands of digits or half a character.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if re.search(r"\\u[dD][89abAB]", text) or re.search(r"\\u[dD][c-fC-F]", text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(r"a string contains half of a character, a lone \ud800 to \udfff") from None
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"a table has {twice!r} twice")
    return table


def parse_json_or_lines(text: str) -> Any:
    """The value of a JSON text, or the list of values of a text with one JSON value per line.

    Raises:
        ValueError: The text is neither.
    """
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        try:
            return parse_json_lines(text)
        except ValueError:
            raise error from None


def parse_json_lines(text: str) -> list[Any]:
    """The values of a text with one JSON value per line. Blank lines are ignored.

    Raises:
        ValueError: A line is not JSON; the message names it.
    """
    values = []
    # str.splitlines would also split at U+2028, U+0085 and others, which may occur inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values.append(parse_json(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return values
