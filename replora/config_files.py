"""Configuration files: local ones, and those that ship with the package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from replora.errors import RepLoRAError, nearest


def packaged_configs() -> dict[str, Path]:
    """Name -> file of every configuration that ships with the package, such as `vtab.yaml` and `adapter/lora.yaml`."""
    root = Path(str(importlib.resources.files("replora.configs")))
    return {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The configuration file called `name`: a local one, else the packaged one (whose `.yaml` may be left out).

    Raises:
        RepLoRAError: There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_configs()
    for candidate in (name, f"{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    raise RepLoRAError(
        f"--config {name}: no such file here ({Path.cwd()}), and none of that name ships with the package. "
        f"{nearest(name, packaged)} List them with: replora-cli configs"
    )
