"""A run directory belongs to one run."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest
from filelock import FileLock, Timeout

from replora.cli.main import run
from replora.run_directory import (
    HOLDER,
    LOCK,
    RunDirectoryError,
    check_unused,
    create_unique,
    last_checkpoint,
    locked,
    locked_workplace,
)


def test_new_directories_are_unique_when_many_ask_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(create_unique, [tmp_path / "runs" / "20260101-000000-dtd-replora"] * 40))
    assert len(set(made)) == 40
    assert sorted(tmp_path.glob("runs/*")) == sorted(made)


def test_a_directory_with_a_checkpoint_is_refused_with_the_command_that_resumes_it(tmp_path: Path) -> None:
    check_unused(tmp_path)
    check_unused(tmp_path / "absent")
    last_checkpoint(tmp_path).parent.mkdir()
    last_checkpoint(tmp_path).touch()
    with pytest.raises(RunDirectoryError, match=f"--ckpt_path {last_checkpoint(tmp_path)}"):
        check_unused(tmp_path)


def test_a_directory_with_a_finished_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").touch()
    with pytest.raises(RunDirectoryError, match="finished run"):
        check_unused(tmp_path)


def other_process(folder: Path, then: str = "pass") -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from pathlib import Path; from replora.run_directory import locked\n"
        f"with locked(Path(sys.argv[1]), 'A fit', 'Wait for it.'): {then}"
    )
    return subprocess.run([sys.executable, "-c", program, str(folder)], check=False, capture_output=True, text=True)


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with locked(tmp_path, "A fit", "Wait for it."):
        refused = other_process(tmp_path)
        assert refused.returncode != 0
        assert "in use by A fit of process" in refused.stderr
        assert "Wait for it." in refused.stderr
    assert other_process(tmp_path).returncode == 0


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    killed = other_process(tmp_path, then="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.returncode < 0
    with locked(tmp_path, "A fit", "Wait for it."):
        pass


class Late(FileLock):
    """The lock of a command that starts in a new directory at the same moment as another one, which gets it."""

    others: ClassVar[list[FileLock]] = []

    def acquire(self, *_: object, **__: object) -> NoReturn:
        other = FileLock(self.lock_file)
        other.acquire()
        self.others.append(other)
        Path(self.lock_file).with_name(HOLDER).write_text("A fit of process 1 on node1")
        raise Timeout(self.lock_file)


@pytest.mark.parametrize(
    "command",
    [
        "sweep --config=sweep/quickstart_low_data.yaml --workers=1 --out",
        "tune --config=quickstart.yaml --out",
        "fit --config=quickstart.yaml --run_dir",
    ],
)
def test_who_comes_late_leaves_the_lock_of_the_other(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "new" / "home"
    monkeypatch.setattr("replora.run_directory.FileLock", Late)
    with pytest.raises(RunDirectoryError, match="is in use by A fit of process 1 on node1"):
        run([*command.split(), str(home)])
    assert {LOCK, HOLDER} <= {file.name for file in home.iterdir()}


@pytest.mark.parametrize("begun", [False, True])
def test_a_command_that_ends_in_an_error_before_it_begins_leaves_nothing(tmp_path: Path, begun: bool) -> None:
    """Not even a folder, unless that was there before."""

    def fails(home: Path) -> NoReturn:
        (home / ".locks" / "select").mkdir(parents=True)
        if begun:
            (home / ".locks" / "select" / "a.lock").touch()
        raise ZeroDivisionError

    (tmp_path / "empty").mkdir()
    for home in (tmp_path / "new" / "home", tmp_path / "empty"):
        with pytest.raises(ZeroDivisionError), locked_workplace(home, "A sweep", "Wait for it."):
            fails(home)
    assert (tmp_path / "new").exists() == begun
    assert any((tmp_path / "empty").iterdir()) == begun
