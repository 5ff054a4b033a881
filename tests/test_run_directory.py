"""A run directory belongs to one run."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replora.run_directory import RunDirectoryError, check_unused, create_unique, last_checkpoint, locked


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
