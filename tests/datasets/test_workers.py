"""A loader process that prints must not wait for the display of the main process."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import logging, multiprocessing, sys, threading, warnings
    from PIL import Image
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import Progress
    from replora.datasets.common.workers import release_streams

    console = Console(stderr=True)
    logging.getLogger("rich").addHandler(RichHandler(console=console))
    early = logging.StreamHandler()
    logging.getLogger("early").addHandler(early)

    def work():
        release_streams()
        warnings.warn("a palette with transparency")
        logging.getLogger("plain").warning("to the root")
        logging.getLogger("rich").warning("to rich")
        logging.getLogger("early").warning("to an early handler")
        logging.getLogger("late").warning("to a late handler")
        print("to the output")
        print("to the errors", file=sys.stderr)

    with Progress(console=console) as progress:
        logging.getLogger("late").addHandler(logging.StreamHandler())  # to the stream of the display
        held, done = threading.Event(), threading.Event()

        def hold():
            with console._lock, progress._lock:
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(30)
        code = process.exitcode
        process.kill()
        done.set()
        thread.join()
    sys.exit(0 if code == 0 else 1)
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_forked_process_prints_while_the_display_is_locked(tmp_path: Path, terminal: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    main, other = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen([sys.executable, str(program)], stdout=other, stderr=other)
    os.close(other)
    printed = b""
    try:
        while part := os.read(main, 4096):
            printed += part
    except OSError:  # a terminal's other end is closed
        pass
    os.close(main)
    assert process.wait(60) == 0, printed.decode()
    expected = [
        b"a palette with transparency",
        b"to the root",
        b"to rich",
        b"to an early handler",
        b"to a late handler",
    ]
    for text in [*expected, b"to the output", b"to the errors"]:
        assert text in printed, (text, printed)
