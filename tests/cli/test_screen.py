"""What a person sees: one bar that fits the terminal, a line per epoch, and one summary that equals the record."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from replora.cli.main import main
from replora.evaluation.significance import wilson_interval
from replora.results import read_results
from tests.cli.helpers import DIGITS, EPOCH
from tests.cli.test_distributed import REPOSITORY, run_process

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOR = re.compile(r"\x1b\[[0-9;]*m")
RAW_NUMBER = re.compile(r"\d\.\d{7,}")
# All images are measured, so that the counts are known; with a bar where there is a terminal.
FIT = [*(option for option in DIGITS if "limit_" not in option and "progress" not in option), "--trainer.max_epochs=2"]


def in_terminal(columns: int, *arguments: str, **variables: str) -> str:
    """All output of a process that runs in a terminal of this width."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", **variables}
        os.execve(sys.executable, [sys.executable, *arguments], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    output = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        output += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output.decode()
    return output.decode()


def fits(output: str, columns: int) -> None:
    """Check that no frame of a bar is wider than the terminal, or higher than a line."""
    frames = [frame for frame in re.split(r"[\r\n]+", output) if frame.startswith("\x1b[2K")]
    assert frames
    assert max(len(ESCAPE.sub("", frame)) for frame in frames) <= columns
    assert "\x1b[1A\x1b[2K\x1b[1A" not in output  # a bar of two lines goes up twice


@pytest.fixture(scope="module")
def piped(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A fit of two epochs without a terminal, in a folder whose name a shell would take apart."""
    home = tmp_path_factory.mktemp("screen")
    return home / "a run's", run_process(home, "fit", *FIT, "--run_dir=a run's")


def test_without_a_terminal_a_line_per_epoch(piped):
    run, done = piped
    assert done.returncode == 0, done.stderr
    assert EPOCH.findall(done.stderr) == [("1", "2"), ("2", "2")]
    for text in (done.stdout, done.stderr):
        assert not ESCAPE.search(text)
        assert "\r" not in text
        assert "━" not in text
        assert "DataLoader" not in text
        assert "v_num" not in text
        assert not RAW_NUMBER.search(text)
    assert "a run's" in done.stdout
    assert run.is_dir()


def test_the_summary_is_the_record(piped):
    run, done = piped
    found = read_results(run)
    lines = done.stdout.splitlines()
    assert lines[0] == "replora on vit_nano, digits"
    assert lines.count(lines[0]) == 1
    rows = {line.split()[0]: line for line in lines if "/" in line.split("  ")[0]}
    for entry, items in ((found["fit"], 200), (found["test"], 797)):
        for name, value in entry["metrics"].items():
            if name.endswith("learning_rate"):
                assert name not in rows
            elif name.endswith("accuracy"):
                assert f"  {100 * value:.1f} %" in rows[name]
            else:
                assert f"  {value:.4g}" in rows[name]
        split = "val" if items == 200 else "test"
        accuracy = entry["metrics"][f"{split}/accuracy"]
        right = round(accuracy * items)
        low, high = wilson_interval(right, items)
        interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        assert f"{100 * accuracy:.1f} %, {right} of {items}  {interval}" in rows[f"{split}/accuracy"]
    assert "95 % interval" in lines[2]
    assert all(len(line) <= 80 for line in lines)
    epoch, value = found["fit"]["best"]["val/accuracy"]
    points = dict(found["fit"]["history"]["val/accuracy"])
    assert points[epoch] == value == max(points.values())
    assert f"epoch {epoch}, val/accuracy {100 * value:.1f} %, {round(200 * value)} of 200" in done.stdout
    files = next(line for line in lines if line.startswith("files")).removeprefix("files").strip()
    assert all((run / name).exists() for name in files.strip(",").split(", "))


def test_the_next_commands_are_those_of_the_documentation(piped, monkeypatch, capsys):
    run, done = piped
    monkeypatch.chdir(run.parent)
    shown = done.stdout
    for verb in ("predict", "plot"):
        command = shlex.split(shown.splitlines()[-1].removeprefix("next"))
        assert command[:2] == ["replora-cli", verb]
        assert any("a run's" in word for word in command)
        main(command[1:])
        shown = capsys.readouterr().out
        assert not RAW_NUMBER.search(shown)


@pytest.mark.parametrize(("variables", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["color", "NO_COLOR"])
def test_the_bar_fits_a_terminal(variables, colored, tmp_path):
    output = in_terminal(80, "-m", "replora", "fit", *FIT, f"--run_dir={tmp_path / 'run'}", **variables)
    fits(output, 80)
    assert "v_num" not in output
    assert bool(COLOR.search(output)) == colored
    plain = ESCAPE.sub("", output).replace("\r", "\n")
    assert len(EPOCH.findall(plain)) == 2
    assert "test/accuracy" in plain


@pytest.mark.parametrize("columns", [80, 40, 20, 8])
def test_the_bar_fits_any_terminal(columns):
    code = """
from replora.progress import progress_bar
with progress_bar("epoch 10/100, loss 0.1234 [red]", 10_000, transient=True) as advance:
    advance(9_999)
    advance(1, "a description that is much longer than the one before it, and than the terminal")
"""
    fits(in_terminal(columns, "-c", code), columns)


@pytest.mark.parametrize("forced", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_log_gets_no_bar_whatever_is_forced(forced, monkeypatch, capfd):
    from replora.progress import progress_bar

    monkeypatch.setenv(forced, "1")
    for options in ({"transient": True}, {"enabled": False}):
        with progress_bar("check", 3, **options) as advance:
            advance(3)
        assert capfd.readouterr() == ("", "")
    with progress_bar("", 3) as advance:
        advance(1, "check a")
        advance(1, "check a")
        advance(1, "check b")
    assert capfd.readouterr() == ("", "check a\ncheck b\n")


def test_a_progress_bar_of_ones_own_is_respected(tmp_path, capfd, caplog):
    bar = "--trainer.callbacks+=TQDMProgressBar"
    options = [option for option in DIGITS if "progress" not in option]
    with caplog.at_level("INFO", "lightning.pytorch"):
        main(["fit", *options, bar, f"--run_dir={tmp_path / 'run'}"])
    shown = capfd.readouterr()
    assert "Epoch 0" in shown.out + shown.err
    assert "Test metric" not in shown.out
    assert not [text for text in caplog.messages if text.startswith("epoch ")]
    assert "test/accuracy" in shown.out


def test_without_a_bar_there_are_lines_and_the_summary(tmp_path, capfd, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        main(["fit", *DIGITS, f"--run_dir={tmp_path / 'run'}"])
    assert len([text for text in caplog.messages if text.startswith("epoch 1/1: ")]) == 1
    shown = capfd.readouterr().out
    assert "test/accuracy" in shown
    assert " of " not in shown  # only a part was measured, and its size is not known
    assert "status   partial: limit_val_batches=1; limit_test_batches=1" in shown


def test_fast_dev_run_records_nothing(tmp_path, capfd):
    main(["fit", *DIGITS, "--trainer.fast_dev_run=true", f"--run_dir={tmp_path / 'run'}"])
    assert "Nothing is recorded" in capfd.readouterr().out


def test_output_that_only_takes_ascii(tmp_path, monkeypatch):
    """The name of the folder is written with escapes instead of an error at the very end."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run_process(tmp_path, "fit", *DIGITS, "--run_dir=läufe")
    assert done.returncode == 0, done.stderr
    assert r"l\xe4ufe" in done.stdout


@pytest.mark.parametrize("columns", ["20", "200"])
def test_a_table_in_a_log_is_whole_and_plain(columns, monkeypatch, capsys):
    from rich.table import Table

    from replora.progress import table_console

    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("name", "state", title="[title]")
    table.add_row("a" * 70, "complete [red]")
    table_console().print(table)
    shown = capsys.readouterr().out
    assert "a" * 70 in shown
    assert "complete [red]" in shown
    assert not ESCAPE.search(shown)
