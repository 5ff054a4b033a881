"""Unpacking of untrusted zip and tar files: no links or devices, and nothing outside the target folder."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path, PureWindowsPath
from typing import IO

from replora.datasets.errors import PrepareError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(file: Path) -> bool:
    """Whether a file has the suffix of a zip or tar file."""
    return file.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, into: Path, advance: Callable[[], object] = lambda: None) -> None:
    """Unpack an archive, after checking the names of all members.

    Args:
        archive: Zip or tar file.
        into: Folder for the content. It is created if it does not exist.
        advance: Function that is called after each file.

    Raises:
        PrepareError: A member is a link or a device, or its path leaves the folder; or the archive is corrupt or larger
            than the free space.
    """
    try:
        if archive.name.lower().endswith(".zip"):
            _unpack_zip(archive, into, advance)
        else:
            _unpack_tar(archive, into, advance)
    # RuntimeError: the zip file is encrypted, or its compression is not supported by Python.
    except (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError) as error:
        raise PrepareError(f"{archive} cannot be unpacked: {error}. Delete it and download it again.") from error


def _unpack_zip(archive: Path, into: Path, advance: Callable[[], object]) -> None:
    with zipfile.ZipFile(archive) as opened:
        files = [member for member in opened.infolist() if not member.is_dir()]
        for member in files:
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check(archive, into, member.filename, kind in (0, stat.S_IFREG))
        _check_space(archive, into, sum(member.file_size for member in files))
        for member in files:
            with opened.open(member) as content:
                _write(content, into / member.filename)
            advance()


def _unpack_tar(archive: Path, into: Path, advance: Callable[[], object]) -> None:
    with tarfile.open(archive) as opened:
        files = [member for member in opened.getmembers() if not member.isdir()]
        for member in files:
            _check(archive, into, member.name, member.isreg())
        _check_space(archive, into, sum(member.size for member in files))
        for member in files:
            content = opened.extractfile(member)
            assert content is not None  # a regular file
            with content:
                _write(content, into / member.name)
            advance()


def _check(archive: Path, into: Path, name: str, regular: bool) -> None:
    windows = PureWindowsPath(name)  # splits at / and at \, knows drives
    if windows.anchor or ".." in windows.parts or "\0" in name:
        raise PrepareError(f"{archive}: the path {name!r} leaves {into}. Nothing was unpacked; do not use this file.")
    if not regular:
        raise PrepareError(f"{archive}: {name!r} is a link or a device. Nothing was unpacked; do not use this file.")


def _check_space(archive: Path, into: Path, needed: int) -> None:
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    if needed > free:
        raise PrepareError(
            f"{archive} needs {needed / 2**30:,.1f} GiB when unpacked, but {into} has {free / 2**30:,.1f} GiB left."
        )


def _write(content: IO[bytes], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as target:  # a repeated name raises an error
        shutil.copyfileobj(content, target, 2**20)
