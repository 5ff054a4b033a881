"""Hashes of the lists and examples of the splits of a datamodule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replora.datasets.common.packed import Packed, pack_texts
from replora.datasets.errors import ListFileError


class SplitLists:
    """The list of each split that was built.

    The hash of a list identifies data, wherever they are stored. The hashes of examples detect evaluations on examples
    that a run was trained on.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}
        # split -> sorted hashes of the examples in use, int64 (N,), and their names
        self._examples: dict[str, tuple[np.ndarray, Packed[str]]] = {}

    def add(self, split: str, names: Iterable[str], labels: Iterable[Any], used: Iterable[int] | None = None) -> None:
        """Add a split.

        Args:
            split: Name of the split.
            names: Name of each of its examples, such as the path below the root folder.
            labels: Label of each example.
            used: Positions of the examples that a subset takes. Default: all.
        """
        digest, all_names, separator = hashlib.sha256(), pack_texts(names), ""
        for name, label in zip(all_names, labels, strict=True):
            digest.update(f"{separator}{name}\t{label}".encode(errors="surrogateescape"))
            separator = "\n"
        self._hashes[split] = digest.hexdigest()
        positions = np.fromiter(range(len(all_names)) if used is None else used, np.int64)
        hashes = np.fromiter((_hash(all_names[position]) for position in positions), np.int64, len(positions))
        unique, first = np.unique(hashes, return_index=True)
        self._examples[split] = unique, pack_texts(all_names[position] for position in positions[first])

    def sha256(self, split: str) -> str | None:
        """The hash of a split's list, or None if it is not known."""
        return self._hashes.get(split)

    def examples(self, split: str) -> Tensor:
        """Hashes of the used examples of a split, int64 (N,); empty if they are not known."""
        return torch.from_numpy(self._of(split)[0].copy())

    def seen(self, split: str, trained: Tensor) -> int:
        """The number of examples of a split that are among `examples` of a training split."""
        return int(np.isin(self._of(split)[0], trained.numpy()).sum())

    def check_disjoint(self, first: str, second: str) -> None:
        """Check that two splits share no example. Raises ListFileError if they share examples."""
        (one, names), (other, _) = self._of(first), self._of(second)
        shared = np.flatnonzero(np.isin(one, other))
        if len(shared):
            named = sorted(names[position] for position in shared.tolist())
            raise ListFileError(
                f"The splits {first!r} and {second!r} share {len(shared):,} of {len(other):,} examples, such as "
                f"{named[0]}. A model would be measured on what it was trained on. Correct the lists or the folders."
            )

    def _of(self, split: str) -> tuple[np.ndarray, Packed[str]]:
        return self._examples.get(split, (np.empty(0, np.int64), pack_texts([])))


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
