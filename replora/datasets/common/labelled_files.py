"""Files of one's own with a class each: a folder with a folder for each class, or a CSV file of paths and labels.

    root/cat/a.jpg  root/dog/b.png                          no splits: they are made
    root/train/cat/a.jpg  root/val/...  root/test/...       val (or valid, validation) and test may be absent
    list.csv of the columns path,label                      relative to the file; a column `split` may be added

A split that is absent is taken from the training files: stratified, and chosen by a hash of each file's relative path,
so it is the same on every machine and does not depend on where the folder lies. What the files are says a `FileKind`:
images in `image_folder.py`, videos in `video_folder.py`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from replora.datasets.common.paths import inner_path, missing_files, stay_inside
from replora.datasets.errors import DatasetNotFoundError, ListFileError
from replora.errors import RepLoRAError, nearest

FileSplit = Literal["train", "val", "test"]

# Names of the folders and values of the column, and the split they mean.
SPLIT_NAMES: dict[str, FileSplit] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class FileTableError(RepLoRAError):
    """A folder of files or a CSV file has no files, no labels, one class alone, or splits that do not agree."""


@dataclass(frozen=True)
class FileKind:
    """What is labelled.

    Attributes:
        name: `image` or `video`; the plural has an s.
        suffixes: Of its files, for messages.
        find: The files of this kind in a folder and the folders inside it.
        folders: Whether a folder may be one, as a video of single frames is.
        hint: What to do with files that have no class.
    """

    name: str
    suffixes: tuple[str, ...]
    find: Callable[[Path], list[Path]]
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
    """

    home: Path
    paths: list[PurePosixPath]
    labels: list[int]
    class_names: list[str]
    splits: list[FileSplit | None]

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
        return assigned


def read_file_table(root: Path, kind: FileKind) -> FileTable:
    """Scan a folder of class folders, or read a CSV file of paths and labels.

    Args:
        root: the folder, or the file.
        kind: of the files.

    Raises:
        DatasetNotFoundError: `root` does not exist.
        FileTableError: there is no file, a class without one, one class alone, no column of labels, or a class that
            only validation or test files have.
        ListFileError: a path of the CSV file, or a link, leaves the data, or a file is missing.
    """
    root = Path(root).expanduser()
    if root.is_dir():
        home, named = root, _scan(root, kind)
    elif root.is_file():
        home, named = root.parent, _read_csv(root, kind)
    else:
        raise DatasetNotFoundError(
            f"There is no folder and no CSV file {root} (looked in {Path.cwd()}). {kind.layout}."
        )
    named = dict(sorted(named.items()))
    class_names = sorted({name for name, _ in named.values()})
    if len(class_names) < 2:
        raise FileTableError(
            f"{root} holds {len(named):,} {kind.name}s of one class alone, {class_names[0]!r}; telling classes apart "
            f"needs two. {kind.layout}."
        )
    trained = {name for name, split in named.values() if split in (None, "train")}
    if untrained := [name for name in class_names if name not in trained]:
        others = sorted({str(split) for name, split in named.values() if name == untrained[0]})
        raise FileTableError(
            f"{root}: the class {untrained[0]!r} has {kind.name}s in {' and '.join(others)}, but none to train on. "
            f"{nearest(untrained[0], trained)} Classes are the same in every split."
        )
    number = {name: label for label, name in enumerate(class_names)}
    labels = [number[name] for name, _ in named.values()]
    return FileTable(home, list(named), labels, class_names, [split for _, split in named.values()])


def _digest(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


Named = dict[PurePosixPath, tuple[str, FileSplit | None]]  # path -> class, split


def _scan(root: Path, kind: FileKind) -> Named:
    folders = _folders(root)
    # `train` may also be a class, beside `car`. It is a split where it has folders and all beside it are splits.
    if "train" in folders and all(name in SPLIT_NAMES for name in folders) and _folders(root / "train"):
        named: Named = {}
        for name in folders:
            named |= _scan_classes(root, root / name, SPLIT_NAMES[name], kind)
        return named
    return _scan_classes(root, root, None, kind)


def _scan_classes(root: Path, parent: Path, split: FileSplit | None, kind: FileKind) -> Named:
    classes = _folders(parent)
    if not classes:
        files = kind.find(parent)
        found = f"{len(files):,} {kind.name}s but no folders" if files else f"no folders and no {kind.name}s"
        raise FileTableError(f"{parent} has {found} in it, so the classes are not known. {kind.layout}. {kind.hint}")
    named: Named = {}
    home = root.resolve()
    for name in classes:
        files = kind.find(parent / name)
        if not files:
            raise FileTableError(
                f"The class folder {parent / name} has no {kind.name}s (files ending in {', '.join(kind.suffixes)}). "
                "Put some there, or remove the folder."
            )
        for file in files:
            stay_inside(file, home)
            named[PurePosixPath(file.relative_to(root).as_posix())] = (name, split)
    return named


def _folders(parent: Path) -> list[str]:
    """The folders in `parent`, hidden ones and what macOS leaves in archives apart."""
    return sorted(
        entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )


def _is_entry(cells: list[str], home: Path) -> bool:
    """Whether the first line of a CSV file is no header but names a file already, with its label."""
    return len(cells) in (2, 3) and not {"path", "label"} & set(cells) and cells[0] != "" and (home / cells[0]).exists()


def _read_csv(file: Path, kind: FileKind) -> Named:
    try:
        text = file.read_text(encoding="utf-8-sig")  # with or without the byte order mark that spreadsheets write
    except UnicodeDecodeError as error:
        raise ListFileError(f"{file} is not UTF-8 text ({error}). It has to be a CSV file, saved as UTF-8.") from error
    reader = csv.DictReader(text.splitlines())
    columns = [name.strip() for name in reader.fieldnames or []]
    if _is_entry(columns, file.parent):
        columns = ["path", "label", "split"][: len(columns)]
        reader = csv.DictReader(text.splitlines(), columns)
    reader.fieldnames = columns
    for needed in ("path", "label"):
        if needed not in columns:
            raise FileTableError(
                f"{file} has no column {needed!r}; its first line names {', '.join(map(repr, columns)) or 'none'}. "
                f"{nearest(needed, columns) if columns else ''} The first line has to be: path,label"
            )
    named: Named = {}
    for row in reader:
        where = f"{file}, line {reader.line_num}"
        path = inner_path((row["path"] or "").strip(), where)
        label, split = (row["label"] or "").strip(), (row.get("split") or "").strip()
        if not label:
            raise FileTableError(f"{where}: {path} has no label.")
        if split and split not in SPLIT_NAMES:
            raise FileTableError(f"{where}: there is no split {split!r}. {nearest(split, get_args(FileSplit))}")
        if path in named:
            raise FileTableError(f"{where}: {path} is listed twice. It has one label and one split.")
        named[path] = (label, SPLIT_NAMES.get(split))
    if not named:
        raise FileTableError(f"{file} lists no {kind.name}.")
    if missing := missing_files(file.parent, named, kind.folders):
        listed = ", ".join(map(str, missing[:3]))
        raise ListFileError(
            f"{file}: {len(missing):,} of {len(named):,} {kind.name}s are missing, the first: {listed}. Paths are "
            f"relative to {file.parent.resolve()}."
        )
    partly = Counter(split is None for _, split in named.values())
    if len(partly) == 2:
        raise FileTableError(
            f"{file}: {partly[True]:,} of {len(named):,} {kind.name}s have no split and the others do. Fill the column "
            "`split` in every line, or leave it out."
        )
    return named
