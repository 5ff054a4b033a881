"""Decode once: the frames of clips in a folder, for every process, epoch and run, up to a number of bytes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replora.atomic import replacing
from replora.datasets.videos import Choice, read_clip
from replora.errors import RepLoRAError

EVERY_FRAME = "every frame"
RESCAN = 1.0  # seconds after which the folder's size is looked up again, because other processes write to it


class CacheError(RepLoRAError):
    """The folder of decoded clips cannot be written."""


class ClipCache:
    """Reads clips as `read_clip` does, and keeps their frames.

    The frames are kept at their final shorter side and uncompressed, so what is read later equals what was decoded. A
    file is found by path, size and date of its clip: another clip is never taken for it.

    Args:
        folder: where; made if absent.
        max_bytes: what does not fit into this many bytes is decoded each time. Processes that write at the same moment
            may exceed it by what they write in a second.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._used = 0
        self._scanned: float | None = None

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
        if self._scanned is None or time.monotonic() - self._scanned > RESCAN:
            self._used = sum(entry.stat().st_size for entry in os.scandir(self.folder)) if self.folder.is_dir() else 0
            self._scanned = time.monotonic()
        return self.max_bytes - self._used

    def _write(self, file: Path, frames: Tensor, count: int, numbers: list[int]) -> None:
        try:
            with replacing(file) as temporary:
                save_file({"frames": frames}, temporary, {"count": str(count), "numbers": json.dumps(numbers)})
        except OSError as error:
            raise CacheError(
                f"Decoded clips cannot be written to {self.folder} ({error.strerror or error}). Make room there, lower "
                "--data.cache_bytes, or decode every time: --data.cache_dir null"
            ) from error
        self._used += frames.nbytes


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
    """What decides over the frames of a file."""
    try:
        state = path.stat()
        identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    except OSError:
        identity = str(path)  # its reader says what is wrong
    return hashlib.sha256(f"{identity} {short_side} {keep}".encode()).hexdigest()[:32]
