"""One sweep at a time per directory; a killed sweep leaves nothing that blocks the next one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from replora.cli.main import main
from replora.sweeps.lock import LockedError, locked
from tests.sweeps.small_sweep import write_sweep

HOLDER = """
import sys, time
from pathlib import Path
from replora.sweeps.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(LockedError, match=rf"runs in .* already \(process {first.pid} on .*--out"),
            locked(tmp_path),
        ):
            pass
        first.kill()
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    with locked(tmp_path):
        pass


def test_the_command_started_twice(tmp_path, monkeypatch, capsys):
    """Neither trials nor a report are written into the other's directory."""
    pytest.importorskip("ray.tune", reason="the extra [sweep] is not installed")
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "s.yaml")
    with locked(tmp_path / "runs" / "s"), pytest.raises(SystemExit):
        main(["sweep", "--config=s.yaml"])
    assert "A sweep runs in runs/s already" in capsys.readouterr().err
    assert {file.name for file in (tmp_path / "runs" / "s").iterdir()} == {".lock"}
