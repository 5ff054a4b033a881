"""A cache of decoded frames in a folder, shared by processes, epochs and runs, of bounded size."""

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

PIXELS = 2  # incremented when the same file yields other pixels; 2 turns videos upright
EVERY_FRAME = "every frame"
# A process measures the folder again when it has written this part of `max_bytes`, because others write too. Filling a
# cache takes at most 1 / RESCAN measurements over all processes.
RESCAN = 1 / 256
STALE = 3600.0  # age in seconds of an unfinished file that a killed process left behind
WRITING = re.compile(r"[0-9a-f]{32}\.safetensors.+\.tmp")


class CacheError(RepLoRAError):
    """The folder of decoded clips cannot be written."""


class ClipCache:
    """Read clips like `read_clip`, and keep their frames.

    Frames are kept uncompressed at their final shorter side, so cached and decoded frames are equal. The key of a clip
    is its path, size and date, or those of each image of a folder.

    Args:
        folder: Folder of the cache. It is created if it does not exist.
        max_bytes: Largest size of the cache, in bytes. Clips that do not fit are decoded each time. Each process may
            exceed it by 1/256 and one clip.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._used = 0
        self._written: int | None = None  # bytes written by this process since it measured the folder

    def read(self, path: Path, choose: Choice, short_side: int, keep: str) -> Tensor:
        """The frames that `choose` requests, uint8 (T, 3, h, w).

        Args:
            path, choose, short_side: Same as in `read_clip`.
            keep: `EVERY_FRAME` to keep all frames for other requests; otherwise a key of what `choose` requests, to
                keep these frames only.

        Raises:
            CorruptVideoError: The clip cannot be decoded.
            CacheError: The folder cannot be written.
        """
        file = self.folder / f"{_key(path, short_side, keep)}.safetensors"
        kept = _read(file, choose)
        if kept is not None:
            return kept
        if self._room() <= 0:  # then do not hold all frames of a clip
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
        """The number of bytes that may still be written."""
        if self._written is None or self._written > RESCAN * self.max_bytes:
            self._used, self._written = _size(self.folder), 0
        return self.max_bytes - self._used - self._written

    def _write(self, file: Path, frames: Tensor, count: int, numbers: list[int]) -> None:
        try:
            with replacing(file) as temporary:
                save_file({"frames": frames}, temporary, {"count": str(count), "numbers": json.dumps(numbers)})
        except OSError as error:
            raise CacheError(
                f"Decoded clips cannot be written to {self.folder} ({error.strerror or error}). Free some space, "
                "decrease --data.cache_bytes, or disable the cache: --data.cache_dir null"
            ) from error
        self._written = (self._written or 0) + frames.nbytes


def _size(folder: Path) -> int:
    """The bytes of a folder that other processes write to. Unfinished files of killed processes are deleted."""
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
            except FileNotFoundError:  # another process renamed or deleted it
                continue
    return total


def _read(file: Path, choose: Choice) -> Tensor | None:
    """The frames of a file, or None if it does not exist or is incomplete."""
    try:
        with safe_open(file, "pt") as content:
            header = content.metadata()
            row = {number: i for i, number in enumerate(json.loads(header["numbers"]))}
            rows = content.get_slice("frames")
            return torch.cat([rows[row[n] : row[n] + 1] for n in choose(int(header["count"]))])
    except (FileNotFoundError, SafetensorError):
        return None


def _key(path: Path, short_side: int, keep: str) -> str:
    """Hash of everything that the frames of a clip depend on."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(file.name, file.stat()) for file in files]
        listed = " ".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)
        identity = f"{path.resolve()} {listed}"
    except OSError:
        identity = str(path)  # the error is raised when the clip is read
    key = f"{identity} {short_side} {keep} {PIXELS}"
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
