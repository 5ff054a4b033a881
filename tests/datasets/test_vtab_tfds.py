"""VTAB-1K built from a stand-in for TensorFlow Datasets."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from replora.datasets.errors import PrepareError
from replora.datasets.image.read import ImageReader
from replora.datasets.prepare.vtab import prepare_vtab
from replora.datasets.vtab.dataset import VTAB, VTAB_TASKS, lists_sha256, vtab_task
from replora.datasets.vtab.labels import label_of
from replora.datasets.vtab.tfds import SLICES, rgb
from replora.datasets.vtab.tracks import Track
from tests.fake_tfds import CATALOG, example, install


def build(root: Path, *tasks: str, check_sizes: bool = False, track: Track | None = None) -> list[str]:
    reports = prepare_vtab(root, list(tasks) or None, from_tfds=True, track=track, check_sizes=check_sizes)
    assert [problem for report in reports for problem in report.problems] == []
    return [report.state for report in reports]


def failure(root: Path, *tasks: str, check_sizes: bool = False) -> str:
    """Why the first of the tasks could not be built."""
    report, *_ = prepare_vtab(root, list(tasks), from_tfds=True, check_sizes=check_sizes)
    assert report.state == "missing"
    assert "contains an interrupted build" in report.notes[0]
    return report.problems[0]


@pytest.mark.parametrize("track", ["archive", "clean"])
def test_all_19_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: Track) -> None:
    install(monkeypatch, limit=5)
    assert build(tmp_path, track=track) == ["complete"] * 19
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(VTAB_TASKS)
    for name in VTAB_TASKS:
        assert len(VTAB(tmp_path, name, "train800val200", check_sizes=False)) == 10
        marker = json.loads((tmp_path / name / "prepared.json").read_text())
        assert (marker["task"], marker["track"]) == (name, track)
        assert marker["image_format"] == ("JPEG" if track == "archive" else "PNG")
        assert marker["sizes"] == {"train800": 5, "val200": 5, "train800val200": 10, "test": 5}
        assert marker["lists_sha256"] == lists_sha256(tmp_path / name)
        data_set = SLICES[name].builder.partition(":")[0]
        assert marker["source"] == f"tensorflow_datasets {data_set}/{CATALOG[data_set][0]}"
        assert marker["versions"]["pillow"]


@pytest.mark.parametrize("task", VTAB_TASKS)
def test_slices_have_the_sizes_of_the_table(task: str) -> None:
    """By the real sizes of the data sets: 800, 200 and the test size of the table, none of them out of range."""
    slices, sizes = SLICES[task], CATALOG[SLICES[task].builder.partition(":")[0]][1]
    for split in ("train800", "val200", "test"):
        name, start, end = re.fullmatch(r"(\w+)(?:\[(\d*%?):(\d*)\])?", slices.of(split)).groups()  # type: ignore[union-attr]
        size = sizes[name]
        first = int(start[:-1]) * size // 100 if start and start.endswith("%") else int(start or 0)
        last = int(end or size)
        assert last <= size
        assert last - first == VTAB_TASKS[task].size(split)  # type: ignore[arg-type]


def test_images_and_labels_are_those_of_the_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    build(tmp_path, "clevr_dist", "dsprites_loc", "smallnorb_ele", track="clean")
    assert fake.asked == [
        "clevr: train[:800]",
        "clevr: train[63000:63200]",
        "clevr: validation",
        "dsprites: train[:800]",
        "dsprites: train[589824:590024]",
        "dsprites: train[663552:]",
        "smallnorb: train[:800]",
        "smallnorb: test[:200]",
        "smallnorb: test[50%:]",
    ]
    for task, name, split, start in (
        ("clevr_dist", "clevr", "train", 63_000),
        ("dsprites_loc", "dsprites", "train", 589_824),
        ("smallnorb_ele", "smallnorb", "test", 0),
    ):
        dataset = VTAB(tmp_path, task, "val200", check_sizes=False)
        originals = [example(name, split, start + index) for index in range(8)]
        assert dataset.labels == [label_of(task, original) for original in originals]
        for path, original in zip(dataset.paths, originals, strict=True):
            with Image.open(tmp_path / task / path) as image:
                assert np.array_equal(np.array(image), rgb(task, original["image"]))
        both = VTAB(tmp_path, task, "train800val200", check_sizes=False)
        assert both.labels == VTAB(tmp_path, task, "train800", check_sizes=False).labels + dataset.labels


def test_archive_is_jpeg_of_quality_75_with_halved_chroma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    build(tmp_path, "cifar")
    pixels = Image.fromarray(rgb("cifar", example("cifar100", "train", 0)["image"]).copy())
    pixels.save(tmp_path / "pillow's defaults.jpg")
    written = (tmp_path / "cifar/images/train800/000000.jpg").read_bytes()
    assert written == (tmp_path / "pillow's defaults.jpg").read_bytes()


def test_colors() -> None:
    mask = np.array([[[0], [1]]], np.uint8)
    assert rgb("dsprites_ori", mask).tolist() == [[[0] * 3, [255] * 3]]
    assert rgb("smallnorb_azi", mask + np.uint8(6)).tolist() == [[[6] * 3, [7] * 3]]
    with pytest.raises(PrepareError, match="values up to 255, not 0 and 1"):
        rgb("dsprites_loc", mask * np.uint8(255))
    with pytest.raises(PrepareError, match="float64"):
        rgb("cifar", mask / 2)


def test_real_size_and_a_count_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, limit=None)
    assert build(tmp_path, "kitti", check_sizes=True, track="clean") == ["complete"]
    assert [len(VTAB(tmp_path, "kitti", split)) for split in ("train800", "val200", "test")] == [800, 200, 711]
    fake.limit = 799
    problem = failure(tmp_path, "dtd", check_sizes=True)
    assert "train[:800] of dtd/3.0.1 has 799 images, but train800 of dtd has 800" in problem
    assert not (tmp_path / "dtd").exists()


def test_interruption_leaves_nothing_that_looks_whole_and_continues(tmp_path: Path, monkeypatch) -> None:
    fake = install(monkeypatch, fail_at=19)  # in the test images of kitti
    problem = failure(tmp_path, "kitti", "dtd")
    assert "could not provide kitti/3.2.0, test: RuntimeError: InvalidArgumentError: cannot decode" in problem
    kept = [path.name for path in tmp_path.iterdir() if path.name.startswith(".kitti")]
    assert kept == [".kitti-archive-kitti-3.2.0.partial"]
    assert (tmp_path / "dtd" / "prepared.json").exists()
    assert not (tmp_path / "kitti").exists()
    assert not (tmp_path / kept[0] / "test.txt").exists()
    before = (tmp_path / kept[0] / "images/train800/000003.jpg").stat().st_mtime_ns
    fake.asked = []
    assert build(tmp_path, "dtd", "kitti") == ["complete", "complete"]
    assert fake.asked == ["kitti: test"]
    assert (tmp_path / "kitti/images/train800/000003.jpg").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dtd", "kitti"]
    fake.asked = []
    assert build(tmp_path, "dtd", "kitti") == ["complete", "complete"]
    assert fake.asked == []


def test_full_disk_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with monkeypatch.context() as broken:

        def no_space(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        broken.setattr(Image.Image, "save", no_space)
        problem = failure(tmp_path, "kitti")
        assert re.search(r"00000\d\.jpg cannot be written: .*No space left", problem)
    assert not (tmp_path / "kitti").exists()
    assert build(tmp_path, "kitti") == ["complete"]


def test_other_track_is_not_taken_for_the_one_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    build(tmp_path, "kitti", track="archive")
    assert build(tmp_path, "kitti", track="clean") == ["other track"]
    assert build(tmp_path / "clean", "kitti", track="clean") == ["complete"]


def test_without_tfds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(PrepareError, match=r'pip install "replora\[tfds\]"'):
        prepare_vtab(tmp_path / "new", ["kitti"], from_tfds=True)
    assert not (tmp_path / "new").exists()


def test_two_sources_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="--from_tfds and --hub were both given"):
        prepare_vtab(tmp_path, ["kitti"], from_tfds=True, hub="a/b")


def test_built_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    build(tmp_path, "dsprites_ori", track="clean")
    sample = VTAB(tmp_path, "dsprites_ori", "test", reader=ImageReader(8), check_sizes=False)[0]
    assert sample["image"].dtype == torch.uint8
    assert vtab_task("dsprites_ori").num_classes > sample["label"] >= 0
