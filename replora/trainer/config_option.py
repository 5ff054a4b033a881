"""`--config`: a local file, or one that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_info

from replora.config_files import find_config, former_defaults, is_yaml, parse_config, read_config


class PackagedConfigFile(ActionConfigFile):
    """`--config`: a local file, or one that ships with the package; logs which."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        file = None
        if isinstance(values, str) and is_yaml(values):
            parse_config(values, "--config")
        elif isinstance(values, str):
            file = find_config(values)
            read_config(file)  # names what is wrong with it, which the parser would print as a whole
            rank_zero_info(f"config {values}: {file}")
            values = str(file)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        if file is not None:
            _point_to_folder(cfg, file)
            for name, value in former_defaults(file).items():
                cfg[name] = value


def _point_to_folder(options: Any, file: Path) -> None:
    """Let `RUN/fit.yaml` mean the run in whose folder it lies, wherever it was written: the folder may be a copy."""
    run_dir = options.get("run_dir")
    if run_dir is None or not any((file.parent / name).exists() for name in ("results.json", "checkpoints")):
        return
    checkpoint = options.get("ckpt_path")
    if checkpoint is not None and Path(checkpoint).is_relative_to(run_dir):
        options["ckpt_path"] = file.parent / Path(checkpoint).relative_to(run_dir)
    options["run_dir"] = file.parent
