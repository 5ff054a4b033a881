"""VTAB-1K (Zhai et al. 2019, arXiv 1910.04867): 19 tasks with 1,000 training images each, in the archive's layout.

NOAH's `data/vtab-source/get_vtab1k.py` writes the archive, and most published rows were measured on it:

    vtab-1k/<folder>/train800.txt  val200.txt  train800val200.txt  test.txt     lines: images/train800/000000.jpg 7
    vtab-1k/<folder>/images/{train800,val200,train800val200,test}/%06d.jpg      JPEG of quality 75
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, TypedDict, get_args

from replora.datasets.common.list_folder import find_folder, hash_lists, listed
from replora.datasets.common.paths import inner_path, missing_files
from replora.datasets.common.text_files import read_text
from replora.datasets.errors import DatasetNotFoundError, ListFileError, UnknownTaskError
from replora.datasets.image.image_files import ImageFiles
from replora.datasets.image.read import ImageReader
from replora.errors import RepLoRAError, nearest

VTABSplit = Literal["train800", "val200", "train800val200", "test"]
VTABGroup = Literal["natural", "specialized", "structured"]

SPLITS: tuple[VTABSplit, ...] = get_args(VTABSplit)
LISTS = [f"{split}.txt" for split in SPLITS]
READER = ImageReader()

ARCHIVE_SOURCES = (
    "Build the archive with data/vtab-source/get_vtab1k.py of https://github.com/ZhangYuanhan-AI/NOAH, or download it "
    "by the link in the README of https://github.com/luogen1996/RepAdapter or from "
    "https://huggingface.co/datasets/XiN0919/VTAB-1k"
)


@dataclass(frozen=True)
class VTABTask:
    """A data set in the archive's layout: one of the 19 tasks, or a custom one without group, sizes and rule."""

    name: str  # name of the task and of its folder in the archive
    group: VTABGroup | None
    num_classes: int
    test_size: int | None = None
    label_rule: str = ""  # how the label follows from the original annotation
    aliases: tuple[str, ...] = ()  # names of the task in other code, which its folder may have

    @property
    def folders(self) -> tuple[str, ...]:
        """Names that the folder may have; the first one found is used."""
        return (self.name, *self.aliases)

    def size(self, split: VTABSplit) -> int | None:
        """The number of images of a split, or None for a custom data set."""
        if self.test_size is None:
            return None
        return {"train800": 800, "val200": 200, "train800val200": 1000, "test": self.test_size}[split]


def _table(*tasks: VTABTask) -> dict[str, VTABTask]:
    return {task.name: task for task in tasks}


# Classes and test sizes: google-research/task_adaptation, data/*_test.py (`expected_num_samples`), and the class counts
# of NOAH's lib/datasets.py. Order: the columns of the published tables.
VTAB_TASKS: dict[str, VTABTask] = _table(
    VTABTask("cifar", "natural", 100, 10_000, "CIFAR-100 fine label", ("cifar100",)),
    VTABTask("caltech101", "natural", 102, 6_084, "101 objects and a background class"),
    VTABTask("dtd", "natural", 47, 1_880, "texture, fold 1 of the official partition"),
    VTABTask("oxford_flowers102", "natural", 102, 6_149, "flower species", ("flowers102",)),
    VTABTask("oxford_iiit_pet", "natural", 37, 3_669, "breed", ("oxford_pet", "pets", "pet")),
    VTABTask("svhn", "natural", 10, 26_032, "digit of the cropped house number, without the extra set"),
    VTABTask("sun397", "natural", 397, 21_750, "scene, random split of TFDS"),
    VTABTask("patch_camelyon", "specialized", 2, 32_768, "tumor tissue or none", ("camelyon",)),
    VTABTask("eurosat", "specialized", 10, 5_400, "land use, RGB bands"),
    VTABTask("resisc45", "specialized", 45, 6_300, "scene from above"),
    VTABTask(
        *("diabetic_retinopathy", "specialized", 5, 42_670),
        "grade 0..4 (btgraham-300); always answering the largest class scores about 73.6 %",
        ("retinopathy",),
    ),
    VTABTask("clevr_count", "structured", 8, 15_000, "number of objects minus 3 (3..10 -> 0..7)"),
    VTABTask(
        *("clevr_dist", "structured", 6, 15_000, "distance of the closest object, bin edges 8.0, 8.5, 9.0, 9.5, 10.0"),
        ("clevr_distance",),
    ),
    VTABTask("dmlab", "structured", 6, 22_735, "{close, far, very far} x {positive, negative reward}"),
    VTABTask(
        *("kitti", "structured", 4, 711),
        "distance of the closest car, van or truck: bin edges 8 m and 20 m; class 3 = no vehicle",
    ),
    VTABTask("dsprites_loc", "structured", 16, 73_728, "floor(label_x_position / 2)", ("dsprites_position",)),
    VTABTask("dsprites_ori", "structured", 16, 73_728, "floor(label_orientation / 2.5)", ("dsprites_orientation",)),
    VTABTask("smallnorb_azi", "structured", 18, 12_150, "label_azimuth", ("smallnorb_azimuth",)),
    VTABTask("smallnorb_ele", "structured", 9, 12_150, "label_elevation", ("smallnorb_elevation",)),
)


def vtab_task(name: str, num_classes: int | None = None) -> VTABTask:
    """The task of this name or, with `num_classes`, a custom data set in the folder of this name.

    Raises:
        UnknownTaskError: The name is not one of the 19, without `num_classes`, or `num_classes` contradicts the table.
    """
    if task := VTAB_TASKS.get(name):
        if num_classes not in (None, task.num_classes):
            raise UnknownTaskError(
                f"num_classes={num_classes} was given for the task {name!r}, which has {task.num_classes} classes. "
                "Leave num_classes out for the 19 tasks of VTAB-1K, or rename the custom data set."
            )
        return task
    for known in VTAB_TASKS.values():
        if name in known.aliases:
            raise UnknownTaskError(
                f"The task {name!r} is called {known.name!r} here. Use {known.name!r}; the folder may keep the name "
                f"{name!r}."
            )
    if num_classes is None:
        raise UnknownTaskError(
            f"{name!r} is not one of the 19 tasks of VTAB-1K. {nearest(name, VTAB_TASKS)} For a custom data set in "
            f"the same layout, set its folder and its number of classes: task={name!r} and num_classes=..."
        )
    if num_classes < 1:
        raise UnknownTaskError(f"num_classes={num_classes} was given for {name!r}, but at least one class is needed.")
    if name in ("", ".", "..") or PureWindowsPath(name).name != name:
        raise UnknownTaskError(f"task={name!r} is a path. A task is the name of a folder; set the path to it as root.")
    return VTABTask(name, None, num_classes)


class VTAB(ImageFiles):
    """One split of one task.

    The constructor checks everything except the pixels: the folder, the list file, its paths and labels, and the
    existence and number of the images.

    Args:
        root: Folder that holds the folders of the tasks, or its parent if it is called `vtab-1k`.
        task: One of `VTAB_TASKS`, or the folder of a custom data set in the same layout.
        split: Name of the list file without `.txt`.
        num_classes: Number of classes (>= 1) of a custom data set.
        reader: Reader of the images.
        check_sizes: Whether to compare the number of images with the table (the 19 tasks only).

    Raises:
        UnknownTaskError: The task is unknown or contradicts the table, see `vtab_task`.
        DatasetNotFoundError: The folder or the list file is missing.
        ListFileError: The list file is invalid.
    """

    def __init__(
        self,
        root: str | Path,
        task: str,
        split: VTABSplit,
        num_classes: int | None = None,
        reader: ImageReader = READER,
        check_sizes: bool = True,
    ) -> None:
        if split not in SPLITS:
            raise DatasetNotFoundError(f"VTAB-1K has no split {split!r}. {nearest(split, SPLITS)}")
        self.task = vtab_task(task, num_classes)
        self.split = split
        self.reader = reader
        self.class_names = [str(label) for label in range(self.task.num_classes)]
        self.folder = self.home = find_task_folder(Path(root), self.task)
        self.list_file = self.home / f"{split}.txt"
        entries = _read_list(self.list_file, self.task)
        self.paths = [path for path, _ in entries.values()]
        self.labels = [label for _, label in entries.values()]
        self._check_disjoint()
        if check_sizes:
            self._check_size()
        if missing := missing_files(self.home, self.paths, root=Path(root).expanduser()):
            line_of = {path: line for line, (path, _) in entries.items()}
            first = ", ".join(f"{path} (line {line_of[path]})" for path in missing[:3])
            raise ListFileError(
                f"{self.list_file}: {len(missing):,} of {len(self):,} images are missing in {self.home}, the first: "
                f"{first}. Copy or extract the folder again from its source."
            )

    def _check_disjoint(self) -> None:
        """Check that no image is both in a list that is trained on and in one that is evaluated."""
        others = {"train800": ("val200", "test"), "val200": ("train800", "test"), "train800val200": ("test",)}
        for name in others.get(self.split, ("train800", "val200", "train800val200")):
            file = self.home / f"{name}.txt"
            if not file.is_file():
                continue
            try:
                other = {path for path, _ in _read_list(file, self.task).values()}
            except ListFileError:  # reported when that list is used
                continue
            if shared := other & set(self.paths):
                raise ListFileError(
                    f"{self.list_file} and {file.name} share {len(shared):,} images, the first: {min(shared)}. A model "
                    "must not be trained on test images. Copy or extract the lists again from their source."
                )

    def _check_size(self) -> None:
        expected = self.task.size(self.split)
        if expected is not None and len(self) != expected:
            raise ListFileError(
                f"{self.list_file} lists {len(self):,} images, but {self.split} of {self.task.name} has {expected:,}: "
                "the copy is incomplete or another data set. check_sizes=False accepts it, but its results are then "
                "not those of VTAB-1K."
            )


def find_task_folder(root: Path, task: VTABTask) -> Path:
    """The folder of a task in `root` or in `root/vtab-1k`, see `find_folder`."""
    layout = (
        f"{task.name}/{{{','.join(SPLITS)}}}.txt with lines like `images/train800/000000.jpg 7`, and the listed images "
        f"in {task.name}/images/"
    )
    return find_folder(root, task.folders, "vtab-1k", LISTS, layout, "" if task.group is None else ARCHIVE_SOURCES)


def lists_sha256(folder: Path) -> str:
    """SHA-256 of the list files of a task, which identifies the images and labels of a result."""
    return hash_lists(folder, LISTS)


class VTABAverages(TypedDict):
    """The averages in papers; `mean_of_groups` and `mean_of_tasks` differ by about two points."""

    natural: float
    specialized: float
    structured: float
    mean_of_groups: float
    mean_of_tasks: float


def vtab_averages(per_task: Mapping[str, float]) -> VTABAverages:
    """Group means of the 19 accuracies in any unit, the mean of the three groups, and the mean of all 19.

    NOAH, FacT, SSF, RepAdapter and Adapter+ print the mean of the three groups; some tables print the mean of the 19.

    Raises:
        RepLoRAError: A task is missing or unknown.
    """
    unknown = [name for name in per_task if name not in VTAB_TASKS]
    if unknown:
        raise RepLoRAError(f"{unknown[0]!r} is not one of the 19 tasks of VTAB-1K. {nearest(unknown[0], VTAB_TASKS)}")
    missing = [name for name in VTAB_TASKS if name not in per_task]
    if missing:
        raise RepLoRAError(
            f"The averages of VTAB-1K need all 19 tasks; {len(missing)} are missing: {', '.join(missing)}."
        )
    groups = {
        group: _mean([per_task[task.name] for task in VTAB_TASKS.values() if task.group == group])
        for group in get_args(VTABGroup)
    }
    return {
        "natural": groups["natural"],
        "specialized": groups["specialized"],
        "structured": groups["structured"],
        "mean_of_groups": _mean(list(groups.values())),
        "mean_of_tasks": _mean(list(per_task.values())),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _read_list(list_file: Path, task: VTABTask) -> dict[int, tuple[PurePosixPath, int]]:
    """Line number -> path and label, without blank lines."""
    try:
        text = read_text(list_file, ListFileError)
    except OSError as error:
        there = sorted(path.name for path in list_file.parent.glob("*.txt"))
        raise DatasetNotFoundError(
            f"The list file {list_file} cannot be read ({error.strerror}); list files found there: {listed(there)}. "
            f"A task needs {', '.join(LISTS)}."
        ) from error
    entries: dict[int, tuple[PurePosixPath, int]] = {}
    lines: dict[PurePosixPath, int] = {}  # path -> its line
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        matched = re.fullmatch(r"(.*\S)\s+(-?[0-9]{1,18})", line.strip())
        if matched is None:
            raise ListFileError(
                f"{list_file}, line {number}: {line.strip()!r} is not a path, a space and an integer "
                "like `images/train800/000000.jpg 7`."
            )
        path, label = matched[1], int(matched[2])
        if not 0 <= label < task.num_classes:
            raise ListFileError(
                f"{list_file}, line {number}: label {label}, but {task.name} has {task.num_classes} classes "
                f"(labels 0 to {task.num_classes - 1})."
            )
        inner = inner_path(path, f"{list_file}, line {number}")
        if (first := lines.setdefault(inner, number)) != number:
            raise ListFileError(
                f"{list_file}, line {number}: {path} is listed twice; line {first} has it already. An image has one "
                "label: copy or extract the list again from its source."
            )
        entries[number] = inner, label
    if not entries:
        raise ListFileError(f"{list_file} lists no images. Copy or extract it again from its source.")
    return entries
