"""What the check of a VTAB-1K copy finds, one kind of corruption at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from replora.datasets.prepare.vtab import prepare_vtab, remedy
from replora.datasets.vtab.dataset import VTAB_TASKS, vtab_task
from replora.datasets.vtab.tracks import write_marker
from replora.datasets.vtab.verify import TaskCheck, TaskReport, sun397_note
from tests.fake_data import write_vtab_task


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_vtab_task(tmp_path, "eurosat", train=20, val=12, test=12)


def check(root: Path, task: str = "eurosat", check_sizes: bool = False, **options: object) -> TaskReport:
    return TaskCheck(root, vtab_task(task), check_sizes=check_sizes, **options).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_whole(tmp_path: Path, image_format) -> None:
    write_vtab_task(tmp_path, "eurosat", train=20, val=12, test=12, image_format=image_format)
    decoded = []
    task_check = TaskCheck(tmp_path, vtab_task("eurosat"), check_sizes=False)
    report = task_check.run(lambda: decoded.append(1))
    assert (report.state, report.problems, report.notes) == ("complete", [], [])
    assert report.sizes == {"train800": 20, "val200": 12, "train800val200": 32, "test": 12}
    assert report.track == ("archive" if image_format == "JPEG" else "clean")
    assert report.classes_seen == 10
    assert len(task_check) == len(decoded) == 76


def test_real_sizes(tmp_path: Path) -> None:
    home = write_vtab_task(tmp_path, "kitti", train=800, val=200, test=711, image_size=(4, 4))
    assert check(tmp_path, "kitti", check_sizes=True).problems == []
    lines = (home / "test.txt").read_text().splitlines(keepends=True)
    (home / "test.txt").write_text("".join(lines[1:]))
    assert check(tmp_path, "kitti", check_sizes=True).problems == ["test.txt lists 710 images, but 711 are expected."]
    label_zero = [line.rsplit(" ", 1)[0] + " 0\n" for line in lines]
    (home / "test.txt").write_text("".join(label_zero))
    report = check(tmp_path, "kitti", check_sizes=True)
    assert report.problems == ["test.txt has no images of 3 of the 4 classes (labels 1, 2, 3): the labels are wrong"]
    assert report.classes_seen == 1


def test_missing(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert (report.state, report.folder) == ("missing", None)


def test_aliases_are_noted(tmp_path: Path) -> None:
    write_vtab_task(tmp_path, "cifar", folder="cifar100")
    report = check(tmp_path, "cifar")
    assert (report.state, report.notes) == ("complete", ["found under its other name cifar100"])
    home = write_vtab_task(tmp_path, "cifar")
    report = check(tmp_path, "cifar")
    assert report.folder == home
    assert report.notes == [f"{home.parent / 'cifar100'} contains the same task and is not used"]


def test_images_that_cannot_be_decoded_are_counted_and_named(home: Path) -> None:
    (home / "images/test/000003.jpg").write_bytes(b"")
    whole = (home / "images/val200/000001.jpg").read_bytes()
    (home / "images/val200/000001.jpg").write_bytes(whole[: len(whole) // 2])
    [problem] = check(home.parent).problems
    assert problem.startswith("2 of 76 images cannot be decoded, the first: images/val200/000001.jpg (")
    assert problem.endswith("images/test/000003.jpg (the file is empty)")


def test_missing_images_and_lists_and_labels_out_of_range(home: Path) -> None:
    (home / "images/test/000003.jpg").unlink()
    (home / "val200.txt").unlink()
    with (home / "train800.txt").open("a") as lines:
        lines.write("images/train800/000000.jpg 10\n")
    label, listing, missing = check(home.parent).problems
    assert "label 10, but eurosat has 10 classes" in label
    assert "val200.txt cannot be read" in listing
    assert "1 of 12 images are missing" in missing


def test_training_lists_must_agree(home: Path) -> None:
    def differing() -> list[str]:
        return check(home.parent).problems

    lines = (home / "train800val200.txt").read_text().splitlines(keepends=True)
    (home / "train800val200.txt").write_text("".join(reversed(lines)))
    assert differing() == []
    path, label = lines[0].split()
    (home / "train800val200.txt").write_text("".join([f"{path} {(int(label) + 1) % 10}\n", *lines[1:]]))
    assert differing() == ["train800val200 is not train800 and val200 together: 2 images or labels differ"]
    (home / "train800val200.txt").write_text("".join(lines))
    shutil.copyfile(home / "images/test/000000.jpg", home / "images/train800val200/000007.jpg")
    assert differing() == ["train800val200 is not train800 and val200 together: 2 images or labels differ"]


def test_image_in_training_and_validation_is_noted(home: Path) -> None:
    for split in ("train800", "train800val200"):
        shutil.copyfile(home / "images/val200/000000.jpg", home / f"images/{split}/000000.jpg")
    label = (home / "val200.txt").read_text().split()[1]
    for split in ("train800", "train800val200"):
        _, *rest = (home / f"{split}.txt").read_text().splitlines(keepends=True)
        (home / f"{split}.txt").write_text("".join([f"images/{split}/000000.jpg {label}\n", *rest]))
    report = check(home.parent)
    assert (report.state, report.notes) == ("complete", ["1 images are both in train800 and in val200"])


def test_track_asked_for(home: Path) -> None:
    assert check(home.parent, track="archive").state == "complete"
    report = check(home.parent, track="clean")
    assert (report.state, report.problems) == ("other track", [])
    shown = remedy([report], home.parent)
    assert "Of the track archive, not clean: eurosat" in shown
    assert "rm -r" not in shown


def test_formats_must_be_those_of_the_track(home: Path) -> None:
    with Image.open(home / "images/test/000000.jpg") as image:
        image.save(home / "images/test/000000.jpg", "PNG")
    assert check(home.parent).problems == ["the images have different formats: JPEG, PNG"]
    shutil.rmtree(home)
    home = write_vtab_task(home.parent.parent, "eurosat")
    write_marker(home, VTAB_TASKS["eurosat"], "clean", "test", {})
    assert check(home.parent).problems == ["images of the track clean are PNG; found: JPEG"]


def test_lists_changed_after_the_record(home: Path) -> None:
    write_marker(home, VTAB_TASKS["eurosat"], "archive", "test", {})
    assert check(home.parent).problems == []
    first, *rest = (home / "test.txt").read_text().splitlines(keepends=True)
    (home / "test.txt").write_text("".join([f"{first.split()[0]} {(int(first.split()[1]) + 1) % 10}\n", *rest]))
    [problem] = check(home.parent).problems
    assert "the list files were changed" in problem
    (home / "prepared.json").write_text("[]")
    assert "names no track" in check(home.parent).problems[0]


def test_sun397_shortage_is_explained() -> None:
    assert "sun_aophkoiosslinihb.jpg" in sun397_note(vtab_task("sun397"), 21_749)
    assert sun397_note(vtab_task("sun397"), 21_750) == sun397_note(vtab_task("dtd"), 21_749) == ""


def test_all_19_are_checked_by_default(tmp_path: Path) -> None:
    write_vtab_task(tmp_path, "dtd")
    reports = prepare_vtab(tmp_path, check_sizes=False)
    assert [report.task.name for report in reports] == list(VTAB_TASKS)
    assert [report.state for report in reports].count("missing") == 18
    shown = remedy(reports, tmp_path)
    assert "1 of 19 tasks are complete" in shown
    assert f"replora-cli prepare vtab --root {tmp_path} --tasks cifar,caltech101,oxford_flowers102," in shown
    assert all(word in shown for word in ("--from_tfds true", "--hub OWNER/NAME", "get_vtab1k.py"))


def test_damage_names_the_folder_to_delete(home: Path) -> None:
    (home / "images/test/000003.jpg").write_bytes(b"")
    shown = remedy(prepare_vtab(home.parent, ["eurosat"], check_sizes=False), home.parent)
    assert f"rm -r {home}" in shown
    assert "--tasks eurosat --from_tfds true" in shown
