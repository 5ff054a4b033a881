"""Why the parser refused a command line: the option, the nearest names, and the values that it accepts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Union, get_args

from replora.config_files import parse_config
from replora.errors import nearest
from replora.options.class_options import (
    Option,
    accepts,
    classes_in,
    describe_type,
    options_of,
    subclasses,
    takes_list,
    takes_other_values,
)
from replora.options.settings import NO_VALUE, Setting, settings_in
from replora.options.tree import OptionTree

ENDINGS = (".help", "print_config", "help")  # options that print and end


class Explanation:
    """Walks through the settings as the parser does, with the classes that are in force at each.

    Args:
        top: The options at the top, such as `model`, `data` and `trainer`.
        settings: What the command line sets, in order.
        given_by_links: Names of the options that need not be given.
    """

    def __init__(self, top: dict[str, Option], settings: list[Setting], given_by_links: frozenset[str]) -> None:
        self.tree = OptionTree(top)
        self.settings = settings
        self.given_by_links = given_by_links
        self.built: set[str] = set()  # groups whose class is built from the settings alone

    def message(self) -> str | None:
        """What is wrong first, or None if nothing is found."""
        return self.first_problem() or self._missing()

    def first_problem(self) -> str | None:
        """What is wrong with the first wrong setting; what is missing does not count."""
        return next((problem for setting in self.settings if (problem := self._problem(setting))), None)

    # --- one setting

    def _problem(self, setting: Setting) -> str | None:
        if setting.name.endswith(ENDINGS):
            return None
        options, prefix = self.tree.top, ""
        *groups, last = setting.name.split(".")
        for group in groups:
            if group not in options:
                return self._unknown(setting, options, prefix)
            option, prefix = options[group], f"{prefix}.{group}".lstrip(".")
            inner = self.tree.inner(prefix, option)
            if inner is None:
                return None
            if not inner:
                owner = self.tree.classes.get(prefix)
                what = f"{owner.__name__} has" if owner else f"{prefix} takes {describe_type(option.hint)} and has"
                return f"{setting}: {what} no options of its own."
            options = inner
        if last not in options:
            return self._unknown(setting, options, prefix)
        return self._value_problem(setting, options[last])

    def _unknown(self, setting: Setting, options: Mapping[str, Option], prefix: str) -> str:
        owner = self.tree.classes.get(prefix)
        last = setting.name.rpartition(".")[2]
        what = f"{owner.__name__} has no option {last!r}" if owner else "there is no such option"
        close = _alike(setting.name, {name for name, _ in self.tree.walk()})
        dashes = "" if setting.file else "--"
        if close:
            hint = "Did you mean " + " or ".join(f"{dashes}{name}" for name in close) + "?"
        else:
            hint = nearest(last, sorted(options))
        return f"{setting}: {what}. {hint}" + (f" Its options: --{prefix}.help {owner.__name__}" if owner else "")

    def _value_problem(self, setting: Setting, option: Option) -> str | None:
        bases, value = classes_in(option.hint), setting.value
        if setting.adds and option.hint is not Any and not takes_list(option.hint):
            return f"{setting}+= adds to a list, but it takes {describe_type(option.hint)}. Write {setting} instead."
        takes = f"{setting} takes {describe_type(option.hint)}"
        if value is None and bases and option.required:
            return f"{setting} takes a class and its options, not null. Set them, or remove the line."
        if value is NO_VALUE:
            return f"{takes}; a value is missing."
        named = isinstance(value, str) and (value[:1].isupper() or "." in value or not takes_other_values(option.hint))
        if bases and named and not value.strip().startswith(("{", "[")):
            return self._class_problem(setting, option, bases)
        if accepts(option, value):
            return None
        if bases and (problem := self._item_problem(setting, bases)):
            return problem
        if isinstance(value, str) and value.strip() and accepts(option, f"[{value}]"):
            return f"{takes}, not {value!r}. Write [{value}]"
        choices = [str(choice) for choice in get_args(option.hint) if isinstance(choice, str)]
        hint = f" {nearest(str(value), choices)}" if choices else ""
        text = f" It is: {_first_sentence(option.text)}" if option.text else ""
        return f"{takes}, not {value!r}.{hint}{text}"

    def _class_problem(self, setting: Setting, option: Option, bases: tuple[type, ...]) -> str | None:
        if self.tree.use_class(setting, option):
            if "Callable" not in str(option.hint):  # which is called with arguments of its own
                self.built.add(setting.name)
            return None
        if accepts(option, setting.value):
            return None
        names = sorted({name for base in bases for name in subclasses(base)})
        kinds = " or ".join(sorted({base.__name__ for base in bases}))
        hint = nearest(setting.value.rpartition(".")[2], names)
        return f"{setting}: there is no class {setting.value!r} of the kind {kinds}. {hint}"

    def _item_problem(self, setting: Setting, bases: tuple[type, ...]) -> str | None:
        """What is wrong with the first wrong item of a list of classes and their options."""
        items, last = setting.value, setting.name.rpartition(".")[2]
        if isinstance(items, str):
            items = parse_config(f"items: {items}", str(setting))["items"]
        for number, item in enumerate(items if isinstance(items, list) else []):
            name = f"{last}[{number}]"
            if isinstance(item, dict) and (unknown := [key for key in item if key not in ("class_path", "init_args")]):
                return f"{setting}[{number}] takes a class_path and init_args, not {unknown[0]!r}."
            inner = Explanation({name: Option(Union[bases])}, settings_in({name: item}, setting.file), frozenset())  # noqa: UP007
            if problem := inner.message():
                problem = problem.replace(f"--{name}.help", f"--{setting.name}.help")
                return problem.replace(name, f"{setting.name}[{number}]")
        return None

    # --- all settings

    def _missing(self) -> str | None:
        for group, option in self.tree.top.items():
            if option.required and classes_in(option.hint) and group not in self.tree.classes:
                names = sorted(name for base in classes_in(option.hint) for name in subclasses(base))
                return (
                    f"There is no --{group}: give a configuration, such as --config vtab.yaml (replora-cli configs "
                    f"lists them), or a class: {', '.join(names)}."
                )
        known = self.given_by_links | {setting.name for setting in self.settings}
        for group in sorted(self.built):
            for name, option in options_of(self.tree.classes[group]).items():
                if option.required and f"{group}.{name}" not in known:
                    text = option.text or describe_type(option.hint)
                    return f"{self.tree.classes[group].__name__} needs --{group}.{name}: {text}"
        return None


def _alike(wanted: str, names: set[str]) -> list[str]:
    """The names most like it, at most three: by the last word, then by the whole name."""
    group, _, last = wanted.rpartition(".")

    def likeness(name: str) -> float:
        own_group, _, own = name.rpartition(".")
        words = max(_ratio(last, own), *(0.9 * _ratio(last, word) for word in own.split("_")))
        return max(words + 0.15 * (own_group == group), _ratio(wanted, name) - 0.1)

    ranked = sorted(names, key=lambda name: (-round(likeness(name), 2), len(name)))
    return [name for name in ranked[:3] if likeness(name) >= max(0.7, likeness(ranked[0]) - 0.15)]


def _ratio(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


def _first_sentence(text: str) -> str:
    return f"{text.split('. ')[0].rstrip('.')}."
