"""`prepare fgvc` and `prepare images`: complete data pass, and every defect is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from replora.cli.main import main
from replora.datasets.image.fgvc import FGVC_TASKS
from tests.fake_data import write_fgvc_task, write_image_folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of unreadable files go into the working directory."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def problems(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What `prepare` finds wrong; its exit status must say the same."""
    try:
        main(["prepare", *arguments])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    found = capsys.readouterr().out.split("problem: ")[1:]
    assert status == (1 if found else 0)
    return found


def test_whole_data_sets_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in FGVC_TASKS:
        write_fgvc_task(tmp_path, task)
    assert problems(capsys, "fgvc", f"--root={tmp_path}", "--check_sizes=false") == []
    photos = write_image_folder(tmp_path / "photos")
    assert problems(capsys, "images", str(photos)) == []


def test_sizes_of_the_splits_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["prepare", "images", str(write_image_folder(tmp_path / "photos"))])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("photos")]
    assert line.split() == ["photos", "3", "24", "3", "3", "complete"]


def test_faults_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = write_fgvc_task(tmp_path, "stanford_dogs")
    options = ("fgvc", f"--root={tmp_path}", "--tasks=stanford_dogs")
    (wrong,) = problems(capsys, *options)
    assert "has 4 classes" in wrong
    image = home / "Images" / next(iter(json.loads((home / "test.json").read_text())))
    image.write_bytes(image.read_bytes()[:100])
    (wrong,) = problems(capsys, *options, "--check_sizes=false")
    assert "1 of 20 images cannot be read" in wrong
    assert image.name in wrong
    image.unlink()
    (wrong,) = problems(capsys, *options, "--check_sizes=false")
    assert image.name in wrong


def test_damaged_photo_and_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_image_folder(tmp_path / "photos")
    image = photos / "cat" / "3.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    (wrong,) = problems(capsys, "images", str(photos))
    assert str(image) in wrong
    (wrong,) = problems(capsys, "images", str(tmp_path / "none"))
    assert "none" in wrong
    with pytest.raises(SystemExit):
        main(["prepare", "fgvc", "--tasks=birds"])
    assert "'birds'" in capsys.readouterr().err


def test_every_unreadable_image_is_listed_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_image_folder(tmp_path / "photos", per_class=20)
    for i in range(10):
        file = photos / "cat" / f"{i}.jpg"
        file.write_bytes(b"no image" if i % 2 else file.read_bytes()[:-200])
    Image.new("L", (400, 300)).save(photos / "dog" / "large.png")
    with pytest.raises(SystemExit):
        main(["prepare", "images", str(photos), "--unreadable", "all.txt"])
    shown = capsys.readouterr().out
    assert "10 of 61 images cannot be read" in shown
    assert "all 10 files that cannot be read: all.txt" in shown
    lines = Path("all.txt").read_text("utf-8").splitlines()
    assert [str(photos / "cat" / f"{i}.jpg") in "".join(lines) for i in range(20)] == [True] * 10 + [False] * 10
    assert all("cannot be read: " in line for line in lines)
    assert "files per class: dog 21, cat 20, eel 20; the smallest is eel with 20 (16 train, 2 val, 2 test)" in shown
    assert "width x height: 24 x 30 to 400 x 300 pixels, the median " in shown
    assert "modes: 50 RGB, 1 L" in shown


def test_many_unreadable_images_are_named_up_to_twenty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_image_folder(tmp_path / "photos", [f"class {i:02d}" for i in range(30)], per_class=2)
    for file in photos.rglob("1.jpg"):
        file.write_bytes(b"")
    (wrong,) = problems(capsys, "images", str(photos))
    assert wrong.count("1.jpg") == 20
    assert "and 10 more" in wrong
    assert len(Path("unreadable.txt").read_text("utf-8").splitlines()) == 30


@pytest.mark.parametrize(("test", "few"), [(3, True), (100, True), (400, False)])
def test_few_test_images_are_told_with_their_interval(
    test: int, few: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image_folder(tmp_path / "photos", ["cat", "dog"], 1, splits=["train"])
    write_image_folder(tmp_path / "photos", ["cat"], test, splits=["test"])
    main(["prepare", "images", str(tmp_path / "photos")])
    shown = capsys.readouterr().out
    assert (f"{test} test files are few" in shown) == few
    if test == 100:
        assert "90.0% (90 of 100) would have a 95 % confidence interval from 82.6% to 94.5% (Wilson)" in shown


PLACES = ("vtab", "fgvc", "images", "videos", "commonsense", "ssv2", "hmdb51")


@pytest.mark.parametrize("word", PLACES)
def test_every_check_takes_its_place_in_both_forms(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "data"
    options = ["--check_sizes", "false"] if word not in ("images", "videos") else ["--val_fraction", "0.2"]
    forms = (
        [str(place), *options],
        [*options, str(place)],
        ["--root", str(place), *options],
        [*options, f"--root={place}"],
        [str(place), f"--root={place}", *options],
    )
    found = set()
    for arguments in forms:
        with pytest.raises(SystemExit) as stopped:
            main(["prepare", word, *arguments])
        shown = capsys.readouterr()
        found.add((stopped.value.code, shown.out))
        assert not shown.err.startswith("usage")
    assert len(found) == 1, found
    assert str(place) in found.pop()[1]


@pytest.mark.parametrize("word", PLACES)
def test_two_places_are_refused(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", word, str(tmp_path / "one"), "--root", str(tmp_path / "other")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"two places are given for the data, {tmp_path / 'one'} and --root {tmp_path / 'other'}" in error


@pytest.mark.parametrize("word", ["images", "videos"])
def test_custom_data_have_no_default_place(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", word])
    assert stopped.value.code == 2
    assert f"replora-cli prepare {word} ROOT" in capsys.readouterr().err
