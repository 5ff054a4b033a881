"""VTAB-1K from a stand-in for the Hugging Face hub, and malicious archives."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from replora.datasets.common.archive import unpack
from replora.datasets.errors import PrepareError
from replora.datasets.prepare.vtab import prepare_vtab
from replora.datasets.vtab.verify import TaskReport
from tests.fake_data import write_vtab
from tests.fake_hub import fake_hub


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `snapshot_download` copies as the repository someone/vtab."""
    source = fake_hub(monkeypatch, tmp_path / "hub") / "someone" / "vtab"
    source.mkdir(parents=True)
    return source


def take(root: Path, *tasks: str, **options: object) -> list[TaskReport]:
    return prepare_vtab(root, list(tasks), hub="someone/vtab", check_sizes=False, **options)  # type: ignore[arg-type]


def pack(folder: Path, archive: Path) -> None:
    """`folder` into a zip or tar file, under its own name, and then gone."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as target:
            for path in sorted(folder.rglob("*")):
                target.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz") as target:
            target.add(folder, folder.name)
    shutil.rmtree(folder)


@pytest.mark.parametrize("archive", ["vtab.zip", "data/vtab.tar.gz", None])
def test_whole_copy(tmp_path: Path, repository: Path, archive: str | None) -> None:
    folder = write_vtab(repository, ["cifar", "kitti"])
    (folder / "cifar").rename(folder / "cifar100")
    if archive:
        (repository / archive).parent.mkdir(exist_ok=True)
        pack(folder, repository / archive)
    root = tmp_path / "data"
    assert [report.state for report in take(root, "cifar", "kitti", "dtd")] == ["complete", "complete", "missing"]
    assert sorted(path.name for path in root.iterdir()) == ["cifar", "kitti"]
    marker = json.loads((root / "cifar" / "prepared.json").read_text())
    assert (marker["track"], marker["source"]) == ("archive", "huggingface.co/datasets/someone/vtab@abc123")


def test_one_archive_for_each_task(tmp_path: Path, repository: Path) -> None:
    folder = write_vtab(repository, ["svhn", "dtd"])
    for task in ("svhn", "dtd"):
        pack(folder / task, repository / f"{task}.tar.gz")
    assert [report.state for report in take(tmp_path / "data", "svhn", "dtd")] == ["complete", "complete"]


def test_what_is_there_already_is_not_downloaded(tmp_path: Path, repository: Path) -> None:
    write_vtab(tmp_path, ["dtd"])
    assert take(tmp_path, "dtd")[0].state == "complete"  # the repository is empty
    assert repository.exists()


def test_damaged_copy_is_reported(tmp_path: Path, repository: Path) -> None:
    folder = write_vtab(repository, ["kitti"])
    (folder / "kitti/images/val200/000002.jpg").write_bytes(b"corrupt")
    [report] = take(tmp_path / "data", "kitti")
    assert report.state == "corrupt"
    assert "1 of 56 images cannot be decoded" in report.problems[0]


def test_repository_without_the_tasks(tmp_path: Path, repository: Path) -> None:
    (repository / "README.md").write_text("nothing")
    with pytest.raises(PrepareError, match=r"has none of kitti: .*It has: README.md"):
        take(tmp_path / "data", "kitti")


def test_track_must_be_the_one_asked(tmp_path: Path, repository: Path) -> None:
    write_vtab(repository, ["kitti"])
    with pytest.raises(PrepareError, match="as in the track archive; --track clean was requested"):
        take(tmp_path / "data", "kitti", track="clean")
    assert not (tmp_path / "data" / "kitti").exists()


def test_link_in_a_repository_is_refused(tmp_path: Path, repository: Path) -> None:
    folder = write_vtab(repository, ["kitti"])
    image = folder / "kitti/images/test/000000.jpg"
    image.unlink()
    image.symlink_to("/etc/hostname")
    with pytest.raises(PrepareError, match=r"000000\.jpg is a link"):
        take(tmp_path / "data", "kitti")


@pytest.mark.parametrize("name", ["vtab", "../vtab/x", "a/b/c", "https://huggingface.co/a/b"])
def test_name_of_a_repository(tmp_path: Path, name: str) -> None:
    with pytest.raises(PrepareError, match="OWNER/NAME"):
        prepare_vtab(tmp_path, ["kitti"], hub=name)


def test_failed_download(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", fail)
    with pytest.raises(PrepareError, match=r"could not be downloaded .*ConnectionError: no route"):
        take(tmp_path / "data", "kitti")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PrepareError, match="pip install huggingface_hub"):
        take(tmp_path / "data", "kitti")
    assert repository.exists()


# --- archives


def tar_with(file: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(file, "w") as target:
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        target.addfile(good, io.BytesIO(b"good"))
        member.size = len(content)
        target.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_leave_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "tar":
        archive = tar_with(tmp_path / "x.tar", tarfile.TarInfo(name), b"evil")
    else:
        archive = tmp_path / "x.zip"
        with zipfile.ZipFile(archive, "w") as target:
            target.writestr("good.txt", "good")
            target.writestr(name, "evil")
    with pytest.raises(PrepareError, match=r"leaves .*Nothing was unpacked"):
        unpack(archive, tmp_path / "into" / "deep")
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "good.txt"
    with pytest.raises(PrepareError, match="'link' is a link or a device"):
        unpack(tar_with(tmp_path / "x.tar", member), tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_zip_link(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as target:
        target.writestr(member, "/etc/passwd")
    with pytest.raises(PrepareError, match="'link' is a link or a device"):
        unpack(tmp_path / "x.zip", tmp_path / "into")


def test_archive_that_is_damaged_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x.zip", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"not an archive")
        with pytest.raises(PrepareError, match=r"(?s)cannot be unpacked: .*download it again"):
            unpack(tmp_path / name, tmp_path / "into")
    member = tarfile.TarInfo("large")
    archive = tar_with(tmp_path / "y.tar", member, b"content")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    with pytest.raises(PrepareError, match="GiB left"):
        unpack(archive, tmp_path / "into")
