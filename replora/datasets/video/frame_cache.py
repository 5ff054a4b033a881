"""Decode once: the frames of clips in a folder, for every process, epoch and run, up to a number of bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replora.datasets.video.decode import Choice, read_clip
from replora.errors import RepLoRAError
from replora.io import replacing

PIXELS = 2  # raised when frames of the same file become other pixels: 2 turns videos upright
EVERY_FRAME = "every frame"
# The folder's size is looked up again when a process has written this part of `max_bytes`, because others write too:
# filling a cache takes at most 1 / RESCAN looks, shared by all processes, however many files it has.
RESCAN = 1 / 256
STALE = 3600.0  # seconds after which a file that is still being written belongs to a process that was killed
WRITING = re.compile(r"[0-9a-f]{32}\.safetensors.+\.tmp")


class CacheError(RepLoRAError):
    """The folder of decoded clips cannot be written."""


class ClipCache:
    """Reads clips as `read_clip` does, and keeps their frames.

    The frames are kept at their final shorter side and uncompressed, so what is read later equals what was decoded. A
    file is found by path, size and date of its clip, or of each image of a folder: another clip is never taken for it.

    Args:
        folder: where; made if absent.
        max_bytes: what does not fit into this many bytes is decoded each time. Each process that writes may exceed it
            by 1/256 and a clip.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._used = 0
        self._written: int | None = None  # by this process since the last look at the folder

    def read(self, path: Path, choose: Choice, short_side: int, keep: str) -> Tensor:
        """The frames that `choose` wants: uint8 (T, 3, h, w).

        Args:
            path, choose, short_side: as of `read_clip`.
            keep: `EVERY_FRAME`, so that other ones can be chosen later; else a name of what `choose` wants, the same
                for every clip of this length, and that alone is kept.

        Raises:
            CorruptVideoError: the clip cannot be decoded.
            CacheError: the folder cannot be written.
        """
        file = self.folder / f"{_key(path, short_side, keep)}.safetensors"
        kept = _read(file, choose)
        if kept is not None:
            return kept
        if self._room() <= 0:  # then not even for a moment: all frames of a clip are many
            return read_clip(path, choose, short_side)
        length: list[int] = []
        wanted: list[int] = []
        numbers: list[int] = []

        def needed(count: int) -> Sequence[int]:
            length.append(count)
            wanted.extend(choose(count))
            numbers.extend(range(count) if keep == EVERY_FRAME else sorted(set(wanted)))
            return numbers

        frames = read_clip(path, needed, short_side)
        if frames.nbytes <= self._room():
            self._write(file, frames, length[0], numbers)
        row = {number: i for i, number in enumerate(numbers)}
        return frames[[row[number] for number in wanted]]

    def _room(self) -> int:
        """Bytes that may still be written."""
        if self._written is None or self._written > RESCAN * self.max_bytes:
            self._used, self._written = _size(self.folder), 0
        return self.max_bytes - self._used - self._written

    def _write(self, file: Path, frames: Tensor, count: int, numbers: list[int]) -> None:
        try:
            with replacing(file) as temporary:
                save_file({"frames": frames}, temporary, {"count": str(count), "numbers": json.dumps(numbers)})
        except OSError as error:
            raise CacheError(
                f"Decoded clips cannot be written to {self.folder} ({error.strerror or error}). Make room there, lower "
                "--data.cache_bytes, or decode every time: --data.cache_dir null"
            ) from error
        self._written = (self._written or 0) + frames.nbytes


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, to which other processes write; what a killed one left is deleted."""
    if not folder.is_dir():
        return 0
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                state = entry.stat()
                if WRITING.fullmatch(entry.name) and time.time() - state.st_mtime > STALE:
                    Path(entry.path).unlink()
                else:
                    total += state.st_size
            except FileNotFoundError:  # another process has finished it, or deleted it
                continue
    return total


def _read(file: Path, choose: Choice) -> Tensor | None:
    """The frames out of a file; None if there is none, or none that is whole."""
    try:
        with safe_open(file, "pt") as content:
            header = content.metadata()
            row = {number: i for i, number in enumerate(json.loads(header["numbers"]))}
            rows = content.get_slice("frames")
            return torch.cat([rows[row[n] : row[n] + 1] for n in choose(int(header["count"]))])
    except (FileNotFoundError, SafetensorError):
        return None


def _key(path: Path, short_side: int, keep: str) -> str:
    """What decides over the frames of a file: of a folder of images every one of them, whose content may change."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(file.name, file.stat()) for file in files]
        listed = " ".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)
        identity = f"{path.resolve()} {listed}"
    except OSError:
        identity = str(path)  # its reader says what is wrong
    key = f"{identity} {short_side} {keep} {PIXELS}"
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
