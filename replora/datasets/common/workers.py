"""Setup of loader processes."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any, TextIO


def release_streams() -> None:
    """Give a forked process standard streams and log handlers that share no lock with its parent process.

    While rich shows a progress bar, `sys.stdout` and `sys.stderr` are its own, and writing to them takes the lock of
    the display. A thread of the main process may hold that lock, or the one inside a stream, at the moment of the fork;
    nothing releases the copy in the new process, and its first warning would wait forever.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        stream = getattr(stream, "rich_proxied_file", stream)
        setattr(sys, name, _reopened(stream) if _number(stream) == number else stream)
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        for handler in list(logger.handlers):
            if hasattr(handler, "console"):  # rich's own
                plain = logging.StreamHandler(sys.stderr)
                plain.setLevel(handler.level)
                plain.filters = handler.filters
                logger.removeHandler(handler)
                logger.addHandler(plain)
            elif (stream := vars(handler).get("stream")) is not None and _number(stream) in (1, 2):
                vars(handler)["stream"] = sys.stdout if _number(stream) == 1 else sys.stderr  # setStream would flush


def _number(stream: Any) -> int | None:
    """The file descriptor of a stream, or None."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _reopened(stream: Any) -> TextIO:
    """A new, line-buffered stream to the same file, which leaves the file descriptor open."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    raw = os.fdopen(stream.fileno(), "wb", buffering=io.DEFAULT_BUFFER_SIZE, closefd=False)
    return io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)
