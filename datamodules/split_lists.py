"""Hashes of the lists and examples of the splits of a datamodule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from replora.datasets.errors import ListFileError


class SplitLists:
    """The list of each split that was built.

    The hash of a list identifies data, wherever they are stored. The hashes of examples detect evaluations on examples
    that a run was trained on.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}
        self._examples: dict[str, dict[int, str]] = {}  # split -> hash of an example in use -> its name

    def add(self, split: str, names: Sequence[str], labels: Iterable[Any], used: Iterable[int] | None = None) -> None:
        """Add a split.

        Args:
            split: Name of the split.
            names: Name of each of its examples, such as the path below the root folder.
            labels: Label of each example.
            used: Positions of the examples that a subset takes. Default: all.
        """
        lines = [f"{name}\t{label}" for name, label in zip(names, labels, strict=True)]
        self._hashes[split] = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
        chosen = names if used is None else [names[position] for position in used]
        self._examples[split] = {_hash(name): name for name in chosen}

    def sha256(self, split: str) -> str | None:
        """The hash of a split's list, or None if it is not known."""
        return self._hashes.get(split)

    def examples(self, split: str) -> Tensor:
        """Hashes of the used examples of a split, int64 (N,); empty if they are not known."""
        return torch.tensor(sorted(self._examples.get(split, {})), dtype=torch.long)

    def seen(self, split: str, trained: Tensor) -> int:
        """The number of examples of a split that are among `examples` of a training split."""
        return len(self._examples.get(split, {}).keys() & set(trained.tolist()))

    def check_disjoint(self, first: str, second: str) -> None:
        """Check that two splits share no example. Raises ListFileError if they share examples."""
        one, other = self._examples.get(first, {}), self._examples.get(second, {})
        if shared := one.keys() & other.keys():
            named = sorted(one[key] for key in shared)
            raise ListFileError(
                f"The splits {first!r} and {second!r} share {len(shared):,} of {len(other):,} examples, such as "
                f"{named[0]}. A model would be measured on what it was trained on. Correct the lists or the folders."
            )


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
