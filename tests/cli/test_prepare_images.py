"""`prepare fgvc` and `prepare images`: complete data pass, and every defect is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replora.cli.main import main
from replora.datasets.image.fgvc import FGVC_TASKS
from tests.fake_data import write_fgvc_task, write_image_folder


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
    assert line.split() == ["photos", "3", "24", "3", "3", "whole"]


def test_faults_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = write_fgvc_task(tmp_path, "stanford_dogs")
    options = ("fgvc", f"--root={tmp_path}", "--tasks=stanford_dogs")
    (wrong,) = problems(capsys, *options)
    assert "has 4 classes" in wrong
    image = home / "Images" / next(iter(json.loads((home / "test.json").read_text())))
    image.write_bytes(image.read_bytes()[:100])
    (wrong,) = problems(capsys, *options, "--check_sizes=false")
    assert "1 of 20 images cannot be read, the first: " in wrong
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
