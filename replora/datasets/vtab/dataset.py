"""VTAB-1K (Zhai et al. 2019, arXiv 1910.04867): 19 tasks of 1,000 training images, read from the archive's folders.

The archive is what NOAH's `data/vtab-source/get_vtab1k.py` writes, and what most published rows were measured on:

    vtab-1k/<folder>/train800.txt  val200.txt  train800val200.txt  test.txt     lines: images/train800/000000.jpg 7
    vtab-1k/<folder>/images/{train800,val200,train800val200,test}/%06d.jpg      JPEG of quality 75
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, TypedDict, get_args

from replora.datasets.common.paths import how_to_allow, is_allowed
from replora.datasets.common.text_files import read_text
from replora.datasets.errors import DatasetNotFoundError, ListFileError, UnknownTaskError
from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageDataset, ImageSample
from replora.errors import RepLoRAError, nearest

VTABSplit = Literal["train800", "val200", "train800val200", "test"]
VTABGroup = Literal["natural", "specialized", "structured"]

SPLITS: tuple[VTABSplit, ...] = get_args(VTABSplit)
READER = ImageReader()

ARCHIVE_SOURCES = (
    "Build the archive with data/vtab-source/get_vtab1k.py of https://github.com/ZhangYuanhan-AI/NOAH, or download it "
    "by the link in the README of https://github.com/luogen1996/RepAdapter or from "
    "https://huggingface.co/datasets/XiN0919/VTAB-1k"
)


@dataclass(frozen=True)
class VTABTask:
    """A data set in the archive layout: one of the 19, or another one, whose group, sizes and rule are not known."""

    name: str
    """Its name here, which is the folder that the archive's generator writes."""
    group: VTABGroup | None
    num_classes: int
    test_size: int | None = None
    label_rule: str = ""
    """How the label follows from the original annotation."""
    aliases: tuple[str, ...] = ()
    """What other code calls the task; accepted as the name of its folder."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The names that the folder may have; the first one found is used."""
        return (self.name, *self.aliases)

    def size(self, split: VTABSplit) -> int | None:
        """The number of images of a split, None for a data set outside the 19."""
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
    VTABTask("patch_camelyon", "specialized", 2, 32_768, "tumour tissue or none", ("camelyon",)),
    VTABTask("eurosat", "specialized", 10, 5_400, "land use, RGB bands"),
    VTABTask("resisc45", "specialized", 45, 6_300, "scene from above"),
    VTABTask(
        "diabetic_retinopathy",
        "specialized",
        5,
        42_670,
        "grade 0..4 (btgraham-300); always answering the largest class scores about 73.6 %",
        ("retinopathy",),
    ),
    VTABTask("clevr_count", "structured", 8, 15_000, "number of objects minus 3 (3..10 -> 0..7)"),
    VTABTask(
        "clevr_dist",
        "structured",
        6,
        15_000,
        "distance of the closest object, bin edges 8.0, 8.5, 9.0, 9.5, 10.0",
        ("clevr_distance",),
    ),
    VTABTask("dmlab", "structured", 6, 22_735, "{close, far, very far} x {positive, negative reward}"),
    VTABTask(
        "kitti",
        "structured",
        4,
        711,
        "distance of the closest car, van or truck: bin edges 8 m and 20 m; class 3 = no vehicle",
    ),
    VTABTask("dsprites_loc", "structured", 16, 73_728, "floor(label_x_position / 2)", ("dsprites_position",)),
    VTABTask("dsprites_ori", "structured", 16, 73_728, "floor(label_orientation / 2.5)", ("dsprites_orientation",)),
    VTABTask("smallnorb_azi", "structured", 18, 12_150, "label_azimuth", ("smallnorb_azimuth",)),
    VTABTask("smallnorb_ele", "structured", 9, 12_150, "label_elevation", ("smallnorb_elevation",)),
)


def vtab_task(name: str, num_classes: int | None = None) -> VTABTask:
    """The task of this name, or, with `num_classes`, a data set outside the 19 in the folder of this name.

    Raises:
        UnknownTaskError: not one of the 19 and without `num_classes`, or `num_classes` is not that of the table.
    """
    if task := VTAB_TASKS.get(name):
        if num_classes not in (None, task.num_classes):
            raise UnknownTaskError(
                f"num_classes={num_classes} was given for the task {name!r}, which has {task.num_classes} classes. "
                "Leave num_classes out for the 19 tasks of VTAB-1K, or name a data set of your own differently."
            )
        return task
    for known in VTAB_TASKS.values():
        if name in known.aliases:
            raise UnknownTaskError(
                f"The task {name!r} is called {known.name!r} here: ask for {known.name!r}. The folder may keep the "
                f"name {name!r}, it is found all the same."
            )
    if num_classes is None:
        raise UnknownTaskError(
            f"{name!r} is none of the 19 tasks of VTAB-1K. {nearest(name, VTAB_TASKS)} A data set outside the 19 in "
            f"the same layout works by naming its folder and its number of classes: task={name!r} and num_classes=..."
        )
    if num_classes < 1:
        raise UnknownTaskError(f"num_classes={num_classes} was given for {name!r}: at least one class is needed.")
    if name in ("", ".", "..") or PureWindowsPath(name).name != name:
        raise UnknownTaskError(
            f"task={name!r} is a path. A task is the name of one folder; the path to it belongs into root."
        )
    return VTABTask(name, None, num_classes)


class VTAB(ImageDataset):
    """One split of one task.

    Everything but the pixels is checked here: that the folder and the list file exist, that each line is a path and a
    label of the task, that no path leaves the data, that every image is there and how many there are.

    Args:
        root: the folder that holds the folders of the tasks, or its parent if it is called `vtab-1k`.
        task: one of `VTAB_TASKS`, or the folder of another data set in the same layout.
        split: the list file, without `.txt`.
        num_classes: for a data set outside the 19 only.
        reader: what makes a tensor of an image file.
        check_sizes: compare the number of images with the table (the 19 tasks only).

    Raises:
        UnknownTaskError: see `vtab_task`.
        DatasetNotFoundError: no such folder or list file.
        ListFileError: what the list file says cannot be right.
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
        self.folder = find_task_folder(Path(root), self.task)
        self.list_file = self.folder / f"{split}.txt"
        entries = _read_list(self.list_file, self.task)
        self.paths = [path for path, _ in entries.values()]
        self.labels = [label for _, label in entries.values()]
        self._check_disjoint()
        if check_sizes:
            self._check_size()
        _check_images(self.list_file, {line: path for line, (path, _) in entries.items()}, Path(root).expanduser())

    def __getitem__(self, index: int) -> ImageSample:
        """The sample; `index` is the position in the list file.

        Raises:
            CorruptImageError: the file cannot be decoded.
        """
        index = range(len(self))[index]
        image = self.reader.read(self.folder / self.paths[index])
        return {"image": image, "label": self.labels[index], "index": index}

    def _check_disjoint(self) -> None:
        """No image of this split is in the list of one that is evaluated on others, or trained on."""
        others = {"train800": ("val200", "test"), "val200": ("train800", "test"), "train800val200": ("test",)}
        for name in others.get(self.split, ("train800", "val200", "train800val200")):
            file = self.folder / f"{name}.txt"
            if not file.is_file():
                continue
            try:
                listed = {path for path, _ in _read_list(file, self.task).values()}
            except ListFileError:  # told where that list is used
                continue
            if shared := listed & set(self.paths):
                raise ListFileError(
                    f"{self.list_file} and {file.name} share {len(shared):,} images, the first: {min(shared)}. What is "
                    "tested must not be trained on: copy or extract the lists again from their source."
                )

    def _check_size(self) -> None:
        expected = self.task.size(self.split)
        if expected is not None and len(self) != expected:
            raise ListFileError(
                f"{self.list_file} lists {len(self):,} images, but {self.split} of {self.task.name} has {expected:,}: "
                "the copy is incomplete or another data set. check_sizes=False uses it all the same; its results are "
                "then not those of VTAB-1K."
            )


def find_task_folder(root: Path, task: VTABTask) -> Path:
    """The folder of a task in `root` or in `root/vtab-1k`, under its name or an alias.

    Raises:
        DatasetNotFoundError: with what is there instead, the layout expected and where the archive comes from.
    """
    root = root.expanduser()
    for parent in (root, root / "vtab-1k"):
        for name in task.folders:
            if (parent / name).is_dir():
                return parent / name
    if not root.is_dir():
        found = f"{root} is not a folder" if root.exists() else f"the folder {root} does not exist"
    elif _is_task_folder(root):
        found = f"{root} is itself the folder of a task: give the folder above it, {root.resolve().parent}"
    else:
        found = "; ".join(
            f"{parent} holds {_listed(sorted(entry.name for entry in parent.iterdir() if entry.is_dir()))}"
            for parent in (root, root / "vtab-1k")
            if parent.is_dir()
        )
    source = "" if task.group is None else f"\n  source:    {ARCHIVE_SOURCES}"
    raise DatasetNotFoundError(
        f"The data of the task {task.name!r} were not found.\n"
        f"  asked for: a folder {' or '.join(task.folders)} in {root} or in {root / 'vtab-1k'}\n"
        f"  found:     {found}\n"
        f"  expected:  {task.name}/{{{','.join(SPLITS)}}}.txt with lines like `images/train800/000000.jpg 7`, and the "
        f"images they name in {task.name}/images/\n"
        f"  remedy:    give the folder above {task.name} as root (--data.root, or the environment variable "
        f"REPLORA_DATA){source}"
    )


def lists_sha256(folder: Path) -> str:
    """SHA-256 over the list files of a task, in the order of `SPLITS`: which images and labels a result is about."""
    digest = hashlib.sha256()
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


class VTABAverages(TypedDict):
    """The averages that papers print; `mean_of_groups` and `mean_of_tasks` differ by about two points."""

    natural: float
    specialized: float
    structured: float
    mean_of_groups: float
    mean_of_tasks: float


def vtab_averages(per_task: Mapping[str, float]) -> VTABAverages:
    """Group means of the 19 accuracies, the mean of the three groups, and the plain mean of the 19.

    NOAH, FacT, SSF, RepAdapter and Adapter+ print the mean of the three groups; some tables print the mean of the 19.

    Args:
        per_task: task -> accuracy, in any unit.

    Raises:
        RepLoRAError: a task is missing or unknown (a mean over fewer tasks cannot be compared).
    """
    unknown = [name for name in per_task if name not in VTAB_TASKS]
    if unknown:
        raise RepLoRAError(f"{unknown[0]!r} is none of the 19 tasks of VTAB-1K. {nearest(unknown[0], VTAB_TASKS)}")
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
    """Line number -> path and label, blank lines left out."""
    try:
        text = read_text(list_file, ListFileError)
    except OSError as error:
        there = sorted(path.name for path in list_file.parent.glob("*.txt"))
        raise DatasetNotFoundError(
            f"The list file {list_file} cannot be read ({error.strerror}); list files found there: {_listed(there)}. "
            f"A task needs {', '.join(f'{split}.txt' for split in SPLITS)}."
        ) from error
    entries: dict[int, tuple[PurePosixPath, int]] = {}
    lines: dict[PurePosixPath, int] = {}  # path -> its line
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        matched = re.fullmatch(r"(.*\S)\s+(-?[0-9]{1,18})", line.strip())
        if matched is None:
            raise ListFileError(
                f"{list_file}, line {number}: {line.strip()!r} is not a path, a space and a whole number, "
                "like `images/train800/000000.jpg 7`."
            )
        path, label = matched[1], int(matched[2])
        if not 0 <= label < task.num_classes:
            raise ListFileError(
                f"{list_file}, line {number}: label {label}, but {task.name} has {task.num_classes} classes "
                f"(labels 0 to {task.num_classes - 1})."
            )
        windows = PureWindowsPath(path)  # splits at / and at \, knows drives
        if windows.anchor or ".." in windows.parts:
            raise ListFileError(
                f"{list_file}, line {number}: the path {path!r} leaves the data. Paths are relative to "
                f"{list_file.parent}, without `..`."
            )
        listed = PurePosixPath(windows.as_posix())
        if (first := lines.setdefault(listed, number)) != number:
            raise ListFileError(
                f"{list_file}, line {number}: {path} is listed twice; line {first} has it already. An image has one "
                "label: copy or extract the list again from its source."
            )
        entries[number] = listed, label
    if not entries:
        raise ListFileError(f"{list_file} lists no image. Copy or extract it again from its source.")
    return entries


def _check_images(list_file: Path, paths: dict[int, PurePosixPath], root: Path) -> None:
    """Every image is a file, inside the data. Each folder is listed once: one call for 73,728 files, not one a file."""
    folder = list_file.parent
    allowed = (folder.resolve(), root.resolve())
    files: dict[PurePosixPath, set[str]] = {}
    missing: list[tuple[int, PurePosixPath]] = []

    def stay_inside(path: Path) -> None:
        target = path.resolve()
        if not any(target.is_relative_to(parent) for parent in allowed) and not is_allowed(target):
            raise ListFileError(
                f"{list_file}: {path} is a link that leaves the data ({target} is not inside {allowed[-1]}). "
                f"Copy the images there, give the folder that holds both as root, or {how_to_allow(target)}"
            )

    for line, path in paths.items():
        if path.parent not in files:
            files[path.parent] = set()
            directory = folder / path.parent
            if directory.is_dir():
                stay_inside(directory)
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_file():
                            files[path.parent].add(entry.name)
                            if entry.is_symlink():
                                stay_inside(Path(entry.path))
        if path.name not in files[path.parent]:
            missing.append((line, path))
    if missing:
        first = ", ".join(f"{path} (line {line})" for line, path in missing[:3])
        raise ListFileError(
            f"{list_file}: {len(missing):,} of {len(paths):,} images are missing in {folder}, the first: {first}. "
            "Copy or extract the folder again from its source."
        )


def _is_task_folder(folder: Path) -> bool:
    return any((folder / f"{split}.txt").is_file() for split in SPLITS)


def _listed(names: list[str]) -> str:
    return (", ".join(names[:30]) + (", ..." if len(names) > 30 else "")) or "nothing"
