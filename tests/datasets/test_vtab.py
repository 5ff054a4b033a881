from __future__ import annotations

from pathlib import Path

import pytest
import torch

from replora.datasets.errors import CorruptImageError, DatasetNotFoundError, ListFileError, UnknownTaskError
from replora.datasets.image.read import ImageReader
from replora.datasets.vtab.dataset import VTAB, VTAB_TASKS, lists_sha256, vtab_averages, vtab_task
from replora.errors import RepLoRAError
from tests.fake_data import write_vtab, write_vtab_task

# Columns in the order of the published tables; the numbers are from NOAH's figure and V-PETL's README.
LORA = "67.1 91.4 69.4 98.8 90.4 85.3 54.0 84.9 95.3 84.4 73.6 82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0"
FULL = "68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_vtab_task(tmp_path, "eurosat")


def eurosat(home: Path, split: str = "train800", **options: object) -> VTAB:
    return VTAB(home.parent, "eurosat", split, reader=ImageReader(8), **({"check_sizes": False} | options))  # type: ignore[arg-type]


def row(numbers: str) -> dict[str, float]:
    return dict(zip(VTAB_TASKS, map(float, numbers.split()), strict=True))


# --- the table


def test_table_has_the_19_tasks_of_the_benchmark() -> None:
    assert len(VTAB_TASKS) == 19
    groups = [task.group for task in VTAB_TASKS.values()]
    assert [groups.count(group) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
    assert all(name == task.name and task.label_rule for name, task in VTAB_TASKS.items())
    assert sum(task.test_size or 0 for task in VTAB_TASKS.values()) == 387_904


@pytest.mark.parametrize(
    ("task", "classes", "test_size"),
    [
        ("cifar", 100, 10_000),
        ("caltech101", 102, 6_084),
        ("dtd", 47, 1_880),
        ("oxford_flowers102", 102, 6_149),
        ("oxford_iiit_pet", 37, 3_669),
        ("svhn", 10, 26_032),
        ("sun397", 397, 21_750),
        ("patch_camelyon", 2, 32_768),
        ("eurosat", 10, 5_400),
        ("resisc45", 45, 6_300),
        ("diabetic_retinopathy", 5, 42_670),
        ("clevr_count", 8, 15_000),
        ("clevr_dist", 6, 15_000),
        ("dmlab", 6, 22_735),
        ("kitti", 4, 711),
        ("dsprites_loc", 16, 73_728),
        ("dsprites_ori", 16, 73_728),
        ("smallnorb_azi", 18, 12_150),
        ("smallnorb_ele", 9, 12_150),
    ],
)
def test_table_sizes(task: str, classes: int, test_size: int) -> None:
    found = VTAB_TASKS[task]
    assert (found.num_classes, found.size("test")) == (classes, test_size)
    assert [found.size(split) for split in ("train800", "val200", "train800val200")] == [800, 200, 1000]


def test_no_alias_names_two_tasks() -> None:
    folders = [folder for task in VTAB_TASKS.values() for folder in task.folders]
    assert len(folders) == len(set(folders))


@pytest.mark.parametrize(("numbers", "groups", "tasks"), [(LORA, 74.60, 72.25), (FULL, 68.97, None)])
def test_averages_reproduce_published_rows(numbers: str, groups: float, tasks: float | None) -> None:
    averages = vtab_averages(row(numbers))
    assert averages["mean_of_groups"] == pytest.approx(groups, abs=0.006)
    if tasks is not None:
        assert averages["mean_of_tasks"] == pytest.approx(tasks, abs=0.006)


def test_averages_of_groups() -> None:
    averages = vtab_averages(row(LORA))
    means = [averages["natural"], averages["specialized"], averages["structured"]]
    assert means == pytest.approx([79.49, 84.55, 59.78], abs=0.006)


def test_averages_refuse_an_incomplete_or_unknown_row() -> None:
    incomplete = row(LORA)
    del incomplete["kitti"]
    with pytest.raises(RepLoRAError, match="need all 19 tasks; 1 are missing: kitti"):
        vtab_averages(incomplete)
    with pytest.raises(RepLoRAError, match=r"'citti' is not one of the 19.*Did you mean 'kitti'"):
        vtab_averages(incomplete | {"citti": 1.0})


# --- reading


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vtab(tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize("task", VTAB_TASKS)
def test_every_task_is_read_from_its_folder(archive: Path, task: str) -> None:
    sizes = {"train800": 16, "val200": 8, "train800val200": 24, "test": 8}
    for split, size in sizes.items():
        dataset = VTAB(archive, task, split, reader=ImageReader(8), check_sizes=False)  # type: ignore[arg-type]
        assert len(dataset) == size
        assert {0, VTAB_TASKS[task].num_classes - 1} <= set(dataset.labels)
        assert len(dataset.class_names) == VTAB_TASKS[task].num_classes
    sample = dataset[-1]
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, 8, 8)
    assert (sample["label"], sample["index"]) == (dataset.labels[7], 7)


def test_real_sizes_pass_the_check(tmp_path: Path) -> None:
    write_vtab_task(tmp_path, "kitti", train=800, val=200, test=711, image_size=(4, 4))
    assert [len(VTAB(tmp_path, "kitti", split)) for split in ("train800val200", "test")] == [1000, 711]


def test_iteration_ends(home: Path) -> None:
    assert [sample["index"] for sample in eurosat(home)] == list(range(16))


@pytest.mark.parametrize("name", ["cifar", "cifar100"])
@pytest.mark.parametrize("below", ["", "vtab-1k"])
def test_root_is_the_archive_or_its_parent_and_folders_may_have_an_alias(tmp_path: Path, name: str, below: str) -> None:
    home = write_vtab_task(tmp_path, "cifar", folder=name)
    assert VTAB(tmp_path / below, "cifar", "test", check_sizes=False).folder == home


def test_own_data_set_in_the_layout(tmp_path: Path) -> None:
    write_vtab_task(tmp_path, "leaves", num_classes=3, test=5)
    dataset = VTAB(tmp_path, "leaves", "test", num_classes=3)
    assert len(dataset) == 5
    assert dataset.task.group is None


def test_list_file_may_have_bom_crlf_blank_lines_spaces_and_backslashes(home: Path) -> None:
    (home / "images" / "val200" / "a b.jpg").write_bytes((home / "images/val200/000000.jpg").read_bytes())
    text = "\ufeffimages/val200/a b.jpg 3\r\n\r\n./images/val200/000001.jpg\t9 \r\nimages\\val200\\000002.jpg 0"
    (home / "val200.txt").write_bytes(text.encode())
    dataset = eurosat(home, "val200")
    assert dataset.labels == [3, 9, 0]
    assert len([dataset[i] for i in range(3)]) == 3


def test_list_files_are_identified_by_a_hash(home: Path) -> None:
    before = lists_sha256(home)
    assert before == lists_sha256(home)
    (home / "test.txt").write_text("images/test/000000.jpg 1\n")
    assert lists_sha256(home) != before


# --- errors


def test_unknown_task_names_the_nearest_and_the_remedy() -> None:
    with pytest.raises(UnknownTaskError, match=r"'eurosta' is not one.*Did you mean 'eurosat'\?.*num_classes=\.\.\."):
        vtab_task("eurosta")


def test_alias_is_no_task() -> None:
    with pytest.raises(UnknownTaskError, match="'oxford_pet' is called 'oxford_iiit_pet' here"):
        vtab_task("oxford_pet", num_classes=37)


def test_num_classes_must_agree_with_the_table() -> None:
    assert vtab_task("eurosat", 10) is VTAB_TASKS["eurosat"]
    with pytest.raises(UnknownTaskError, match="num_classes=9 was given for the task 'eurosat', which has 10"):
        vtab_task("eurosat", 9)
    with pytest.raises(UnknownTaskError, match="at least one class"):
        vtab_task("leaves", 0)


@pytest.mark.parametrize("name", ["../leaves", "a/b", "..", "", "C:\\x"])
def test_task_is_no_path(name: str) -> None:
    with pytest.raises(UnknownTaskError, match=r"is a path\. A task is the name of a folder"):
        vtab_task(name, 3)


def test_missing_root_and_folder_say_what_is_there(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"the folder .*nowhere does not exist"):
        VTAB(tmp_path / "nowhere", "cifar", "test")
    with pytest.raises(DatasetNotFoundError) as error:
        VTAB(tmp_path, "cifar", "test")
    message = str(error.value)
    assert "a folder cifar or cifar100 in" in message
    assert "vtab-1k contains eurosat" in message
    assert "cifar/{train800,val200,train800val200,test}.txt" in message
    assert "--data.root" in message
    assert "REPLORA_DATA" in message
    assert "get_vtab1k.py" in message
    with pytest.raises(DatasetNotFoundError, match=f"use its parent folder, {home.parent}"):
        VTAB(home, "eurosat", "test")
    with pytest.raises(DatasetNotFoundError) as error:
        VTAB(tmp_path, "leaves", "test", num_classes=3)
    assert "get_vtab1k.py" not in str(error.value)


def test_missing_list_file(home: Path) -> None:
    (home / "test.txt").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"test\.txt cannot be read .*found there: train800\.txt, "):
        eurosat(home, "test")
    with pytest.raises(DatasetNotFoundError, match=r"no split 'tset'\. Did you mean 'test'"):
        eurosat(home, "tset")


def test_wrong_count(home: Path) -> None:
    with pytest.raises(ListFileError, match=r"lists 16 images, but train800 of eurosat has 800.*check_sizes=False"):
        eurosat(home, check_sizes=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/train800/000000.jpg", "line 2: .* is not a path, a space and an integer"),
        ("images/train800/000000.jpg 1.0", "is not a path, a space and an integer"),
        ("7", "is not a path, a space and an integer"),
        ("images/train800/000000.jpg 10", r"line 2: label 10, but eurosat has 10 classes \(labels 0 to 9\)"),
        ("images/train800/000000.jpg -1", "label -1"),
        ("/etc/passwd 1", "line 2: the path '/etc/passwd' leaves the data"),
        ("images/../../x.jpg 1", "leaves the data"),
        ("images\\..\\x.jpg 1", "leaves the data"),
        ("C:\\x.jpg 1", "leaves the data"),
        ("images/train800/999999.jpg 1", r"1 of 2 images are missing.*images/train800/999999.jpg \(line 2\)"),
        ("images/nowhere/000000.jpg 1", "images are missing"),
        ("images/train800 1", "images are missing"),
    ],
)
def test_bad_line(home: Path, line: str, message: str) -> None:
    (home / "train800.txt").write_text(f"images/train800/000000.jpg 0\n{line}\n")
    with pytest.raises(ListFileError, match=message):
        eurosat(home)


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "lists no image"), (b"\xff\xfe\x00", "is not UTF-8 text")])
def test_bad_list_file(home: Path, content: bytes, message: str) -> None:
    (home / "train800.txt").write_bytes(content)
    with pytest.raises(ListFileError, match=message):
        eurosat(home)


def test_links_may_not_leave_the_data(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (home / "images" / "test").rename(outside)
    (home / "images" / "test").symlink_to(outside)
    with pytest.raises(ListFileError, match="is a link that leaves the data"):
        VTAB(home.parent, "eurosat", "test", check_sizes=False)
    # With the folder above both as root, the link stays inside; a linked task folder is a root of its own.
    assert len(VTAB(tmp_path, "eurosat", "test", check_sizes=False)) == 8
    image = home / "images" / "val200" / "000000.jpg"
    image.unlink()
    image.symlink_to(outside / "000000.jpg")
    with pytest.raises(ListFileError, match=r"000000.jpg is a link that leaves the data"):
        VTAB(home.parent, "eurosat", "val200", check_sizes=False)


def test_task_folder_may_be_a_link(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "eurosat").symlink_to(home)
    assert len(VTAB(elsewhere, "eurosat", "test", check_sizes=False)) == 8


def test_corrupt_image_is_named_when_it_is_read(home: Path) -> None:
    (home / "images" / "test" / "000002.jpg").write_bytes(b"")
    dataset = eurosat(home, "test")
    with pytest.raises(CorruptImageError, match=r"images/test/000002.jpg cannot be read: the file is empty"):
        dataset[2]
