"""Folders and lists of files as people have them."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replora.datasets.common.labeled_files import FileTableError, split_of_name
from replora.datasets.errors import DatasetNotFoundError, ListFileError
from replora.datasets.image.folder import read_image_table
from replora.datasets.image.read import IMAGE_SUFFIXES
from replora.datasets.video.folder import read_video_table
from replora.errors import RepLoRAError
from tests.fake_data import write_image_folder
from tests.fake_videos import write_avi, write_frames
from tests.fuzz import fuzz

CLASSES = ["cat", "dog"]


@pytest.mark.parametrize(
    ("split", "names"),
    {
        "train": "train Train TRAIN training Training train_set trainset train-images train2017 trn train_00",
        "val": "val Val valid VALIDATION dev validation_set val2017 dev-split development",
        "test": "test Test TEST testing test_set test_images tst testset",
        None: "trainer trains testament device valley cat steam_train attest t e eval trainval training_wheels",
    }.items(),
)
def test_names_of_splits(split: str | None, names: str) -> None:
    assert {name: split_of_name(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "dev"), ("training", "testing"), ("train_set", "Val")])
def test_folders_are_splits_in_any_spelling(tmp_path: Path, names: tuple[str, str]) -> None:
    table = read_image_table(write_image_folder(tmp_path, CLASSES, 2, splits=list(names)))
    assert table.class_names == CLASSES
    assert set(table.splits) == {split_of_name(name) for name in names}


def test_a_folder_beside_the_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image_folder(tmp_path, CLASSES, 2, splits=["train", "val", "test"])
    write_image_folder(tmp_path, ["unlabeled"], 3)
    table = read_image_table(tmp_path)
    assert (table.class_names, len(table.paths)) == (CLASSES, 12)
    assert "left out: 3 images in unlabeled/, which is no split" in caplog.text
    write_image_folder(tmp_path / "extra", ["cat"], 1)
    with pytest.raises(FileTableError, match=r"the folder 'extra' next to .* contains the class 'cat' too"):
        read_image_table(tmp_path)


def test_unclear_splits_are_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "1", CLASSES, 1, splits=["val", "test"])
    with pytest.raises(FileTableError, match=r"there is no folder `train`"):
        read_image_table(tmp_path / "1")
    write_image_folder(tmp_path / "2", CLASSES, 1, splits=["train", "val", "dev"])
    with pytest.raises(FileTableError, match=r"the folders dev and val mean the same split"):
        read_image_table(tmp_path / "2")


FOREIGN = [
    *(".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", ".hid", "#recycle", "$RECYCLE.BIN", "lost+found"),
    *("thumbs", "Thumbnails"),
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_folders_are_left_out_and_counted(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    write_image_folder(tmp_path / "images", CLASSES, 2)
    write_image_folder(tmp_path / "images" / "cat", [name], 2)
    write_image_folder(tmp_path / "images" / "cat" / "more", [name], 2)
    assert len(read_image_table(tmp_path / "images").paths) == 4
    assert "left out: 2 hidden, foreign or preview folder" in caplog.text
    for label in CLASSES:
        write_avi(tmp_path / "videos" / label / "0.avi")
        write_frames(tmp_path / "videos" / label / "clip")
        write_frames(tmp_path / "videos" / label / name)
        write_frames(tmp_path / "videos" / label / "clip" / name)
    assert len(read_video_table(tmp_path / "videos").paths) == 4


def test_foreign_folders_are_no_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path, [*CLASSES, *FOREIGN], 1)
    assert read_image_table(tmp_path).class_names == ["Thumbnails", *CLASSES, "thumbs"]


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image_folder(tmp_path, CLASSES, 2)
    for name in ("a.heic", "b.HEIC", "c.txt", "README", ".d.jpg"):
        (tmp_path / "cat" / name).touch()
    (tmp_path / "cat" / "gone.jpg").symlink_to("../.git/annex/gone.jpg")
    (tmp_path / "bird").mkdir()
    table = read_image_table(tmp_path)
    expected = {".heic": 2, "broken link": 1, ".txt": 1, "file without a suffix": 1, "hidden file": 1}
    assert table.left_out == expected | {"empty class folder": 1}
    assert "left out: 2 .heic, " in caplog.text


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_image_folder(tmp_path, CLASSES, 2)
    write_image_folder(tmp_path / "dog", ["more"], 3)
    (tmp_path / "cat" / "linked").symlink_to(tmp_path / "dog" / "more")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    table = read_image_table(tmp_path)
    assert len(table.paths) == 4 + 3 + 3
    assert table.left_out == {"link to a folder above": 1}


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    Image.init()
    assert suffix in Image.EXTENSION
    write_image_folder(tmp_path, CLASSES, 1)
    try:
        Image.new("RGB", (16, 16), "red").save(tmp_path / "cat" / f"x{suffix.upper()}")
    except (KeyError, ValueError, OSError):
        pytest.skip("not written by Pillow")
    assert len(read_image_table(tmp_path).paths) == 3


def test_names_that_are_not_utf_8_are_refused_by_name(tmp_path: Path) -> None:
    write_image_folder(tmp_path, CLASSES, 1)
    try:
        (tmp_path / "cat" / "0.jpg").rename(tmp_path / "cat" / os.fsdecode(b"caf\xe9.jpg"))
    except OSError:
        pytest.skip("the file system takes UTF-8 names alone")
    with pytest.raises(FileTableError, match=r"1 of 2 images have names that are not UTF-8, .*caf\\xe9\.jpg") as raised:
        read_image_table(tmp_path)
    str(raised.value).encode()


def test_one_class_name_written_in_two_ways(tmp_path: Path) -> None:
    write_image_folder(tmp_path, ["caf\u00e9", "cafe\u0301", "dog"], 2)
    table = read_image_table(tmp_path)
    assert table.class_names == ["caf\u00e9", "dog"]
    assert table.labels.count(0) == 4


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path, CLASSES, 1)
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetNotFoundError, match=r"cat cannot be listed \(Permission denied\)"):
        read_image_table(tmp_path)


# --- CSV files


PATHS = ["path", "Path", "FILE", "file name", "image", "Image_Path", "filename"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("split", ["Split", "subset", "SET", "partition", None])
def test_csv_dialects(csv_home: Path, separator: str, encoding: str, split: str | None) -> None:
    rows = [["c", "", "cat/0.jpg", "Train"], ["d", "x", "dog/0.jpg", "TRAIN"], ["d", "", "dog/1.jpg", "Testing"]]
    file = csv_home / "list.csv"
    for path, label in product(PATHS, ["label", "Class", "CATEGORY", "class-name"]):
        columns = [label, "note", path, *([split] if split else [])]
        lines = [separator.join(row[: len(columns)]) for row in [columns, *rows]]
        file.write_bytes("\r\n".join(lines).encode(encoding))
        table = read_image_table(file)
        assert (table.class_names, table.labels) == (["c", "d"], [0, 1, 1])
        assert table.splits == (["train", "train", "test"] if split else [None] * 3)


@pytest.fixture(scope="module")
def csv_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("csv"), CLASSES, 2)


def test_what_columns_mean_is_told(csv_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = csv_home / "told.csv"
    file.write_text("File;Class;Subset\ncat/0.jpg;a;train\ndog/0.jpg;b;train\n")
    with caplog.at_level(logging.INFO):
        read_image_table(file)
    assert "'File' is the path, 'Class' is the label, 'Subset' is the split" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,file,label\na,b,c\n", r"2 columns that may be the path: 'image', 'file'"),
        ("path,class,category\na,b,c\n", r"2 columns that may be the label"),
        ("path,label,set\ncat/0.jpg,a,train\ndog/0.jpg,b,tarin\n", r"line 3: there is no split 'tarin'"),
        ("path,label\ncat/0,1.jpg,a\n", r"line 2 has 3 cells, but the first line has 2\. Quote each cell"),
        ("path,label\n" + "x" * 200_000 + ",a\n", r"cannot be read as a CSV file: field larger than field limit"),
        ("path,label\na\0b,a\n", r"missing|leaves|NUL"),
        ("", r"no column 'path'"),
    ],
)
def test_unclear_csv_files_are_refused(csv_home: Path, text: str, message: str) -> None:
    file = csv_home / "unclear.csv"
    file.write_text(text)
    with pytest.raises(RepLoRAError, match=message):
        read_image_table(file)


def test_a_column_that_only_looks_like_a_split(csv_home: Path) -> None:
    file = csv_home / "set.csv"
    file.write_text("path,label,set\ncat/0.jpg,a,blue\ndog/0.jpg,b,red\n")
    assert read_image_table(file).splits == [None, None]


@pytest.mark.parametrize(("encoding", "text"), [("gb18030", "猫狗"), ("shift_jis", "ねこ"), ("cp1252", "Café")])
def test_other_encodings_are_named(csv_home: Path, encoding: str, text: str) -> None:
    file = csv_home / "encoded.csv"
    file.write_bytes(f"path,label\ncat/0.jpg,{text}\n".encode(encoding))
    with pytest.raises(ListFileError, match=rf"is not UTF-8 text.*it looks like {encoding}: iconv"):
        read_image_table(file)


@fuzz(500)
@given(draw=st.randoms(use_true_random=False))
def test_any_csv_text_is_read_or_refused(csv_home: Path, draw: random.Random) -> None:
    pieces = ["path", "label", "split", ",", ";", "\t", '"', "\n", "\r", "cat/0.jpg", "dog/1.jpg", "train", "", " "]
    pieces += ["\0", "\u2028", "é", "..", "/", "\\", "x" * 300, "Set", "\ufeff"]
    file = csv_home / "any.csv"
    text = ("path,label\n" if draw.random() < 0.5 else "") + "".join(draw.choices(pieces, k=draw.randrange(40)))
    encoding = draw.choice(["utf-8", "utf-16", "utf-16-le", "utf-8-sig"])
    file.write_bytes(text.encode(encoding)[: draw.randrange(1, 400)])
    with contextlib.suppress(RepLoRAError):
        read_image_table(file)


# --- links and absolute paths


def test_absolute_paths_inside_the_root(tmp_path: Path) -> None:
    write_image_folder(tmp_path, CLASSES, 1)
    file = tmp_path / "list.csv"
    file.write_text(f"path,label\n{tmp_path / 'cat' / '0.jpg'},a\ndog/0.jpg,b\n")
    assert [str(path) for path in read_image_table(file).paths] == ["cat/0.jpg", "dog/0.jpg"]
    for path in ("/etc/passwd", f"{tmp_path}/../x.jpg", str(tmp_path)):
        file.write_text(f"path,label\n{path},a\ndog/0.jpg,b\n")
        with pytest.raises(ListFileError, match="leaves the data"):
            read_image_table(file)


def test_further_roots_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links into a cache, as of the Hugging Face hub, and paths on a share."""
    write_image_folder(tmp_path / "blobs", ["x"], 3)
    root = write_image_folder(tmp_path / "data", CLASSES, 1)
    (root / "cat" / "linked.jpg").symlink_to(tmp_path / "blobs" / "x" / "0.jpg")
    (root / "dog" / "linked").symlink_to(tmp_path / "blobs" / "x")
    (root / "list.csv").write_text(f"path,label\n{tmp_path / 'blobs' / 'x' / '1.jpg'},a\ndog/0.jpg,b\n")
    with pytest.raises(ListFileError, match=r"is a link that leaves the data .*REPLORA_ALLOWED_ROOTS=.*blobs"):
        read_image_table(root)
    with pytest.raises(ListFileError, match=r"leaves the data"):
        read_image_table(root / "list.csv")
    monkeypatch.setenv("REPLORA_ALLOWED_ROOTS", os.pathsep.join(["/nowhere", str(tmp_path / "blobs")]))
    assert len(read_image_table(root).paths) == 2 + 1 + 3
    table = read_image_table(root / "list.csv")
    assert sorted((table.home / path).name for path in table.paths) == ["0.jpg", "1.jpg"]
