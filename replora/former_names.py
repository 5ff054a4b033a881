"""Class paths in stored files that have since changed: the one table of former names."""

from __future__ import annotations

import re
from typing import Any

# Class path as files of earlier releases have it -> class path of today.
FORMER_NAMES = {
    "replora.PeftConfig": "replora.PeftMethodConfig",
    "replora.config.PeftConfig": "replora.adapters.config.PeftMethodConfig",
    "replora.adapters.config.PeftConfig": "replora.adapters.config.PeftMethodConfig",
}
_FORMER = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, FORMER_NAMES))})(?![\w.])")


def renamed(stored: Any) -> Any:
    """A stored text, class path, or nested dicts and lists of them, with today's class paths for former ones."""
    if isinstance(stored, str):
        return _FORMER.sub(lambda match: FORMER_NAMES[match[1]], stored)
    if isinstance(stored, dict):
        return {key: renamed(value) for key, value in stored.items()}
    if isinstance(stored, list):
        return [renamed(value) for value in stored]
    return stored
