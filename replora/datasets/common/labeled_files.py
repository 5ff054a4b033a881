"""Custom files with one class each, and their splits. `file_table.py` finds the files.

A missing split is taken from the training files, stratified and by a hash of each file's relative path, so it is the
same on every machine and for every location of the folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from replora.datasets.common.duplicates import log_duplicates
from replora.datasets.common.files import LeftOut
from replora.errors import RepLoRAError

FileSplit = Literal["train", "val", "test"]

# Names of folders and values of a column that mean a split: Train, train_set, TRAINING, val2017, dev-images, testing.
_SPLIT_NAMES: dict[FileSplit, str] = {
    "train": "train(ing)?|trn",
    "val": "val|valid|validation|dev|development",
    "test": "test(ing)?|tst",
}
_ENDINGS = (
    "(set|data|dataset|split|images?|imgs?|pics|photos|videos?|clips|frames|files|folder|samples)?(19|20)?([0-9]{2})?"
)


def split_of_name(name: str) -> FileSplit | None:
    """The split that the name of a folder or the value of a column means, without regard to case; or None."""
    letters = re.sub(r"[\s_.-]+", "", name.casefold())
    for split, pattern in _SPLIT_NAMES.items():
        if re.fullmatch(f"({pattern}){_ENDINGS}", letters):
            return split
    return None


class FileTableError(RepLoRAError):
    """A folder or a CSV file has no files, no labels, only one class, or contradictory splits."""


@dataclass(frozen=True)
class FileKind:
    """A kind of files."""

    name: str  # `image` or `video`; the plural appends an s
    suffixes: tuple[str, ...]  # suffixes of the files, for messages
    # function that lists the files of this kind below a folder and counts what it leaves out
    find: Callable[[Path, LeftOut], list[Path]]
    folders: bool = False  # whether a folder may be one such file, like a video of single frames
    hint: str = ""  # advice for files without a class

    @property
    def layout(self) -> str:
        """The expected layout on disk, for messages."""
        suffix = self.suffixes[0]
        return (
            f"Expected is a folder for each class (ROOT/cat/1{suffix}, ROOT/dog/2{suffix}), or such folders inside "
            "ROOT/train, ROOT/val and ROOT/test, or a CSV file with the columns path,label"
        )


@dataclass(frozen=True)
class FileTable:
    """The content of a folder or a CSV file, not split yet."""

    home: Path  # folder that the paths are relative to
    paths: list[PurePosixPath]  # path of each file, in alphabetical order
    labels: list[int]  # class of each file, an index into `class_names`
    class_names: list[str]  # names of the classes, in alphabetical order
    splits: list[FileSplit | None]  # given split of each file, or None
    # number of files that were left out, by reason such as `.heic` or `broken link`
    left_out: dict[str, int] = field(default_factory=dict)
    custom: bool = False  # whether the files are custom, so that `assign` looks for copies in different splits

    def assign(
        self, val_fraction: float, test_fraction: float, seed: int, groups: Sequence[str] | None = None
    ) -> list[FileSplit]:
        """The split of each file: the given one or, for a missing split, a part of the training files.

        Of a class with n training files, `val` and `test` get round(fraction * n) each, at least one if n is large
        enough (n = 2 leaves one for `test`), and `train` gets at least one.

        Args:
            val_fraction, test_fraction: Fractions of the training files, in [0, 1), for splits that are missing.
            seed: Random seed that chooses the files; any integer.
            groups: Group of each file, such as the film of a clip. All files of a group are in one split, which may
                therefore be larger by the rest of its last group.

        Raises:
            FileTableError: The fractions leave nothing to train on.
        """
        if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise FileTableError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction}: both must be in [0, 1), and "
                "their sum must be below 1, or nothing is left to train on."
            )
        parts: dict[FileSplit, float] = {"test": test_fraction, "val": val_fraction}
        parts = {split: part for split, part in parts.items() if split not in self.splits and part > 0}
        assigned: list[FileSplit] = [split or "train" for split in self.splits]
        for label in range(len(self.class_names)):
            pool = [i for i, own in enumerate(assigned) if own == "train" and self.labels[i] == label]
            group = {i: str(self.paths[i] if groups is None else groups[i]) for i in pool}
            pool.sort(key=lambda i: (_digest(seed, group[i]), _digest(seed, str(self.paths[i]))))
            for split, part in parts.items():
                left = max(1, round(part * len(pool)))
                # The last group is kept for training.
                while left > 0 and pool and group[pool[0]] != group[pool[-1]]:
                    last = group[pool[-1]]
                    while group[pool[-1]] == last:
                        assigned[pool.pop()] = split
                        left -= 1
        if self.custom:
            log_duplicates(self.home, [self.home / path for path in self.paths], assigned)
        return assigned


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogateescape")).digest()
