"""All options of a command line: the classes in force, their options, and those of the classes inside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from replora.options.class_options import Option, classes_in, find_class, options_of, subclasses
from replora.options.settings import Setting

DEPTH = 2  # dots in the longest names, such as model.optimizer.lr


class OptionTree:
    """The options below those at the top, as far as the classes in force are known.

    Args:
        top: The options at the top, such as `model`, `data` and `trainer`.
    """

    def __init__(self, top: Mapping[str, Option]) -> None:
        self.top = top
        self.classes: dict[str, type] = {}  # name of a group -> the class that a setting names

    def inner(self, group: str, option: Option) -> Mapping[str, Option] | None:
        """The options of the class in force for a group, or of all it can be.

        Args:
            group: Its full name.
            option: The option of that name.

        Returns:
            The options; none for an option without a class, and None where the class is not known.
        """
        bases = classes_in(option.hint)
        if not bases:
            return None if option.hint is Any or "ict" in str(option.hint) or "apping" in str(option.hint) else {}
        cls = self.class_of(group, option)
        if cls is None and any(len(subclasses(base)) > 1 for base in bases):
            return None
        return {name: found for base in ((cls,) if cls else bases) for name, found in options_of(base).items()}

    def class_of(self, group: str, option: Option) -> type | None:
        """The class in force for a group: the one that a setting names, or its default."""
        default = getattr(option.default, "class_path", None)
        return self.classes.get(group) or (find_class(default, classes_in(option.hint)) if default else None)

    def use_class(self, setting: Setting, option: Option) -> bool:
        """Whether a setting of a group names a class of its kind, which is in force from then on."""
        cls = find_class(str(setting.value), classes_in(option.hint))
        if cls is not None:
            self.classes[setting.name] = cls
        return cls is not None

    def find(self, name: str) -> Option | None:
        """The option of a full name, if there is one."""
        options: Mapping[str, Option] | None = self.top
        *groups, last = name.split(".")
        for depth, group in enumerate(groups):
            if not options or group not in options:
                return None
            options = self.inner(".".join(groups[: depth + 1]), options[group])
        return options.get(last) if options else None

    def walk(self, options: Mapping[str, Option] | None = None, group: str = "") -> Iterator[tuple[str, Option]]:
        """Full name and option, of all options that are known."""
        for name, option in (self.top if options is None else options).items():
            full = f"{group}.{name}".lstrip(".")
            yield full, option
            if full.count(".") < DEPTH:
                yield from self.walk(self.inner(full, option) or {}, full)
