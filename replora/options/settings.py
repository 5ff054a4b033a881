"""What a command line and its configuration files set, in the order in which it takes effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]

from replora.config_files import find_config, read_config
from replora.identity import plain_option

CONFIG = ("-c", "--config")
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
            settings.append(Setting(plain_option(option.lstrip("-").rstrip("+")), value))
    return [_named_class(setting) for setting in settings]


def _settings_of_config(value: str) -> list[Setting]:
    if any(mark in value for mark in "{\n"):  # YAML on the command line
        content = yaml.safe_load(value)
        return settings_in(content, "--config") if isinstance(content, dict) else []
    return settings_in(read_config(find_config(value)), value)


def settings_in(content: Mapping[str, Any], file: str) -> list[Setting]:
    """The settings of a configuration file."""
    return [Setting(plain_option(name), value, file) for name, value in _leaves(content)]


def _leaves(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in sorted(content.items(), key=lambda item: item[0] != "class_path"):  # the class before its options
        name = f"{path}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _named_class(setting: Setting) -> Setting:
    """`--model.class_path X` is `--model X`."""
    return Setting(setting.name.removesuffix(".class_path"), setting.value, setting.file)
