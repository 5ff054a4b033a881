"""Custom files with a class each, and their splits; `file_table.py` finds them.

A split that is absent is taken from the training files: stratified, and chosen by a hash of each file's relative path,
so it is the same on every machine and does not depend on where the folder lies. What the files are says a `FileKind`:
images in `image_folder.py`, videos in `video_folder.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from replora.datasets.common.duplicates import tell_duplicates
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
    """The split that the name of a folder or the value of a column means, upper and lower case alike; or None."""
    letters = re.sub(r"[\s_.-]+", "", name.casefold())
    for split, pattern in _SPLIT_NAMES.items():
        if re.fullmatch(f"({pattern}){_ENDINGS}", letters):
            return split
    return None


class FileTableError(RepLoRAError):
    """A folder of files or a CSV file has no files, no labels, one class alone, or splits that do not agree."""


@dataclass(frozen=True)
class FileKind:
    """What is labelled.

    Attributes:
        name: `image` or `video`; the plural has an s.
        suffixes: Of its files, for messages.
        find: The files of this kind in a folder and the folders inside it; counts what it leaves out.
        folders: Whether a folder may be one, as a video of single frames is.
        hint: What to do with files that have no class.
    """

    name: str
    suffixes: tuple[str, ...]
    find: Callable[[Path, LeftOut], list[Path]]
    folders: bool = False
    hint: str = ""

    @property
    def layout(self) -> str:
        """What is expected on disk, in words."""
        suffix = self.suffixes[0]
        return (
            f"Expected is a folder for each class (ROOT/cat/1{suffix}, ROOT/dog/2{suffix}), or such folders inside "
            "ROOT/train, ROOT/val and ROOT/test, or a CSV file of the columns path,label"
        )


@dataclass(frozen=True)
class FileTable:
    """What a folder or a CSV file holds, not split yet.

    Attributes:
        home: The folder that the paths are relative to.
        paths: Of every file, in alphabetical order.
        labels: The class of every file, an index into `class_names`.
        class_names: In alphabetical order.
        splits: The user's own split of every file, None where there is none.
        left_out: What was left out, such as `.heic` or `broken link`, and how often.
        custom: Whether the files are the user's own, so that `assign` looks for copies in two splits.
    """

    home: Path
    paths: list[PurePosixPath]
    labels: list[int]
    class_names: list[str]
    splits: list[FileSplit | None]
    left_out: dict[str, int] = field(default_factory=dict)
    custom: bool = False

    def assign(
        self, val_fraction: float, test_fraction: float, seed: int, groups: Sequence[str] | None = None
    ) -> list[FileSplit]:
        """The split of every file: the user's own, and for a split that is absent a part of the training files.

        Of a class with n training files `val` and `test` get round(fraction * n) each, at least one where n allows
        (n = 2 leaves one for `test`), and `train` at least one.

        Args:
            val_fraction, test_fraction: parts of the training files, in [0, 1); used where the split is absent.
            seed: which files; any integer.
            groups: of every file, such as the film that a clip is cut from; files of one group stay in one split, whose
                number may then be larger by the rest of its last group.

        Raises:
            FileTableError: the fractions leave nothing to train on, or a split would be empty.
        """
        if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise FileTableError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction}: both are in [0, 1), and their sum is "
                "below 1, or nothing is left to train on."
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
                # One group stays for training.
                while left > 0 and pool and group[pool[0]] != group[pool[-1]]:
                    last = group[pool[-1]]
                    while group[pool[-1]] == last:
                        assigned[pool.pop()] = split
                        left -= 1
        if self.custom:
            tell_duplicates(self.home, [self.home / path for path in self.paths], assigned)
        return assigned


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogateescape")).digest()
