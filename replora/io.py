"""Files of every kind: what may be overwritten, atomic writing with the modes of the umask, reading, and text in cells.

Readers of a file or folder that is replaced see the old version or the new one, never a part.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError


class OutputError(RepLoRAError):
    """An output exists, is an input of the same call, lies below a file, or has no suffix of a known format."""


class UnreadableFileError(RepLoRAError):
    """The content of a file is not what its format asks for."""


# --- what may be written


def check_output(
    path: Path,
    overwrite: bool | None = False,
    inputs: Iterable[Path] = (),
    formats: Sequence[str] = (),
    folder: bool = False,
    is_own: Callable[[Path], bool] = lambda _: False,
) -> None:
    """Refuse an output that would replace something else: the one rule of every verb.

    What exists is replaced with `--overwrite true`, or where it is known to be an earlier output of the same kind. A
    folder that is empty counts as absent.

    Args:
        path: File or folder to write.
        overwrite: Whether the user asked to replace it; None for a command without that option.
        inputs: Files and folders that the same call reads, which are never replaced.
        formats: Suffixes that the file may have, such as `.png`. Default: any.
        folder: Whether a folder is written, not a file.
        is_own: Whether the existing output is one that the same command wrote.

    Raises:
        OutputError: It may not be written; nothing is changed.
        OSError: It cannot be looked at.
    """
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} is no name of a file: it holds a zero byte.")
    if formats and path.suffix.lower() not in formats:
        raise OutputError(f"{path}: the file has to end in {' or '.join(formats)}, which selects the format.")
    if files := [parent for parent in path.parents if parent.is_file()]:
        raise OutputError(f"{path} cannot be written: {files[0]} is a file, and a folder is expected.")
    if not os.path.lexists(path):
        return
    if path.is_dir() != folder:
        found, wanted = ("file", "folder") if folder else ("folder", "file")
        raise OutputError(f"{path} cannot be written: it is a {found}, and a {wanted} is expected.")
    if folder and not any(path.iterdir()):
        return
    whole = path.resolve()
    if any(whole == one or whole in one.parents for one in (Path(name).resolve() for name in inputs)):
        raise OutputError(f"{path} is an input of this call and is not overwritten. Choose another name.")
    if not overwrite and not is_own(path):
        remedy = "remove it" if overwrite is None else "replace it: --overwrite true"
        raise OutputError(f"{path} already exists and is not overwritten. Choose another name, or {remedy}.")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary file next to `file` to write to, which replaces it at the end and is deleted after an error.

    After a loss of power the file is the former one or the new one, never empty.

    Args:
        file: File to write. Its folder is created if it does not exist, and removed again after an error.

    Raises:
        OSError: The file cannot be written; an earlier file is unchanged.
    """
    with _parents_of(file):
        temporary = _temporary(file)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask
        mode = temporary.stat().st_mode
        try:
            with _naming(file, temporary):
                yield temporary
                temporary.chmod(mode)  # some writers put a file of their own in its place
                _sync(temporary)
                temporary.replace(file)
            with suppress(OSError):  # some file systems cannot do that for a folder
                _sync(file.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to write to, which becomes `folder` at the end and is deleted after an error.

    Args:
        folder: Folder to write; its parents are created if they do not exist, and removed again after an error.
        overwrite: Whether an earlier folder is replaced. It may hold nothing that the new one does not have.

    Raises:
        OutputError: `folder` exists and is not empty, or lies below a file.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    check_output(folder, overwrite, folder=True)
    with _parents_of(folder):
        empty = folder.is_dir() and not any(folder.iterdir())  # it may be a mount point, or where the user stands
        temporary = _temporary(folder / folder.name) if empty else _temporary(folder)
        temporary.mkdir()  # 0777 less the umask
        mode = temporary.stat().st_mode
        try:
            with _naming(folder, temporary):
                yield temporary
            for path in temporary.rglob("*"):
                path.chmod(mode if path.is_dir() else mode & 0o666)
            if empty:
                for path in temporary.iterdir():
                    path.rename(folder / path.name)
            else:
                check_output(folder, overwrite, folder=True)  # another process may have been faster
                _put(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_or_existing(folder: Path) -> Iterator[None]:
    """Create a folder to write files into, unless it is there; one that was not is removed again after an error.

    Raises:
        OSError: The folder cannot be created.
    """
    is_new = not folder.exists()
    with _parents_of(folder):
        folder.mkdir(exist_ok=True)
        try:
            yield
        except BaseException:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _put(temporary: Path, folder: Path) -> None:
    """Rename a folder to its place; what stands there may hold nothing that would be lost."""
    if not os.path.lexists(folder):
        temporary.rename(folder)
        return
    there, new = ({path.relative_to(one) for path in one.rglob("*")} for one in (folder, temporary))
    if lost := sorted(map(str, there - new)):
        raise OutputError(f"{folder} holds {lost[0]!r}, which is no part of this output. Choose another name.")
    former = _temporary(folder)
    folder.rename(former)
    temporary.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # network shares report a full disk here
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A name beside `path` that nothing has, however long the name of `path` is."""
    return path.parent / f"{path.name[:100]}.{secrets.token_hex(4)}.tmp"


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Name `path` in the errors of writing, which name nothing or the temporary path."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:  # of writers in Rust, such as that of safetensors
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


@contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """Create the parents of a path; those that are still empty after an error are removed again."""
    absent = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in absent:
            with suppress(OSError):
                parent.rmdir()
        raise


def replace_text(file: Path, text: str) -> None:
    """Write `text` as UTF-8 without translating line ends."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def cache_folder() -> Path:
    """`$REPLORA_CACHE`, by default `replora` in the user's cache folder; it may not exist yet."""
    base = os.environ.get("REPLORA_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "replora"


# --- pictures


def save_picture(figure: Any, file: Path, maker: str, dpi: int = 120) -> Path:
    """Write a figure of matplotlib as PNG that says what made it.

    Args:
        figure: The figure.
        file: PNG file to write.
        maker: The command, such as `replora-cli plot`.
        dpi: Pixels per inch.
    """
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png", metadata={"Software": maker})
    return file


def made_by(maker: str) -> Callable[[Path], bool]:
    """A function that tells whether a file is a picture that `save_picture` wrote for `maker`."""

    def is_own(file: Path) -> bool:
        with file.open("rb") as stream:
            return b"tEXtSoftware\0" + maker.encode() in stream.read(4096)

    return is_own


# --- reading


class Entries(dict[str, Any]):
    """A mapping in a file, which names the file where an entry is missing."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        super().__init__(content)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise UnreadableFileError(f"{self.where} is not complete: an entry {name!r} is missing. {_AGAIN}")


def check_types(content: Any, expected: Any, where: str, name: str = "") -> None:
    """Check the types of what a file holds; entries that are missing are left to `Entries`.

    Args:
        content: Value that was read.
        expected: A type or several, [types of the items], or {name of an entry, or None for all others: types}.
        where: The file, for the error.
        name: Dotted name of the value in the file.

    Raises:
        UnreadableFileError: A value has another type.
    """
    kind: Any = type(expected) if isinstance(expected, dict | list) else expected
    if not isinstance(content, kind) or (isinstance(content, bool) and kind in (int, NUMBER)):
        shown = repr(content) if len(repr(content)) <= 60 else f"{repr(content)[:57]}..."
        raise UnreadableFileError(f"{where} is corrupt: {name or 'its content'} is {shown}. {_AGAIN}")
    if isinstance(expected, list):
        for number, item in enumerate(content):
            check_types(item, expected[0], where, f"{name}[{number}]")
    elif isinstance(expected, dict):
        for key, item in content.items():
            if key in expected or None in expected:
                check_types(item, expected.get(key, expected.get(None)), where, f"{name}.{key}".lstrip("."))


NUMBER = int | float
OPTIONAL_NUMBER = int | float | None


def read_text(file: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UnreadableFileError: It is not UTF-8, or a named pipe or a device, which may never end.
        OSError: It cannot be read.
    """
    if file.exists() and not file.is_file() and not file.is_dir():
        raise UnreadableFileError(f"{file} is no regular file but a pipe or a device. {_AGAIN}")
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{file} is corrupt: it is no UTF-8 text ({error.reason}). {_AGAIN}") from error


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UnreadableFileError: It is not JSON, NaN and Infinity included, or nested too deeply.
        OSError: It cannot be read.
    """
    return parse_json(read_text(file), str(file))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON.

    Args:
        text: JSON.
        where: Its file, for the error.

    Raises:
        UnreadableFileError: It is not JSON, NaN and Infinity included, or nested too deeply.
    """

    def no_number(name: str) -> None:
        raise UnreadableFileError(f"{where} is corrupt: {name} is no number of JSON. {_AGAIN}")

    try:
        content = json.loads(text, parse_constant=no_number, object_hook=lambda content: Entries(content, where))
        if "\\ud" in text.lower():  # half of a surrogate pair is a character that no file can hold
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UnreadableFileError:
        raise
    except ValueError as error:
        what = str(error).partition(";")[0] if text.strip() else "it is empty"
        raise UnreadableFileError(f"{where} is corrupt: {what}. {_AGAIN}") from error
    except RecursionError:
        raise UnreadableFileError(f"{where} is corrupt: it is nested too deeply. {_AGAIN}") from None


_AGAIN = "Copy the file again from its source, or write it again."


# --- text in cells

# What a spreadsheet takes for a formula, behind any number of the apostrophes that mark text; and what is only numbers.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = r"[-+]?(?:\d[\d.,]*(?:e[-+]?\d+)?%?|inf)"
_NUMBERS = re.compile(rf"-|{_NUMBER}(?: (?:to |± )?[(\[]?{_NUMBER}[)\]]?)*")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Lines of a CSV file that a spreadsheet opens without running anything: a formula is marked as text.

    A cell that begins like a formula and is no number gets an apostrophe before it, which `read_csv` takes away.
    """
    lines = []
    for row in rows:
        stream = io.StringIO()
        csv.writer(stream).writerow([_marked(cell) for cell in row])  # quotes what has a character of its line end
        lines.append(stream.getvalue().removesuffix("\r\n"))
    return "".join(f"{line}\n" for line in lines)


def read_csv(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV file of `csv_text`, each column by its heading.

    Raises:
        UnreadableFileError: It is not UTF-8 or no CSV, or a line has not as many cells as there are headings.
        OSError: It cannot be read.
    """
    text = read_text(file)
    try:
        headings, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        what = "it is empty" if not text.strip() else str(error)
        raise UnreadableFileError(f"{file} is corrupt: {what}. {_AGAIN}") from error
    lines = [line for line in lines if line]
    for number, line in enumerate(lines, start=2):
        if len(line) != len(headings):
            raise UnreadableFileError(
                f"{file} is corrupt: line {number} has {len(line)} cells under {len(headings)} headings. {_AGAIN}"
            )
    names = [_unmarked(name) for name in headings]
    return [dict(zip(names, map(_unmarked, line), strict=True)) for line in lines]


def _marked(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBERS.fullmatch(cell) else cell


def _unmarked(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def markdown(text: str) -> str:
    """Text for Markdown, also in a cell of a table: on one line, shown as it is, with nothing that acts."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*|~\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
