"""FGVC, five fine-grained data sets with the splits of VPT (Jia et al. 2022, arXiv 2203.12119).

VPT's `src/data/datasets/json_dataset.py` reads `train.json`, `val.json` and `test.json` in the folder of each data set,
each a table {path of an image: class}. The paths are relative to a folder of images:

    CUB_200_2011/{train,val,test}.json   images/001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg
    nabirds/{train,val,test}.json        images/0295/a_bird.jpg
    OxfordFlower/{train,val,test}.json   jpg/image_00001.jpg
    StanfordDogs/{train,val,test}.json   Images/n02085620-Chihuahua/n02085620_10074.jpg
    StanfordCars/{train,val,test}.json   car_ims/000001.jpg

VPT numbers the classes of each split file separately, so a class without a validation image would shift the labels
after it. Here the classes of `train.json` are numbered once, in ascending order, for all three files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from replora.datasets.common.list_folder import find_folder, hash_lists
from replora.datasets.common.paths import inner_path, missing_files
from replora.datasets.common.text_files import parse_json, read_json
from replora.datasets.errors import DatasetNotFoundError, ListFileError, UnknownTaskError
from replora.datasets.image.image_files import ImageFiles
from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageForm
from replora.errors import nearest

FGVCSplit = Literal["train", "val", "trainval", "test"]
SPLIT_FILES = ("train", "val", "test")
READER = ImageReader(interpolation="bilinear", framing="crop")

SPLIT_SOURCES = (
    "VPT's split files: https://drive.google.com/drive/folders/1mnvxTkYxmOr2W9QjcgS64UBpoJ4UmKaM, or "
    "https://huggingface.co/datasets/XiN0919/FGVC (json.zip)"
)


@dataclass(frozen=True)
class FGVCTask:
    """One of the five data sets."""

    name: str
    num_classes: int
    train_size: int
    val_size: int
    test_size: int
    folders: tuple[str, ...]  # names that its folder may have besides `name`, without regard to case
    image_roots: tuple[str, ...]
    """Folders that the paths may be relative to; the one with most images of the split is used."""
    images: str  # source of the images

    def size(self, split: FGVCSplit) -> int:
        """The number of images of a split."""
        sizes = {"train": self.train_size, "val": self.val_size, "test": self.test_size}
        return self.train_size + self.val_size if split == "trainval" else sizes[split]


# Classes: VPT's configurations. Sizes: VPT's table of data sets. train + val and test are the official splits; val is
# 10 % of the official training images, and the official validation set of the flowers.
FGVC_TASKS: dict[str, FGVCTask] = {
    task.name: task
    for task in (
        FGVCTask(
            *("cub_200_2011", 200, 5_394, 600, 5_794, ("CUB-200-2011", "cub200", "cub"), ("images", "")),
            "CUB_200_2011.tgz of https://www.vision.caltech.edu/datasets/cub_200_2011/",
        ),
        FGVCTask(
            *("nabirds", 555, 21_536, 2_393, 24_633, ("nabirds-dataset",), ("images", "")),
            "nabirds.tar.gz of https://dl.allaboutbirds.org/nabirds",
        ),
        FGVCTask(
            *("oxford_flowers", 102, 1_020, 1_020, 6_149),
            ("OxfordFlower", "OxfordFlowers", "oxford_flowers102", "flowers102", "flowers"),
            ("", "jpg", "images"),
            "102flowers.tgz of https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        ),
        FGVCTask(
            *("stanford_dogs", 120, 10_800, 1_200, 8_580, ("StanfordDogs", "stanford-dogs", "dogs")),
            ("Images", "images", ""),
            "images.tar of http://vision.stanford.edu/aditya86/ImageNetDogs/",
        ),
        FGVCTask(
            *("stanford_cars", 196, 7_329, 815, 8_041, ("StanfordCars", "stanford-cars", "cars"), ("",)),
            "car_ims.tgz of the Stanford Cars data set (one folder of 16,185 images, 000001.jpg to 016185.jpg)",
        ),
    )
}


def fgvc_task(name: str) -> FGVCTask:
    """The data set of this name. Raises UnknownTaskError if there is no such data set."""
    if name in FGVC_TASKS:
        return FGVC_TASKS[name]
    for task in FGVC_TASKS.values():
        if name.lower() in map(str.lower, (task.name, *task.folders)):
            raise UnknownTaskError(
                f"The data set {name!r} is called {task.name!r} here. Use {task.name!r}; its folder may keep the name."
            )
    raise UnknownTaskError(f"{name!r} is not one of the five FGVC data sets. {nearest(name, FGVC_TASKS)}")


class FGVC(ImageFiles):
    """One split of one data set.

    The constructor checks everything except the pixels: the folder, the split files, the classes, the paths, and the
    existence and number of the images.

    Args:
        root: Folder that holds the folders of the data sets, or its parent if it is called `fgvc`.
        task: Name of the data set, one of `FGVC_TASKS`.
        split: `train`, `val`, `trainval` (both) or `test`.
        reader: Reader of the images.
        form: How the images are read; other forms than squares are for an augmentation.
        check_sizes: Whether to compare the numbers of images and classes with the table.

    Raises:
        UnknownTaskError: There is no such data set.
        DatasetNotFoundError: A folder or split file is missing.
        ListFileError: A split file is invalid.
    """

    def __init__(
        self,
        root: str | Path,
        task: str,
        split: FGVCSplit,
        reader: ImageReader = READER,
        form: ImageForm = "square",
        check_sizes: bool = True,
    ) -> None:
        if split not in get_args(FGVCSplit):
            raise DatasetNotFoundError(f"FGVC has no split {split!r}. {nearest(split, get_args(FGVCSplit))}")
        self.task = fgvc_task(task)
        self.split = split
        self.reader = reader
        self.form = form
        self.folder = find_fgvc_folder(Path(root), self.task)
        names = ("train", "val") if split == "trainval" else (split,)
        files = {name: self.folder / f"{name}.json" for name in SPLIT_FILES}
        splits = {n: _read_split(file) for n, file in files.items() if n in ("train", *names) or file.is_file()}
        train = splits["train"]
        classes = self._number_classes(train, check_sizes)
        self.class_names = _class_names(train, classes, self.task.num_classes)
        entries: dict[PurePosixPath, int] = {}
        for name in names:
            if unknown := sorted(set(splits[name].values()) - classes.keys()):
                raise ListFileError(
                    f"{files[name]} has {len(unknown)} classes that train.json does not have, the first: {unknown[0]}. "
                    "The files belong to different splits. Take all three from one source."
                )
            if twice := entries.keys() & splits[name].keys():
                raise ListFileError(f"{files[name]} lists images of train.json again, the first: {min(twice)}.")
            entries |= {path: classes[key] for path, key in splits[name].items()}
        for name in splits.keys() - set(names):
            if shared := entries.keys() & splits[name].keys():
                raise ListFileError(
                    f"{self.folder}: {len(shared):,} images are in {split} and in {name}.json, the first: "
                    f"{min(shared)}. Take the three files from one source. {SPLIT_SOURCES}"
                )
        self.home = self._find_images(list(train), list(entries))
        self.paths = list(entries)
        self.labels = list(entries.values())
        if check_sizes and len(self) != self.task.size(split):
            raise ListFileError(
                f"{split} of {self.folder} has {len(self):,} images, but that of {self.task.name} has "
                f"{self.task.size(split):,}: these are not VPT's splits. check_sizes=False accepts them, but then "
                "results are not comparable."
            )

    def _number_classes(self, train: dict[PurePosixPath, int], check_sizes: bool) -> dict[int, int]:
        """Class in the file -> label in 0 .. num_classes - 1, from the training images."""
        found = sorted(set(train.values()))
        expected = self.task.num_classes
        if len(found) > expected or (check_sizes and len(found) < expected):
            raise ListFileError(
                f"{self.folder / 'train.json'} has {len(found)} classes, but {self.task.name} has {expected}. Take the "
                f"three files from one source. {SPLIT_SOURCES}"
            )
        return {key: label for label, key in enumerate(found)}

    def _find_images(self, train: list[PurePosixPath], wanted: list[PurePosixPath]) -> Path:
        """The folder that the paths are relative to, which holds every image of this split."""
        roots = [self.folder / name for name in self.task.image_roots]
        missing = [missing_files(root, wanted) for root in roots]
        best = min(range(len(roots)), key=lambda i: len(missing[i]))
        if not missing[best]:
            return roots[best]
        listed = ", ".join(map(str, missing[best][:3]))
        raise ListFileError(
            f"{self.folder}: {len(missing[best]):,} of {len(wanted):,} images of {self.split!r} are missing in "
            f"{roots[best]}, the first: {listed}. {self._hint(train)}The images come from {self.task.images}."
        )

    def _hint(self, train: list[PurePosixPath]) -> str:
        """A warning about the second numbering of Stanford Cars, whose files must not be renamed to the first."""
        if self.task.name != "stanford_cars":
            return ""
        other = [name for name in ("cars_train", "cars_test") if (self.folder / name).is_dir()]
        five = any(
            re.fullmatch(r"\d{5}\.jpg", file.name) for folder in {path.parent for path in train}
            for file in (self.folder / folder).glob("*.jpg")
        )  # fmt: skip
        if not other and not five:
            return ""
        seen = f"folders {' and '.join(other)}" if other else "file names of 5 digits"
        return (
            f"There are {seen}: this is the copy on Kaggle, which numbers training and test images separately, in 5 "
            "digits. Its 00001.jpg is not the car 000001.jpg of the split files, so do not rename the files. "
        )


def find_fgvc_folder(root: Path, task: FGVCTask) -> Path:
    """The folder of a data set in `root` or in `root/fgvc`, see `find_folder`."""
    layout = (
        f"{task.name}/{{train,val,test}}.json, each {{path: class}}, and the images in "
        f"{task.name}/{task.image_roots[0] or 'the folders of the paths'}"
    )
    source = f"{SPLIT_SOURCES}; images: {task.images}"
    return find_folder(root, (task.name, *task.folders), "fgvc", ["train.json"], layout, source)


def splits_sha256(folder: Path) -> str:
    """SHA-256 of the three split files, which identifies the images and labels of a result."""
    return hash_lists(folder, [f"{name}.json" for name in SPLIT_FILES])


def _read_split(file: Path) -> dict[PurePosixPath, int]:
    """Path -> class as in the file."""
    try:
        content = read_json(
            file, ListFileError, f"Download it again. {SPLIT_SOURCES}", partial(parse_json, unique=True)
        )
    except OSError as error:
        there = ", ".join(sorted(path.name for path in file.parent.glob("*.json"))) or "none"
        raise DatasetNotFoundError(
            f"The split file {file} cannot be read ({error.strerror}); JSON files found there: {there}. Put "
            f"train.json, val.json and test.json into {file.parent}. {SPLIT_SOURCES}"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ListFileError(f"{file} is not a table {{path: class}} with at least one image. {SPLIT_SOURCES}")
    entries: dict[PurePosixPath, int] = {}
    for path, key in content.items():
        if isinstance(key, bool) or not re.fullmatch(r"-?[0-9]{1,18}", str(key)):
            raise ListFileError(f"{file}: the class of {path!r} is {key!r}, not an integer.")
        inner = inner_path(path, str(file))
        if inner in entries:
            raise ListFileError(f"{file} lists {inner} twice. An image has one class. {SPLIT_SOURCES}")
        entries[inner] = int(key)
    return entries


def _class_names(train: dict[PurePosixPath, int], classes: dict[int, int], count: int) -> list[str]:
    """The name of each class's folder if every class has one folder, else the class's number in the file."""
    folders: dict[int, set[str]] = {}
    for path, key in train.items():
        folders.setdefault(key, set()).add(path.parent.name)
    own = [next(iter(folders[key])) for key in classes if len(folders[key]) == 1]
    distinct = len(set(own)) == len(classes) and all(own)
    names = own if distinct and len(classes) > 1 else [str(key) for key in classes]
    return names + [f"unused {label}" for label in range(len(names), count)]
