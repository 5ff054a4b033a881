"""The errors of this project. All derive from `RepLoRAError`, so that one `except` catches what a user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RepLoRAError(ValueError):
    """Something the user asked for cannot be done; the message says what was found and what to do."""


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """The names most like `name`, as a sentence to append to an error, or all of them where none is alike."""
    known = list(choices)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    listed = ", ".join(repr(c) for c in known[:40]) + (", ..." if len(known) > 40 else "")
    return f"Known: {listed or 'none'}."


def listed(names: list[str], most: int = 8) -> str:
    """Names for a message, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
