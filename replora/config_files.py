"""Configuration files: local ones, and those that ship with the package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from replora.errors import RepLoRAError, nearest
from replora.io import read_yaml


def packaged_configs() -> dict[str, Path]:
    """Name -> file of every configuration that ships with the package, such as `vtab.yaml` and `adapter/lora.yaml`."""
    root = Path(str(importlib.resources.files("replora.configs")))
    return {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The configuration file called `name`: a local one, else the packaged one (whose `.yaml` may be left out).

    Raises:
        RepLoRAError: There is neither, or it is no YAML file of options.
    """
    if Path(name).is_file():
        read_yaml(Path(name))
        return Path(name)
    packaged = packaged_configs()
    for candidate in (name, f"{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    raise RepLoRAError(
        f"--config {name}: no such file here ({Path.cwd()}), and none of that name ships with the package. "
        f"{nearest(name, packaged)} List them with: replora-cli configs"
    )


def former_defaults(file: Path) -> dict[str, str]:
    """The options that the complete `fit.yaml` of an earlier run lacks -> the values that it means; empty for others.

    A complete file has all options of its data, so also `cache_bytes`; images alone have an `interpolation`.
    """
    data = read_yaml(file).get("data")
    options = (data.get("init_args") if isinstance(data, dict) else None) or {}
    complete = {"cache_bytes", "subset_seed", "interpolation"} <= options.keys()
    return {"data.init_args.subset_rule": "by_split"} if complete and "subset_rule" not in options else {}
