"""Images that are in two splits, by name or by content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from replora.datasets.common.duplicates import across_splits
from replora.datasets.errors import ListFileError
from replora.datasets.image.fgvc import FGVC
from replora.datasets.image.folder import read_image_table
from replora.datasets.video.folder import read_video_table
from replora.datasets.vtab.dataset import VTAB, vtab_task
from replora.datasets.vtab.verify import TaskCheck
from tests.fake_data import write_image_folder
from tests.fake_videos import write_avi


def test_copies_across_splits_are_found_by_content(tmp_path: Path) -> None:
    contents = [b"a" * 9000, b"a" * 9000, b"b" + b"a" * 8999, b"a" * 9000, b"", b"c", b"", b"a" * 8999]
    splits = ["train", "train", "val", "test", "train", "val", "val", "test"]
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    assert across_splits([*files, tmp_path, tmp_path / "none"], [*splits, "test", "val"]) == [(0, 3), (4, 6)]


def test_folders_with_copies_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_image_folder(tmp_path / "images", ["a", "b"], 3, splits=["train", "test"])
    read_image_table(root).assign(0.0, 0.0, 0)
    assert not caplog.text
    shutil.copy(root / "train" / "a" / "0.jpg", root / "test" / "a" / "copy.jpg")
    read_image_table(root).assign(0.0, 0.0, 0)
    assert "1 files are copies of a file in another split, such as" in caplog.text
    assert "copy.jpg" in caplog.text
    caplog.clear()
    for split in ("train", "test"):
        for label in "ab":
            write_avi(tmp_path / "videos" / split / label / f"{split}.avi")
    read_video_table(tmp_path / "videos").assign(0.0, 0.0, 0)
    assert "files are copies of a file" in caplog.text


def test_lists_of_vtab_share_no_image(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_image_folder(folder / "images", ["a"], 4)
    lists = {"train800": [0], "val200": [1], "train800val200": [0, 1], "test": [2, 3]}
    for split, numbers in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"images/a/{n}.jpg 0\n" for n in numbers))
    assert [len(VTAB(tmp_path, "mine", split, 2)) for split in lists] == [1, 1, 2, 2]  # type: ignore[arg-type]
    (folder / "test.txt").write_text("images/a/2.jpg 0\nimages/a/1.jpg 1\n")
    for split in ("val200", "train800val200", "test"):
        with pytest.raises(ListFileError, match=r"share 1 images, the first: images/a/1\.jpg"):
            VTAB(tmp_path, "mine", split, 2)  # type: ignore[arg-type]


def test_lists_of_fgvc_share_no_image(tmp_path: Path) -> None:
    folder = tmp_path / "cub_200_2011"
    write_image_folder(folder / "images", ["a", "b"], 4)
    for split, numbers in {"train": [0], "val": [1], "test": [2, 1]}.items():
        listed = {f"{name}/{number}.jpg": label for label, name in enumerate("ab") for number in numbers}
        (folder / f"{split}.json").write_text(json.dumps(listed))
    assert len(FGVC(tmp_path, "cub_200_2011", "train", check_sizes=False)) == 2
    for split in ("val", "test", "trainval"):
        with pytest.raises(ListFileError, match=r"images are in .* and in .*\.json, the first: a/1\.jpg"):
            FGVC(tmp_path, "cub_200_2011", split, check_sizes=False)  # type: ignore[arg-type]


def test_copies_among_the_images_of_vtab_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "patch_camelyon"
    write_image_folder(folder / "images", ["a"], 4)
    shutil.copy(folder / "images" / "a" / "0.jpg", folder / "images" / "a" / "copy.jpg")
    lists = {"train800": ["0"], "val200": ["1"], "train800val200": ["0", "1"], "test": ["2", "copy"]}
    for split, names in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"images/a/{name}.jpg 0\n" for name in names))
    report = TaskCheck(tmp_path, vtab_task("patch_camelyon"), check_sizes=False).run()
    assert "1 of 2 test images have the pixels of an image in train800val200" in report.notes


@pytest.mark.parametrize("again", ["images/a/2.jpg", "./images/a/2.jpg", "images//a/2.jpg", r"images\a\2.jpg"])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("split", ["train800", "val200", "train800val200", "test"])
def test_a_list_of_vtab_has_an_image_once(tmp_path: Path, split: str, label: int, again: str) -> None:
    folder = tmp_path / "patch_camelyon"
    write_image_folder(folder / "images", ["a"], 4)
    (folder / f"{split}.txt").write_text(f"images/a/2.jpg 0\n\nimages/a/3.jpg 0\n{again} {label}\n")
    with pytest.raises(ListFileError, match=rf"{split}\.txt, line 4: .*2\.jpg is listed twice; line 1 has it already"):
        VTAB(tmp_path, "patch_camelyon", split)  # type: ignore[arg-type]
    if split == "test":
        report = TaskCheck(tmp_path, vtab_task("patch_camelyon"), check_sizes=False).run()
        assert any("is listed twice" in problem for problem in report.problems)


@pytest.mark.parametrize("again", ["./a/0.jpg", "a//0.jpg", r"a\\0.jpg", "a/0.jpg"])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_list_of_fgvc_has_an_image_once(tmp_path: Path, split: str, label: int, again: str) -> None:
    folder = tmp_path / "cub_200_2011"
    write_image_folder(folder / "images", ["a", "b"], 2)
    (folder / "train.json").write_text(json.dumps({"a/1.jpg": 0, "b/1.jpg": 1}))
    (folder / f"{split}.json").write_text(f'{{"a/0.jpg": 0, "b/0.jpg": 1, "{again}": {label}}}')
    with pytest.raises(ListFileError, match=rf"{split}\.json .*a/0\.jpg'? twice"):
        FGVC(tmp_path, "cub_200_2011", split, check_sizes=False)  # type: ignore[arg-type]
