"""Many small items as bytes in one array."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")


class Packed(Sequence[T]):
    """A read-only sequence whose items are stored as bytes in one array and built again at each access.

    Loader processes are forked and share the memory of the training process until one of them writes to it. CPython
    writes to every object that it reads, to count its references, so each loader process ends up with a copy of all
    records, of about 1 kB each. An array of numpy holds no objects, and its memory remains shared.

    Args:
        items: The items.
        encode: Function that turns an item into bytes; of a module, so that it can be sent to a process.
        decode: Its inverse.
    """

    def __init__(
        self,
        items: Iterable[T],
        encode: Callable[[T], bytes] = pickle.dumps,
        decode: Callable[[bytes], T] = pickle.loads,
    ) -> None:
        content, ends = bytearray(), array("q", [0])
        for item in items:
            content += encode(item)
            ends.append(len(content))
        self._content = np.frombuffer(content, np.uint8)
        self._ends = np.frombuffer(ends, np.int64)  # item i is the content from its entry to the next
        self._decode = decode

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        return self._decode(self._content[self._ends[i] : self._ends[i + 1]].tobytes())

    def __iter__(self) -> Iterator[T]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        """Bytes of the items and of their positions."""
        return int(self._content.nbytes + self._ends.nbytes)


def pack_texts(texts: Iterable[str]) -> Packed[str]:
    """Texts, also names of files that are not UTF-8."""
    return Packed(texts, _encode_text, _decode_text)


def pack_paths(paths: Iterable[PurePosixPath]) -> Packed[PurePosixPath]:
    """Paths of files."""
    return Packed(paths, _encode_path, _decode_path)


def _encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode_text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _encode_path(path: PurePosixPath) -> bytes:
    return _encode_text(str(path))


def _decode_path(content: bytes) -> PurePosixPath:
    return PurePosixPath(_decode_text(content))
