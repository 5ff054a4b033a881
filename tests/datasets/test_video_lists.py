"""The layouts of SSv2, HMDB51 and custom videos, and their possible defects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

import pytest

from replora.datasets.common.labeled_files import FileTableError
from replora.datasets.errors import DatasetNotFoundError, ListFileError
from replora.datasets.video.folder import read_video_table
from replora.datasets.video.hmdb51 import film_of, read_hmdb51
from replora.datasets.video.ssv2 import read_ssv2
from tests.fake_videos import SSV2_TEMPLATES, write_avi, write_hmdb51, write_ssv2, write_video_folder


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ssv2(tmp_path_factory.mktemp("ssv2") / "data")


@pytest.fixture(scope="module")
def hmdb51(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hmdb51(tmp_path_factory.mktemp("hmdb51") / "data")


@pytest.fixture
def labels(ssv2: Path, tmp_path: Path) -> Path:
    """A folder with the lists of `ssv2` to damage, and its videos."""
    home = tmp_path / "copy"
    home.mkdir()
    for file in ssv2.glob("*.json"):
        (home / file.name).write_bytes(file.read_bytes())
    videos = home / "videos"
    videos.mkdir()
    for file in (ssv2 / "20bn-something-something-v2").iterdir():
        (videos / file.name).write_bytes(file.read_bytes())
    return home


def test_ssv2_is_read(ssv2: Path) -> None:
    table = read_ssv2(ssv2, check_sizes=False)
    assert table.class_names == list(SSV2_TEMPLATES.values())
    assert table.home == ssv2 / "20bn-something-something-v2"
    assert table.paths[0] == PurePosixPath("1001.webm")
    assert table.labels == [0, 1, 2] * 5
    assert table.splits == ["train"] * 9 + ["test"] * 6  # the official validation videos are the test


def test_ssv2_in_its_later_layout_and_as_frames(labels: Path, tmp_path: Path) -> None:
    (labels / "labels").mkdir()
    for file in labels.glob("*.json"):
        file.rename(labels / "labels" / file.name.removeprefix("something-something-v2-"))
    assert read_ssv2(labels, check_sizes=False).home == labels / "videos"
    frames = read_ssv2(write_ssv2(tmp_path / "frames", train=3, validation=3, frames=True), check_sizes=False)
    assert frames.paths[0] == PurePosixPath("1001")
    assert (frames.home / frames.paths[0]).is_dir()


def test_what_can_be_wrong_with_ssv2(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ListFileError, match=r"has 3 classes, but Something-Something-V2 has 174"):
        read_ssv2(labels)
    train = labels / "something-something-v2-train.json"
    items = json.loads(train.read_text())

    def refused(message: str) -> None:
        with pytest.raises((ListFileError, DatasetNotFoundError), match=message):
            read_ssv2(labels, check_sizes=False)

    train.write_text(json.dumps([{**items[0], "template": "Foldin [something]"}, *items[1:]]))
    refused(r"entry 0 has the template 'Foldin something', which is not a class\. Did you mean 'Folding something'")
    train.write_text(json.dumps([{"id": "1"}]))
    refused(r"entry 0 has no `id` and `template`")
    train.write_text(json.dumps([{**items[0], "id": "../1"}]))
    refused(r"the id '\.\./1', which is not a file name")
    train.write_text(json.dumps([*items, {**items[0], "id": "1010"}]))
    refused(r"the video '1010' is also a training video")
    train.write_text(json.dumps([*items, {**items[0], "template": items[1]["template"]}]))
    refused(r"entry 9 repeats the video '1001'")
    train.write_text("[")
    refused("is not JSON")
    train.write_text(json.dumps([*items, {**items[0], "id": "7"}]))
    refused(r"1 of 16 videos are missing in .*videos: 7\.webm")
    train.unlink()
    refused(r"has no something-something-v2-train\.json, .*JSON files found: something-something-v2-labels\.json")
    with pytest.raises(DatasetNotFoundError, match="There is no folder"):
        read_ssv2(tmp_path / "nowhere")


def test_ssv2_without_videos(labels: Path) -> None:
    (labels / "videos").rename(labels / "elsewhere")
    with pytest.raises(DatasetNotFoundError, match=r"contains none of the 15 videos; looked for 1001\.webm"):
        read_ssv2(labels, check_sizes=False)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51_is_read(hmdb51: Path, split: int) -> None:
    table = read_hmdb51(hmdb51, split, check_sizes=False)
    assert table.class_names == ["brush_hair", "cartwheel", "wave"]
    tested = [path for path, own in zip(table.paths, table.splits, strict=True) if own == "test"]
    assert len(table.paths) == 21  # 6 clips of 3 films and 1 of the tested film, for each class
    assert [path.name.split("_")[0] for path in tested] == [f"Film!{split - 1}(x)"] * 3
    assert all(path.parent.name == table.class_names[i] for path, i in zip(table.paths, table.labels, strict=True))


def test_clips_of_one_film_stay_together(hmdb51: Path) -> None:
    table = read_hmdb51(hmdb51, check_sizes=False)
    films = [film_of(path) for path in table.paths]
    assert set(films) == {f"Film!{i}(x)" for i in range(4)}
    assigned = table.assign(0.2, 0.0, 0, films)
    for name in range(3):
        of = {
            split: {
                film
                for film, own, label in zip(films, assigned, table.labels, strict=True)
                if (own, label) == (split, name)
            }
            for split in ("train", "val", "test")
        }
        assert len(of["val"]) == 1
        assert not of["val"] & of["train"]
    assert assigned.count("val") == 6
    assert table.assign(0.2, 0.0, 0, films) == assigned
    assert table.assign(0.2, 0.0, 1, films) != assigned
    assert "train" in table.assign(0.99, 0.0, 0, films)


@pytest.mark.parametrize(
    ("path", "film"),
    [
        ("fall_floor/A_Film_fall_floor_u_nm_np1_fr_med_0.avi", "A_Film"),
        ("fall_floor/A_Film_fallfloor_u_nm_np1_fr_med_0.avi", "A_Film"),
        ("fall_floor/A_Film_fallfloor_u_nm_np1_fr_med_0", "A_Film"),
        ("fall_floor/mine.avi", "mine.avi"),
    ],
)
def test_films(path: str, film: str) -> None:
    assert film_of(PurePosixPath(path)) == film


def test_names_without_a_film_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_hmdb51(tmp_path, classes=("wave",), films=3)
    read_hmdb51(root, check_sizes=False)
    assert not caplog.text
    lists = root / "testTrainMulti_7030_splits" / "wave_test_split1.txt"
    lists.write_text(lists.read_text() + "mine.avi 1\n")
    write_avi(root / "videos" / "wave" / "mine.avi")
    read_hmdb51(root, check_sizes=False)
    assert "1 of 6 names, such as wave/mine.avi, do not contain their film" in caplog.text


def test_what_can_be_wrong_with_hmdb51(hmdb51: Path, tmp_path: Path) -> None:
    with pytest.raises(ListFileError, match="lists of 3 classes for split 1, but HMDB51 has 51"):
        read_hmdb51(hmdb51)
    with pytest.raises(ListFileError, match="split=4"):
        read_hmdb51(hmdb51, 4)  # type: ignore[arg-type]
    with pytest.raises(DatasetNotFoundError, match=r"has no lists CLASS_test_split1\.txt"):
        read_hmdb51(tmp_path)
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    (lists / "wave_test_split1.txt").write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(ListFileError, match=r"wave_test_split1\.txt, line 2: 'b\.avi 3' is not a file name"):
        read_hmdb51(tmp_path, check_sizes=False)
    (lists / "wave_test_split1.txt").write_text("a.avi 2\nb.avi 1\na.avi 1\n")
    with pytest.raises(ListFileError, match=r"line 3: a\.avi is listed twice"):
        read_hmdb51(tmp_path, check_sizes=False)
    (lists / "wave_test_split1.txt").write_text("a.avi 1\n")
    with pytest.raises(DatasetNotFoundError, match=r"looked for wave/a\.avi"):
        read_hmdb51(tmp_path, check_sizes=False)


def test_own_videos(tmp_path: Path) -> None:
    root = write_video_folder(tmp_path / "own", per_class=3)
    table = read_video_table(root)
    assert [path.as_posix() for path in table.paths[:3]] == ["left/0.avi", "left/1.avi", "left/clip"]
    (root / "list.csv").write_text("path,label,split\nleft/0.avi,l,train\nright/clip,r,train\nright/0.avi,r,test\n")
    listed = read_video_table(root / "list.csv")
    assert (listed.class_names, listed.labels) == (["l", "r"], [0, 1, 1])
    assert listed.splits == ["train", "test", "train"]
    (root / "list.csv").write_text("left/0.avi,l\nright/clip,r\nright/0.avi,r\n")  # as V-PETL writes its lists
    listed = read_video_table(root / "list.csv")
    assert (listed.labels, listed.splits) == ([0, 1, 1], [None] * 3)
    (root / "list.csv").write_text("path,label\nleft/0.avi,l\nright/7.avi,r\n")
    with pytest.raises(ListFileError, match=r"1 of 2 videos are missing, the first: right/7\.avi"):
        read_video_table(root / "list.csv")
    (root / "up").mkdir()
    (root / "up" / "0.braw").touch()
    with pytest.raises(FileTableError, match=r"up has no videos \(files ending in \.mp4"):
        read_video_table(root)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_videos_that_were_encoded_again(ssv2: Path, hmdb51: Path, tmp_path: Path, suffix: str) -> None:
    """As VideoMAE's users are told to. Their content is not opened here."""
    for source, copy in ((ssv2, tmp_path / "ssv2"), (hmdb51, tmp_path / "hmdb51")):
        shutil.copytree(source, copy)
        for file in [*copy.rglob("*.webm"), *copy.rglob("*.avi")]:
            file.rename(file.with_suffix(suffix))
    found = read_ssv2(tmp_path / "ssv2", check_sizes=False)
    assert {path.suffix for path in found.paths} == {suffix}
    found, before = (read_hmdb51(root, check_sizes=False) for root in (tmp_path / "hmdb51", hmdb51))
    assert {path.suffix for path in found.paths} == {suffix}
    assert [film_of(path) for path in found.paths] == [film_of(path) for path in before.paths]
