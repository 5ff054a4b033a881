"""Something-Something-V2 (Goyal et al. 2017; 20BN, now Qualcomm) in its official layout.

    something-something-v2-labels.json       {"Pushing something from left to right": "94", ...}, 174 classes
    something-something-v2-train.json        [{"id": "78687", "template": "Pushing [something] ...", ...}, ...], 168,913
    something-something-v2-validation.json   24,777
    20bn-something-something-v2/78687.webm   VP9, about 4 seconds

The class of a video is its template without brackets. The labels of the official test set are hidden, so every
published number is one of the validation set: here that is the split `test`, and `val` is part of the training set.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from replora.datasets.common.labeled_files import FileSplit, FileTable
from replora.datasets.common.text_files import read_json
from replora.datasets.errors import DatasetNotFoundError, ListFileError
from replora.datasets.video.listed_videos import listed_videos
from replora.errors import nearest

CLASSES = 174
SIZES = {"train": 168_913, "validation": 24_777}
SPLITS: dict[str, FileSplit] = {"train": "train", "validation": "test"}
# The official names, and those of the later archive.
LIST_NAMES = ("something-something-v2-{}.json", "{}.json")
LIST_FOLDERS = ("", "labels", "annotations")
VIDEO_FOLDERS = ("20bn-something-something-v2", "videos", "frames", "")
SOURCE = "Videos and lists are at https://www.qualcomm.com/developer/software/something-something-v-2-dataset"


def read_ssv2(root: Path, check_sizes: bool = True) -> FileTable:
    """Training and validation videos with their classes; no video is opened.

    Args:
        root: Folder that contains the lists and the folder of videos (`20bn-something-something-v2`, `videos`), or of
            frames (`frames/{id}/00001.jpg`).
        check_sizes: Whether to compare the numbers of classes and videos with the official ones.

    Returns:
        The official training videos as `train` and the official validation videos as `test`.

    Raises:
        DatasetNotFoundError: A list or the folder of videos is not found.
        ListFileError: A list is corrupt or contains an unknown template, or listed videos are missing.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DatasetNotFoundError(
            f"There is no folder {root} (looked in {Path.cwd()}). Set --data.root or the environment variable "
            f"REPLORA_DATA to the folder that contains {LIST_NAMES[0].format('labels')}. {SOURCE}"
        )
    class_of = _read_classes(_find_list(root, "labels"))
    if check_sizes and len(class_of) != CLASSES:
        raise ListFileError(
            f"{_find_list(root, 'labels')} has {len(class_of):,} classes, but Something-Something-V2 has {CLASSES}. "
            f"To use smaller data: --data.check_sizes false. {SOURCE}"
        )
    videos: dict[PurePosixPath, tuple[int, FileSplit]] = {}
    for name, split in SPLITS.items():
        file = _find_list(root, name)
        listed = _read_list(file, class_of)
        if check_sizes and len(listed) != SIZES[name]:
            raise ListFileError(
                f"{file} lists {len(listed):,} videos, but the official list has {SIZES[name]:,}. To use "
                f"smaller data: --data.check_sizes false. {SOURCE}"
            )
        if twice := sorted(listed.keys() & videos.keys()):
            raise ListFileError(f"{file}: the video {twice[0].stem!r} is also a training video.")
        videos |= {path: (label, split) for path, label in listed.items()}
    class_names = sorted(class_of, key=lambda template: class_of[template])
    return listed_videos(root, VIDEO_FOLDERS, videos, class_names, SOURCE)


def _find_list(root: Path, name: str) -> Path:
    for folder in LIST_FOLDERS:
        for pattern in LIST_NAMES:
            if (file := root / folder / pattern.format(name)).is_file():
                return file
    there = ", ".join(
        sorted(str(path.relative_to(root)) for path in [*root.glob("*.json"), *root.glob("*/*.json")])[:8]
    )
    raise DatasetNotFoundError(
        f"{root} has no {LIST_NAMES[0].format(name)}, neither there nor in {' or '.join(LIST_FOLDERS[1:])}; JSON files "
        f"found: {there or 'none'}. {SOURCE}"
    )


def _read_classes(file: Path) -> dict[str, int]:
    """Template without brackets -> class."""
    content = read_json(file, ListFileError, f"Download it again. {SOURCE}")
    try:
        class_of = {str(template): int(number) for template, number in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ListFileError(f'{file} is not a table {{"template": "number"}} ({error}). {SOURCE}') from error
    if sorted(class_of.values()) != list(range(len(class_of))):
        raise ListFileError(f"{file}: the classes are not numbered 0 to {len(class_of) - 1}. {SOURCE}")
    return class_of


def _read_list(file: Path, class_of: dict[str, int]) -> dict[PurePosixPath, int]:
    """Name of a video, `{id}.webm` -> class."""
    content = read_json(file, ListFileError, f"Download it again. {SOURCE}")
    listed: dict[PurePosixPath, int] = {}
    for position, item in enumerate(content if isinstance(content, list) else [None]):
        try:
            number, template = str(item["id"]), item["template"].replace("[", "").replace("]", "")
        except (TypeError, KeyError, AttributeError) as error:
            raise ListFileError(f"{file}: entry {position} has no `id` and `template`. {SOURCE}") from error
        if not number.isalnum():
            raise ListFileError(f"{file}: entry {position} has the id {number!r}, which is not a file name.")
        if template not in class_of:
            raise ListFileError(
                f"{file}: entry {position} has the template {template!r}, which is not a class. "
                f"{nearest(template, class_of)} Take the lists from one source."
            )
        path = PurePosixPath(f"{number}.webm")
        if path in listed:
            raise ListFileError(f"{file}: entry {position} repeats the video {number!r}. {SOURCE}")
        listed[path] = class_of[template]
    return listed
