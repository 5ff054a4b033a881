"""Custom files with one class each.

    root/cat/a.jpg  root/dog/b.png                          without splits, which are then made
    root/train/cat/a.jpg  root/val/...  root/test/...       val and test are optional; names as in `split_of_name`
    list.csv with the columns path,label                    relative to the file; a column `split` is optional

The kind of files is a `FileKind`: images in `image/folder.py`, videos in `video/folder.py`.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path, PurePosixPath

from replora.datasets.common.csv_list import Named, read_csv
from replora.datasets.common.files import LeftOut, is_unicode, log_left_out, printable, subfolders
from replora.datasets.common.labeled_files import FileKind, FileSplit, FileTable, FileTableError, split_of_name
from replora.datasets.common.paths import check_inside
from replora.datasets.errors import DatasetNotFoundError
from replora.errors import nearest

log = logging.getLogger(__name__)


def read_file_table(root: Path, kind: FileKind) -> FileTable:
    """Scan a folder of class folders, or read a CSV file of paths and labels.

    Args:
        root: Folder or CSV file.
        kind: Kind of files to find.

    Raises:
        DatasetNotFoundError: `root` does not exist, or a folder in it cannot be listed.
        FileTableError: There is no file or only one class, a class has no (training) file, the CSV file has no labels,
            folders may be splits or classes, or a name is not UTF-8.
        ListFileError: A path of the CSV file or a link leaves the data, or a file is missing.
    """
    root = Path(root).expanduser()
    left_out: LeftOut = Counter()
    if root.is_dir():
        home, named = root, _scan(root, kind, left_out)
    elif root.is_file():
        home, named = root.parent, read_csv(root, kind)
    else:
        raise DatasetNotFoundError(f"There is no folder or CSV file {root} (looked in {Path.cwd()}). {kind.layout}.")
    if odd := [path for path in named if not is_unicode(str(path))]:
        raise FileTableError(
            f"{printable(root)}: {len(odd):,} of {len(named):,} {kind.name}s have names that are not UTF-8, such as "
            f"{printable(str(odd[0]))}. Rename them, for example: convmv -r -f latin1 -t utf8 --notest ROOT"
        )
    log_left_out(root, left_out)
    # macOS and Linux may encode the same name in different ways.
    named = {path: (unicodedata.normalize("NFC", name), split) for path, (name, split) in sorted(named.items())}
    class_names = sorted({name for name, _ in named.values()})
    if len(class_names) < 2:
        raise FileTableError(
            f"{root} holds {len(named):,} {kind.name}s of one class alone, {class_names[0]!r}, but "
            f"classification needs two. {kind.layout}."
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
    splits = [split for _, split in named.values()]
    return FileTable(home, list(named), labels, class_names, splits, dict(left_out), custom=True)


def _scan(root: Path, kind: FileKind, left_out: LeftOut) -> Named:
    folders = subfolders(root, left_out)
    splits = {name: split for name in folders if (split := split_of_name(name))}
    others = [name for name in folders if name not in splits]
    inside = {name: set(subfolders(root / name)) for name in splits}
    # `train` may also be a class, next to `car`. It is a split if it has folders, and either all other folders are
    # splits or one of them has folders of the same names.
    shared = any(inside[one] & inside[other] for one, other in combinations(splits, 2))
    has_train = any(split == "train" and inside[name] for name, split in splits.items())
    if not (shared or (has_train and not others)):
        if len(splits) > 1:
            log.warning(
                "%s: the folders %s contain no folders of the same names, so they are classes, not splits",
                printable(root),
                " and ".join(splits),
            )
        return _scan_classes(root, root, None, kind, left_out)
    if not has_train:
        raise FileTableError(
            f"{root}: {' and '.join(splits)} contain folders of the same names, as splits do, but there is no "
            "folder `train`. Rename one of them to train or, if they are classes, rename the folders."
        )
    twice = [name for name, split in splits.items() if list(splits.values()).count(split) > 1]
    if twice:
        raise FileTableError(f"{root}: the folders {' and '.join(twice)} mean the same split. Merge them.")
    classes = set().union(*inside.values())
    for name in others:
        if alike := classes & set(subfolders(root / name)):
            raise FileTableError(
                f"{root}: the folder {name!r} next to {', '.join(splits)} contains the class {min(alike)!r} too, but "
                "its name is not that of a split. Rename it to train, val or test, or move it elsewhere."
            )
        unused = len(kind.find(root / name, Counter()))
        left_out[f"{kind.name}s in {name}/, which is no split"] += unused
    named: Named = {}
    for name, split in splits.items():
        named |= _scan_classes(root, root / name, split, kind, left_out)
    return named


def _scan_classes(root: Path, parent: Path, split: FileSplit | None, kind: FileKind, left_out: LeftOut) -> Named:
    classes = subfolders(parent)
    if not classes:
        files = kind.find(parent, Counter())
        found = f"{len(files):,} {kind.name}s but no folders" if files else f"no folders and no {kind.name}s"
        raise FileTableError(f"{parent} contains {found}, so the classes are unknown. {kind.layout}. {kind.hint}")
    named: Named = {}
    home = root.resolve()
    for name in classes:
        unused: LeftOut = Counter()
        files = kind.find(parent / name, unused)
        if not files and any(what not in ("hidden file", "hidden, foreign or preview folder") for what in unused):
            listed = ", ".join(f"{count:,} {what}" for what, count in unused.most_common())
            raise FileTableError(
                f"The class folder {printable(parent / name)} has no {kind.name}s (files ending in "
                f"{', '.join(kind.suffixes)}), but {listed}. Convert these files, or remove the folder."
            )
        if not files:
            unused["empty class folder"] += 1
        left_out.update(unused)
        for file in files:
            check_inside(file, home)
            named[PurePosixPath(file.relative_to(root).as_posix())] = (name, split)
    if not named:
        raise FileTableError(f"The folders in {parent} contain no {kind.name}s. {kind.layout}.")
    return named
