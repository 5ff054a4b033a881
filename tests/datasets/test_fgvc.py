from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from replora.datasets.errors import DatasetNotFoundError, ListFileError, UnknownTaskError
from replora.datasets.image.fgvc import FGVC, FGVC_TASKS, fgvc_task
from replora.datasets.image.read import ImageReader
from tests.fake_data import write_fgvc_task


def read(file: Path) -> dict[str, int]:
    return json.loads(file.read_text())


def rewrite(file: Path, change: Callable[[dict[str, int]], dict[str, int]]) -> None:
    file.write_text(json.dumps(change(read(file))))


def made(root: Path, task: str = "cub_200_2011", split: str = "train", **options: object) -> FGVC:
    return FGVC(root, task, split, reader=ImageReader(14, "bilinear", "crop"), **{"check_sizes": False} | options)  # type: ignore[arg-type]


def test_table() -> None:
    official = {  # training and test images of the original data sets
        "cub_200_2011": (200, 5_994, 5_794),
        "nabirds": (555, 23_929, 24_633),
        "oxford_flowers": (102, 2_040, 6_149),
        "stanford_dogs": (120, 12_000, 8_580),
        "stanford_cars": (196, 8_144, 8_041),
    }
    found = {t.name: (t.num_classes, t.size("trainval"), t.size("test")) for t in FGVC_TASKS.values()}
    assert found == official
    assert FGVC_TASKS["nabirds"].size("val") == 2_393


@pytest.mark.parametrize("task", FGVC_TASKS)
def test_layouts(tmp_path: Path, task: str) -> None:
    write_fgvc_task(tmp_path / "fgvc", task)
    sizes = {split: len(made(tmp_path, task, split)) for split in ("train", "val", "trainval", "test")}
    assert sizes == {"train": 8, "val": 4, "trainval": 12, "test": 8}
    dataset = made(tmp_path / "fgvc", task, "test")
    sample = dataset[5]
    assert sample["image"].shape == (3, 14, 14)
    assert (sample["label"], sample["index"]) == (1, 5)
    assert len(dataset.class_names) == FGVC_TASKS[task].num_classes
    assert min(made(tmp_path, task, form="uncropped")[0]["image"].shape[1:]) == 16


def test_class_names_are_folders_where_there_are_any(tmp_path: Path) -> None:
    for task in FGVC_TASKS:
        write_fgvc_task(tmp_path, task)
    assert made(tmp_path, "cub_200_2011").class_names[:2] == ["001.Bird_1", "002.Bird_2"]
    assert made(tmp_path, "stanford_dogs").class_names[0] == "n00000001-dog_1"
    assert made(tmp_path, "stanford_cars").class_names[:5] == ["3", "10", "17", "24", "unused 4"]


def test_a_class_without_validation_image_shifts_no_label(tmp_path: Path) -> None:
    home = write_fgvc_task(tmp_path, "cub_200_2011")
    rewrite(home / "val.json", lambda listed: {path: key for path, key in listed.items() if key != 3})
    val = made(tmp_path, split="val")
    assert sorted(set(val.labels)) == [1, 2, 3]  # numbered within val.json they would be 0, 1, 2
    by_folder = {path.parent.name: label for path, label in zip(val.paths, val.labels, strict=True)}
    assert all(val.class_names[label] == folder for folder, label in by_folder.items())
    assert set(made(tmp_path, split="trainval").labels) == {0, 1, 2, 3}


@pytest.mark.parametrize("split", ["val", "test", "trainval"])
def test_a_class_that_training_does_not_know(tmp_path: Path, split: str) -> None:
    home = write_fgvc_task(tmp_path, "cub_200_2011")
    file = home / f"{'val' if split == 'trainval' else split}.json"
    rewrite(file, lambda listed: {path: 99 if key == 3 else key for path, key in listed.items()})
    with pytest.raises(ListFileError, match=r"1 classes that train.json does not have, the first: 99"):
        made(tmp_path, split=split)


def test_text_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    home = write_fgvc_task(tmp_path, "nabirds")
    rewrite(home / "train.json", lambda listed: {path: str(key) for path, key in listed.items()})  # type: ignore[misc]
    assert made(tmp_path, "nabirds").labels[:4] == [0, 1, 2, 3]  # as text 10 comes before 3


@pytest.mark.parametrize("folder", ["CUB-200-2011", "cub", "cub_200_2011", "CUB200"])
def test_folder_variants(tmp_path: Path, folder: str) -> None:
    write_fgvc_task(tmp_path, "cub_200_2011").rename(tmp_path / folder)
    assert made(tmp_path).folder.name == folder


def test_other_image_roots(tmp_path: Path) -> None:
    home = write_fgvc_task(tmp_path, "oxford_flowers")
    for split in ("train", "val", "test"):
        rewrite(home / f"{split}.json", lambda listed: {path.removeprefix("jpg/"): key for path, key in listed.items()})
    dataset = made(tmp_path, "oxford_flowers")
    assert dataset.home == home / "jpg"
    assert dataset[0]["image"].dtype == torch.uint8


def test_sizes_and_classes_are_checked(tmp_path: Path) -> None:
    home = write_fgvc_task(tmp_path, "stanford_dogs")
    with pytest.raises(ListFileError, match=r"has 4 classes, but stanford_dogs has 120"):
        made(tmp_path, "stanford_dogs", check_sizes=True)
    rewrite(home / "train.json", lambda _: {f"n{i}/a.jpg": i for i in range(121)})
    with pytest.raises(ListFileError, match=r"has 121 classes, but stanford_dogs has 120"):
        made(tmp_path, "stanford_dogs", check_sizes=False)
    (home / "Images" / "n").mkdir()
    (home / "Images" / "n" / "a.jpg").write_bytes(b"image")
    rewrite(home / "train.json", lambda _: {"n/a.jpg": 0} | {f"n/../n/{i}.jpg": i for i in range(1, 120)})
    with pytest.raises(ListFileError, match=r"leaves the data"):
        made(tmp_path, "stanford_dogs")
    for i in range(120):
        (home / "Images" / "n" / f"{i}.jpg").write_bytes(b"image")
    rewrite(home / "train.json", lambda _: {f"n/{i}.jpg": i for i in range(120)})
    with pytest.raises(ListFileError, match=r"train of .* has 120 images, but that of stanford_dogs has 10,800"):
        made(tmp_path, "stanford_dogs", check_sizes=True)


def test_missing_images(tmp_path: Path) -> None:
    home = write_fgvc_task(tmp_path, "cub_200_2011")
    first = next(iter(read(home / "test.json")))
    (home / "images" / first).unlink()
    with pytest.raises(ListFileError, match=r"1 of 8 images of 'test' are missing in .*images, the first: 001.Bird_1"):
        made(tmp_path, split="test")


@pytest.mark.parametrize("kaggle", ["folders", "names"])
def test_the_other_numbering_of_the_cars_is_told_apart(tmp_path: Path, kaggle: str) -> None:
    home = write_fgvc_task(tmp_path, "stanford_cars")
    if kaggle == "folders":
        (home / "car_ims").rename(home / "cars_train")
    else:
        for file in (home / "car_ims").iterdir():
            file.rename(file.with_name(file.name[1:]))
    with pytest.raises(ListFileError, match=r"is not the car 000001.jpg of the split files, so do not rename"):
        made(tmp_path, "stanford_cars")


def test_missing_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"contains birds") as raised:
        made(tmp_path)
    assert "--data.root" in str(raised.value)
    assert "XiN0919/FGVC" in str(raised.value)
    home = write_fgvc_task(tmp_path, "cub_200_2011")
    with pytest.raises(DatasetNotFoundError, match=r"is itself such a folder: use its parent folder"):
        made(home)
    (home / "test.json").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"test\.json cannot be read .*found there: train\.json, val\.json"):
        made(tmp_path, split="test")
    with pytest.raises(DatasetNotFoundError, match=r"no split 'tests'. Did you mean 'test'"):
        made(tmp_path, split="tests")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"not a table \{path: class\}"),
        ("{}", r"not a table \{path: class\}"),
        ('{"a.jpg": 1.5}', "the class of 'a.jpg' is 1.5, not an integer"),
        ('{"a.jpg": true}', "the class of 'a.jpg' is True"),
        ('{"../a.jpg": 1}', "'../a.jpg' leaves the data"),
        ('{"/etc/a.jpg": 1}', "'/etc/a.jpg' leaves the data"),
    ],
)
def test_bad_split_files(tmp_path: Path, text: str, message: str) -> None:
    home = write_fgvc_task(tmp_path, "cub_200_2011")
    (home / "train.json").write_text(text)
    with pytest.raises(ListFileError, match=message):
        made(tmp_path)


def test_the_same_image_in_train_and_val(tmp_path: Path) -> None:
    home = write_fgvc_task(tmp_path, "cub_200_2011")
    rewrite(home / "val.json", lambda listed: listed | dict([next(iter(read(home / "train.json").items()))]))
    with pytest.raises(ListFileError, match=r"lists images of train.json again"):
        made(tmp_path, split="trainval")


def test_names() -> None:
    with pytest.raises(UnknownTaskError, match=r"'StanfordCars' is called 'stanford_cars' here"):
        fgvc_task("StanfordCars")
    with pytest.raises(UnknownTaskError, match=r"not one of the five FGVC data sets. Did you mean 'nabirds'"):
        fgvc_task("nabird")
