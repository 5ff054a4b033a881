"""`--config`: a local file, or one that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_info

from replora.config_files import find_config, former_defaults, is_yaml, parse_config, read_config
from replora.identity import flat_options, plain_option
from replora.options.settings import RATE, rate_factor, settings_of


class PackagedConfigFile(ActionConfigFile):
    """`--config`: a local file, or one that ships with the package; logs which."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        file = None
        if isinstance(values, str) and is_yaml(values):
            parse_config(values, "--config")
        elif isinstance(values, str):
            file = find_config(values)
            rank_zero_info(f"config {values}: {file}")
            values = _without_factor(read_config(file)) or str(file)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        if file is not None:
            _point_to_folder(cfg, file)
            for name, value in former_defaults(file).items():
                cfg[name] = value


def scaled_rate(arguments: list[str]) -> list[str]:
    """The argument that sets the learning rate where the factor of a method's configuration decides it."""
    rates = [setting for setting in settings_of(arguments) if setting.name == RATE]
    return [f"--{RATE}={rates[-1].value}"] if rates and rates[-1].scaled else []


def _without_factor(content: dict[str, Any]) -> str | None:
    """The content, as YAML, of a file whose learning rate is a factor; None for others. `TrainerCLI` sets the rate."""
    for name, value in flat_options(content).items():
        if plain_option(name) == RATE and rate_factor(value) is not None:
            *groups, last = name.split(".")
            inner = [content]
            for group in groups:
                inner.append(inner[-1][group])
            del inner[-1][last]
            for group, outer, section in zip(groups[::-1], inner[-2::-1], inner[:0:-1], strict=True):
                if not section:
                    del outer[group]
            return str(yaml.safe_dump(content))
    return None


def _point_to_folder(options: Any, file: Path) -> None:
    """Let `RUN/fit.yaml` mean the run in whose folder it lies, wherever it was written: the folder may be a copy."""
    run_dir = options.get("run_dir")
    if run_dir is None or not any((file.parent / name).exists() for name in ("results.json", "checkpoints")):
        return
    checkpoint = options.get("ckpt_path")
    if checkpoint is not None and Path(checkpoint).is_relative_to(run_dir):
        options["ckpt_path"] = file.parent / Path(checkpoint).relative_to(run_dir)
    options["run_dir"] = file.parent
