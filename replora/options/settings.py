"""What a command line and its configuration files set, in the order in which it takes effect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml  # type: ignore[import-untyped]

from replora.config_files import find_config, is_yaml, packaged_configs, parse_config, read_config
from replora.errors import RepLoRAError
from replora.identity import plain_option

CONFIG = ("-c", "--config")
RATE = "model.optimizer.lr"
NO_VALUE = object()  # of an option that is the last argument, or before another option


@dataclass(frozen=True)
class Setting:
    """An option and what it is set to.

    Args:
        name: Name on the command line without dashes and `init_args`, such as `model.optimizer.lr`.
        value: Text of the command line, value of a file, or `NO_VALUE`.
        file: Name of the configuration file as it was given; None for the command line.
    """

    name: str
    value: Any
    file: str | None = None
    adds: bool = False  # `--name+=value`, to a list
    scaled: bool = False  # whether it is the rate of a task's configuration times the factor of a method's

    def __str__(self) -> str:
        return f"{self.file}: {self.name}" if self.file else f"--{self.name}"


def settings_of(arguments: list[str], read_configs: bool = True) -> list[Setting]:
    """The settings of the arguments of a verb.

    Args:
        arguments: Arguments without the verb.
        read_configs: Whether `--config` names a file of options. That of a sweep is a file of another kind.

    Raises:
        RepLoRAError: A configuration file does not exist or cannot be read.
    """
    settings: list[Setting] = []
    position = 0
    while position < len(arguments):
        option, equals, text = arguments[position].partition("=")
        value: Any = text if equals else NO_VALUE
        position += 1
        if not equals and position < len(arguments) and not arguments[position].startswith("--"):
            value = arguments[position]
            position += 1
        if read_configs and option in CONFIG and isinstance(value, str):
            settings += _settings_of_config(value)
        elif option.startswith("-"):
            name = plain_option(option.lstrip("-").rstrip("+"))
            content = _mapping(value)
            settings += settings_in({name: content}) if content else [Setting(name, value, adds=option[-1] == "+")]
    return _with_rates([_named_class(setting) for setting in settings])


def rate_factor(value: Any) -> float | None:
    """`10x` -> 10: the learning rate of a method relative to that of LoRA, which tasks' configurations have."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x", value) if isinstance(value, str) else None
    return float(found[1]) if found else None


def _with_rates(settings: list[Setting]) -> list[Setting]:
    """The settings with rates instead of factors.

    A factor applies to the rate that a packaged configuration of a task gives. A rate of the command line, a recipe or
    a file of the user's own holds: before a factor it makes that void, and after it it takes precedence as always.
    """
    found: list[Setting] = []
    base: float | None = None
    for setting in settings:
        factor = rate_factor(setting.value) if setting.name == RATE else None
        if setting.name == RATE and factor is None:
            base = float(setting.value) if _is_of_task(setting) else None
        if factor is None:
            found.append(setting)
        elif base is not None:
            found.append(replace(setting, value=float(f"{base * factor:.6g}"), scaled=True))
    return found


def _is_of_task(setting: Setting) -> bool:
    """Whether a rate is that of a packaged configuration of a task, such as `vtab.yaml`, not of a recipe."""
    name = str(setting.file)
    file = packaged_configs().get(name if name.endswith(".yaml") else f"{name}.yaml")
    return file is not None and "/" not in name and find_config(name) == file


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """The content of a value such as `{class_path: X}`; None for any other."""
    try:
        content = yaml.safe_load(value) if isinstance(value, str) and value.startswith("{") else None
    except (yaml.YAMLError, RecursionError):
        return None
    return content if isinstance(content, Mapping) else None


def _settings_of_config(value: str) -> list[Setting]:
    if is_yaml(value):
        return settings_in(parse_config(value, "--config"), "--config")
    return settings_in(read_config(find_config(value)), value)


def settings_in(content: Mapping[str, Any], file: str | None = None) -> list[Setting]:
    """The settings of a configuration file, or of a mapping on the command line.

    Raises:
        RepLoRAError: A class or its options are null or of another type.
    """
    settings = [Setting(name, value, file) for name, value in _leaves(content)]
    for setting in settings:
        group, _, last = setting.name.rpartition(".")
        kind = {"class_path": (str, "the name of a class"), "init_args": (Mapping, "a mapping of options")}.get(last)
        if group and kind and not isinstance(setting.value, kind[0]):
            raise RepLoRAError(f"{setting} takes {kind[1]}, not {setting.value!r}. Set it, or leave it out.")
    return [_named_class(replace(setting, name=plain_option(setting.name))) for setting in settings]


def _leaves(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in sorted(content.items(), key=lambda item: item[0] != "class_path"):  # the class before its options
        name = f"{path}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _named_class(setting: Setting) -> Setting:
    """`--model.class_path X` is `--model X`."""
    return replace(setting, name=setting.name.removesuffix(".class_path"))
