"""HMDB51 (Kuehne et al. 2011) with its three official splits.

    testTrainMulti_7030_splits/brush_hair_test_split1.txt   lines of NAME.avi and 1 (train), 2 (test), 0 (unused)
    videos/brush_hair/NAME.avi                              51 folders, named as the classes

A split has 70 training and 30 test videos per class. Clips of one film stay together, also when `val` is taken from the
training videos, because clips of one scene are too similar.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath
from typing import Literal

from replora.datasets.common.labeled_files import FileSplit, FileTable
from replora.datasets.common.text_files import read_text
from replora.datasets.errors import DatasetNotFoundError, ListFileError
from replora.datasets.video.listed_videos import listed_videos

log = logging.getLogger(__name__)

OfficialSplit = Literal[1, 2, 3]

CLASSES = 51
PER_CLASS: dict[FileSplit, int] = {"train": 70, "test": 30}
LIST_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits", "splits", "")
VIDEO_FOLDERS = ("videos", "hmdb51_org", "hmdb51", "frames", "")
# Visible body, camera, people, viewpoint, quality, number: FILM_CLASS_u_nm_np1_ba_goo_0.
PROPERTIES = re.compile(r"(.+)_[^_]+_[a-z]_[a-z]{2}_np\d+_[a-z]{2}_[a-z]{3}_\d+(?:\.\w+)?")
SOURCE = (
    "Videos (hmdb51_org.rar, and in it an archive for each class) and splits (test_train_splits.rar) are at "
    "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
)


def read_hmdb51(root: Path, split: OfficialSplit = 1, check_sizes: bool = True) -> FileTable:
    """The videos of one official split with their classes; no video is opened.

    Args:
        root: Folder that contains the folders of the lists and of the videos.
        split: Number of the official split: 1, 2 or 3.
        check_sizes: Whether to require 51 classes with 70 and 30 videos each.

    Returns:
        The official training videos as `train` and the official test videos as `test`, without unused ones.

    Raises:
        DatasetNotFoundError: The lists or the videos are not found.
        ListFileError: A list is corrupt or has the wrong size, or listed videos are missing.
    """
    root = Path(root).expanduser()
    if split not in (1, 2, 3):
        raise ListFileError(f"split={split} does not exist. HMDB51 has the official splits 1, 2 and 3.")
    lists = _find_lists(root, split)
    class_names = sorted(lists)
    if check_sizes and len(class_names) != CLASSES:
        raise ListFileError(
            f"{next(iter(lists.values())).parent} has lists of {len(class_names)} classes for split {split}, but "
            f"HMDB51 has {CLASSES}. To use smaller data: --data.check_sizes false. {SOURCE}"
        )
    videos: dict[PurePosixPath, tuple[int, FileSplit]] = {}
    for label, name in enumerate(class_names):
        listed = _read_list(lists[name])
        for part, expected in PER_CLASS.items():
            found = sum(own == part for own in listed.values())
            if check_sizes and found != expected:
                raise ListFileError(
                    f"{lists[name]} lists {found} videos for {part}, but a split of HMDB51 has {expected}. {SOURCE}"
                )
        videos |= {PurePosixPath(name, file): (label, part) for file, part in listed.items()}
    table = listed_videos(root, VIDEO_FOLDERS, videos, class_names, SOURCE)
    if alone := [path for path in table.paths if film_of(path) == path.name]:
        log.warning(
            "%s of %s names, such as %s, do not contain their film: clips of one film may be in both train and val",
            *(f"{len(alone):,}", f"{len(table.paths):,}", alone[0]),
        )
    return table


def film_of(path: PurePosixPath) -> str:
    """The film of a clip: `FILM_brush_hair_u_nm_np1_ba_goo_0.avi` -> `FILM`.

    A name that does not contain its class is cut before the six labels and the number at its end; a name without these
    is its own film.
    """
    film, found, _ = path.name.partition(f"_{path.parent.name}_")
    if found:
        return film
    parts = PROPERTIES.fullmatch(path.name)
    return parts[1] if parts else path.name


def _find_lists(root: Path, split: int) -> dict[str, Path]:
    """Class -> its list."""
    ending = f"_test_split{split}.txt"
    for folder in LIST_FOLDERS:
        home = root / folder
        if lists := {path.name.removesuffix(ending): path for path in sorted(home.glob(f"*{ending}"))}:
            return lists
    raise DatasetNotFoundError(
        f"{root} has no lists CLASS{ending}, neither there nor in {', '.join(LIST_FOLDERS[:-1])} (looked in "
        f"{Path.cwd()}). Set --data.root or the environment variable REPLORA_DATA to the folder that contains "
        f"{LIST_FOLDERS[0]} and videos. {SOURCE}"
    )


def _read_list(file: Path) -> dict[str, FileSplit]:
    """Name of a video -> split."""
    parts: dict[str, FileSplit | None] = {"0": None, "1": "train", "2": "test"}
    listed: dict[str, FileSplit] = {}
    seen: set[str] = set()
    for number, line in enumerate(read_text(file, ListFileError).split("\n"), start=1):
        if not line.strip():
            continue
        name, _, part = line.strip().rpartition(" ")
        if part not in parts or not name or "/" in name:
            raise ListFileError(f"{file}, line {number}: {line!r} is not a file name and 0, 1 or 2. {SOURCE}")
        if name.strip() in seen:
            raise ListFileError(f"{file}, line {number}: {name.strip()} is listed twice. {SOURCE}")
        seen.add(name.strip())
        own = parts[part]
        if own is not None:
            listed[name.strip()] = own
    return listed
