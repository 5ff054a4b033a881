from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from replora.datasets.common.labeled_files import FileTableError
from replora.datasets.errors import CorruptImageError, DatasetNotFoundError, ListFileError
from replora.datasets.image.folder import ImageFolder, read_image_table
from replora.datasets.image.read import ImageReader
from tests.fake_data import write_image_folder


def write_csv(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_folder_of_class_folders(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "dog" / "more").mkdir()
    shutil.copy(tmp_path / "dog" / "0.jpg", tmp_path / "dog" / "more" / "A.JPG")
    table = read_image_table(tmp_path)
    assert table.class_names == ["cat", "dog", "eel"]
    assert Counter(table.labels) == {0: 10, 1: 11, 2: 10}
    dataset = ImageFolder(table, [0, 30], reader=ImageReader(14, "bilinear", "crop", True))
    assert dataset[1]["image"].shape == (3, 14, 14)
    assert [dataset[i]["label"] for i in range(2)] == [0, 2]
    uncropped = ImageFolder(table, [0], ImageReader(14, "bilinear", "crop", True), form="uncropped")
    assert min(uncropped[0]["image"].shape[1:]) == 16


def test_splits_are_stratified_and_follow_from_the_paths(tmp_path: Path) -> None:
    table = read_image_table(write_image_folder(tmp_path / "here", per_class=20))
    splits = table.assign(0.1, 0.2, 0)
    counts = Counter(zip(table.labels, splits, strict=True))
    for label in range(3):
        assert [counts[label, split] for split in ("train", "val", "test")] == [14, 2, 4]  # type: ignore[index]
    moved = read_image_table((tmp_path / "here").rename(tmp_path / "there"))
    assert moved.assign(0.1, 0.2, 0) == splits
    assert moved.assign(0.1, 0.2, 1) != splits
    # A fixed choice: other machines, Python releases and file systems make the same.
    assert [str(p) for p, split in zip(table.paths, splits, strict=True) if split == "val"] == [
        "cat/1.jpg",
        "cat/11.jpg",
        "dog/18.jpg",
        "dog/4.jpg",
        "eel/11.jpg",
        "eel/9.jpg",
    ]


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_small_classes_keep_an_image_to_train_on(tmp_path: Path, count: int, expected: tuple[int, ...]) -> None:
    splits = read_image_table(write_image_folder(tmp_path, ["a", "b"], count)).assign(0.1, 0.1, 0)
    assert tuple(splits.count(split) for split in ("train", "val", "test")) == tuple(2 * n for n in expected)  # type: ignore[arg-type]


def test_own_splits_are_kept(tmp_path: Path) -> None:
    table = read_image_table(write_image_folder(tmp_path, splits=["train", "valid", "test"]))
    assert Counter(table.assign(0.1, 0.1, 0)) == {"train": 30, "val": 30, "test": 30}
    shutil.rmtree(tmp_path / "test")
    table = read_image_table(tmp_path)
    splits = table.assign(0.1, 0.1, 0)
    assert Counter(splits) == {"train": 27, "val": 30, "test": 3}
    assert all(table.paths[i].parts[0] == "train" for i, split in enumerate(splits) if split == "test")


def test_train_may_be_a_class(tmp_path: Path) -> None:
    assert read_image_table(write_image_folder(tmp_path / "1", ["train", "car"])).class_names == ["car", "train"]
    assert read_image_table(write_image_folder(tmp_path / "2", ["train", "test"])).class_names == ["test", "train"]


def test_csv(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    lines = ["path,label,note", *(f"{name}/{i}.jpg,{name.upper()},x" for name in ("eel", "cat") for i in range(3))]
    table = read_image_table(write_csv(tmp_path / "images.csv", *lines))
    assert table.class_names == ["CAT", "EEL"]
    assert [str(path) for path in table.paths[:2]] == ["cat/0.jpg", "cat/1.jpg"]
    assert ImageFolder(table, [5])[0]["label"] == 1
    own = ["path,label,split", "cat/0.jpg,a,train", "dog/0.jpg,b,train", "dog/1.jpg,b,validation"]
    table = read_image_table(write_csv(tmp_path / "own.csv", *own))
    assert table.assign(0.5, 0.0, 0) == ["train", "train", "val"]


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (["where,label", "cat/0.jpg,a"], FileTableError, r"no column 'path'; its first line names 'where', 'label'"),
        (["path,breed", "cat/0.jpg,a"], FileTableError, r"no column 'label'.*The first line must be: path,label"),
        (["path,label"], FileTableError, "lists no image"),
        (["path,label", "cat/0.jpg,"], FileTableError, r"line 2: cat/0.jpg has no label"),
        (["path,label", "../x.jpg,a"], ListFileError, r"line 2: the path '../x.jpg' leaves the data"),
        (["path,label", "/x.jpg,a"], ListFileError, "leaves the data"),
        (["path,label", ",a"], ListFileError, "leaves the data"),
        (["path,label", "cat/0.jpg,a", "cat/0.jpg,b"], FileTableError, "line 3: cat/0.jpg is listed twice"),
        (["path,label", "cat/0.jpg,a", "cat/99.jpg,b"], ListFileError, "1 of 2 images are missing, the first: cat/99"),
        (["path,label", "cat/0.jpg,a", "cat/1.jpg,a"], FileTableError, "2 images of one class alone, 'a'"),
        (["path,label,split", "cat/0.jpg,a,tain"], FileTableError, "no split 'tain'. Did you mean 'train'"),
        (["path,label,split", "cat/0.jpg,a,train", "cat/1.jpg,b,"], FileTableError, "1 of 2 images have no split"),
        (
            ["path,label,split", "cat/0.jpg,a,train", "cat/1.jpg,b,val"],
            FileTableError,
            "the class 'b' has images in val, but none to train on",
        ),
    ],
)
def test_bad_csv(tmp_path: Path, lines: list[str], error: type[Exception], message: str) -> None:
    write_image_folder(tmp_path, per_class=2)
    with pytest.raises(error, match=message):
        read_image_table(write_csv(tmp_path / "images.csv", *lines))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"There is no folder or CSV file .*nowhere"):
        read_image_table(tmp_path / "nowhere")
    with pytest.raises(FileTableError, match=r"contains no folders and no images.*Expected is a folder for each class"):
        read_image_table(tmp_path)
    write_image_folder(tmp_path / "one", ["cat"])
    with pytest.raises(FileTableError, match=r"10 images of one class alone, 'cat'"):
        read_image_table(tmp_path / "one")
    with pytest.raises(FileTableError, match=r"contains 10 images but no folders.*predict-files"):
        read_image_table(tmp_path / "one" / "cat")
    (tmp_path / "one" / "dog").mkdir()
    (tmp_path / "one" / "dog" / "a.heic").touch()
    with pytest.raises(FileTableError, match=r"folder .*dog has no images \(files ending in \.jpg.* 1 \.heic"):
        read_image_table(tmp_path / "one")
    home = write_image_folder(tmp_path / "splits", splits=["train", "test"])
    (home / "train" / "eel").rename(home / "train" / "eels")
    with pytest.raises(FileTableError, match=r"'eel' has images in test, but none to train on. Did you mean 'eels'"):
        read_image_table(home)


def test_every_unreadable_image_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "cat" / "3.jpg").write_bytes(b"")
    (tmp_path / "eel" / "4.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptImageError, match=r"2 of 30 images cannot be read") as raised:
        read_image_table(tmp_path)
    assert f"{tmp_path / 'cat' / '3.jpg'}: the file is empty (0 bytes)" in str(raised.value)
    assert str(tmp_path / "eel" / "4.jpg") in str(raised.value)


def test_photos_are_upright(tmp_path: Path) -> None:
    write_image_folder(tmp_path, ["a", "b"], 1)
    halves = Image.new("RGB", (32, 32), "black")
    halves.paste("white", (0, 0, 32, 16))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    halves.save(tmp_path / "a" / "0.jpg", exif=exif, quality=95)
    table = read_image_table(tmp_path)
    for form in ("square", "uncropped", "original"):
        dataset = ImageFolder(table, [0], ImageReader(28, "bilinear", "crop", True), form)
        image = dataset[0]["image"].float()
        assert image[:, :8].mean() < 20 < 200 < image[:, -8:].mean()


def test_links_stay_inside(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "data")
    (tmp_path / "secret.jpg").write_bytes((tmp_path / "data" / "cat" / "0.jpg").read_bytes())
    (tmp_path / "data" / "cat" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(ListFileError, match=r"is a link that leaves the data"):
        read_image_table(tmp_path / "data")
    listed = write_csv(tmp_path / "data" / "images.csv", "path,label", "cat/link.jpg,a", "dog/0.jpg,b")
    with pytest.raises(ListFileError, match=r"is a link that leaves the data"):
        read_image_table(listed)


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0)])
def test_bad_fractions(tmp_path: Path, fractions: tuple[float, float]) -> None:
    with pytest.raises(FileTableError, match=r"nothing is left to train on"):
        read_image_table(write_image_folder(tmp_path)).assign(*fractions, 0)
