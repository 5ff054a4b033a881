"""One sweep at a time in a directory; what a killed one leaves blocks nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from replora.cli.main import main
from replora.run_directory import HOLDER, LOCK, RunDirectoryError, locked
from tests.sweeps.small_sweep import write_sweep

FIRST = """
import sys, time
from pathlib import Path
from replora.run_directory import locked
with locked(Path(sys.argv[1]), "A sweep", "Stop it."):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", FIRST, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(RunDirectoryError, match=rf"in use by A sweep of process {first.pid} on .*--out"),
            locked(tmp_path, "A sweep", "Choose another one with --out."),
        ):
            pass
        first.kill()
    with locked(tmp_path, "A sweep", ""):
        assert f"process {os.getpid()} on" in (tmp_path / HOLDER).read_text()
    with locked(tmp_path, "A sweep", ""):
        pass


def test_the_command_started_twice(tmp_path, monkeypatch, capsys):
    """Neither trials nor a report are written into the other's directory."""
    pytest.importorskip("ray", reason="the extra [sweep] is not installed")
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "s.yaml")
    with locked(tmp_path / "runs" / "s", "A sweep", ""), pytest.raises(SystemExit):
        main(["sweep", "--config=s.yaml"])
    assert "runs/s is in use by A sweep of process" in capsys.readouterr().err
    assert {file.name for file in (tmp_path / "runs" / "s").iterdir()} == {LOCK}
