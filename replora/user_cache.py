"""The folder for what is made once and used again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$REPLORA_CACHE`, by default `replora` in the user's cache folder; it may not exist yet."""
    base = os.environ.get("REPLORA_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "replora"
