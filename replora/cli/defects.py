"""An error that is no user's doing: its traceback goes into a file, and the message says how to report it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

PACKAGES = ("replora", "torch", "lightning", "timm", "transformers", "peft", "jsonargparse")


def report_defect(error: BaseException, arguments: list[str]) -> str:
    """Write a report of a defect.

    Args:
        error: What was raised.
        arguments: Command line without the name of the program.

    Returns:
        The message for the user, with the report's place.
    """
    text = "".join(
        [
            f"replora-cli {shlex.join(arguments)}\n",
            f"Python {platform.python_version()} on {platform.platform()}\n",
            *(f"{name} {_version(name)}\n" for name in PACKAGES),
            "\n",
            *traceback.format_exception(error),
        ]
    )
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    first_line = (str(error).strip().splitlines() or [""])[0]
    what = f"{type(error).__name__}: {first_line}"[:300]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="replora-error-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
    except OSError:
        sys.stderr.write(text)
        return f"{what}{where}. This is a defect of replora: please report it with the traceback above."
    return (
        f"{what}{where}. This is a defect of replora, not of your call. Please report it with the file {file.name}, "
        "which holds the command, the versions and the traceback (read it first: it may name your files)."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
