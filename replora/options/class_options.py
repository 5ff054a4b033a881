"""The options of a class or function: names, types, defaults and texts."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentError, ArgumentParser


@dataclass(frozen=True)
class Option:
    """One parameter.

    Args:
        hint: Its type.
        default: Its default as the parser shows it.
        required: Whether it has no default.
        text: Its description in the docstring, as one line.
    """

    hint: Any
    default: Any = None
    required: bool = False
    text: str = ""


@functools.cache
def options_of(source: Callable[..., Any]) -> dict[str, Option]:
    """The options that the parser offers for a class or function, those passed on to base classes included."""
    parser = ArgumentParser(exit_on_error=False)
    if inspect.isclass(source):
        parser.add_class_arguments(source, fail_untyped=False)
    else:
        parser.add_function_arguments(source, fail_untyped=False)
    defaults = parser.get_defaults()
    names = dict.fromkeys(str(name).partition(".")[0] for name in defaults.keys())  # noqa: SIM118  # a Namespace
    found: dict[str, Option] = {}
    for function, documented in _functions(source):
        hints = _hints(function)
        texts = {param.arg_name: " ".join((param.description or "").split()) for param in parse(documented).params}
        for name, parameter in inspect.signature(function).parameters.items():
            if name in names and name not in found:
                required = parameter.default is parameter.empty
                default = defaults.get(name, None)
                found[name] = Option(hints.get(name, Any), default, required, texts.get(name, ""))
    return {name: found.get(name, Option(Any, defaults.get(name, None))) for name in names}


def _functions(source: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], str]]:
    """The function, or the constructors of the class and of its bases; each with its docstring."""
    if not inspect.isclass(source):
        yield source, inspect.getdoc(source) or ""
        return
    for cls in source.__mro__:
        if "__init__" in cls.__dict__ and cls is not object:
            constructor = cls.__dict__["__init__"]
            own = [cls.__dict__.get("__doc__") or "", constructor.__doc__ or ""]
            yield constructor, "\n\n".join(inspect.cleandoc(text) for text in own)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError):  # a library's names that exist for type checkers alone
        return dict(getattr(function, "__annotations__", {}))


def classes_in(hint: Any) -> tuple[type, ...]:
    """The classes that an option takes an instance of; none for numbers, texts and the like."""
    hint = getattr(hint, "__value__", hint)  # of a `type` statement
    origin = get_origin(hint)
    if origin in (Union, types.UnionType, list, Iterable):
        return tuple(dict.fromkeys(cls for part in get_args(hint) for cls in classes_in(part)))
    if origin is not None and "Callable" in str(origin):  # Callable[..., Optimizer]
        return classes_in(get_args(hint)[-1])
    if not inspect.isclass(hint) or hint.__name__ == "Tensor":  # no one names a tensor's class
        return ()
    return () if hint.__module__.partition(".")[0] in ("builtins", "pathlib", "datetime", "jsonargparse") else (hint,)


def takes_list(hint: Any) -> bool:
    """Whether an option takes several values."""
    return any(
        (origin := get_origin(part)) is not None and origin is not Literal and issubclass(origin, Iterable)
        for part in (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))
    )


def takes_other_values(hint: Any) -> bool:
    """Whether an option takes numbers, texts and the like too."""
    return any(isinstance(part, type) and part in PLAIN and part is not type(None) for part in (hint, *get_args(hint)))


def subclasses(base: type) -> dict[str, type]:
    """Name -> class: the imported classes of a base and all that derive from it, without abstract and private ones."""
    found: dict[str, type] = {} if inspect.isabstract(base) or base.__name__[0] == "_" else {base.__name__: base}
    cls: type
    for cls in base.__subclasses__():
        found |= subclasses(cls)
    return found


def find_class(name: str, bases: tuple[type, ...]) -> type | None:
    """The class called `name`, by its own name or its full path; None if it is no subclass of the bases."""
    module, _, own = name.rpartition(".")
    if not module:
        return next((found[name] for base in bases if name in (found := subclasses(base))), None)
    try:
        cls = getattr(importlib.import_module(module), own, None)
    except ImportError:
        return None
    return cls if inspect.isclass(cls) and issubclass(cls, bases) else None


def accepts(option: Option, value: Any) -> bool:
    """Whether the parser accepts a value, given as text or as content of a file."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=option.hint)
    try:
        if isinstance(value, str):
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": copy.deepcopy(value)})  # it puts what it parsed into a list
    except (ArgumentError, ValueError, TypeError):
        return False
    return True


PLAIN = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def describe_type(hint: Any) -> str:
    """What an option takes, in words.

    Example:
        >>> describe_type(int | None)
        'an integer or null'
    """
    hint = getattr(hint, "__value__", hint)  # of a `type` statement
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = dict.fromkeys(
            describe_type(part) for part in get_args(hint) if getattr(part, "__name__", "") != "Tensor"
        )
        *most, last = parts
        return f"{', '.join(most)} or {last}" if most else last
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if origin is not None and "Callable" in str(origin):
        return describe_type(get_args(hint)[-1]) if get_args(hint) else "a function"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping such as {name: value}"
    if origin is not None:
        inner = dict.fromkeys(describe_type(part) for part in get_args(hint) if part is not ...)
        return "a list such as [a,b]" + (f", each {' / '.join(inner)}" if inner else "")
    if hint in PLAIN:
        return PLAIN[hint]
    name = getattr(hint, "__name__", str(hint))
    return "a path" if "Path" in name else f"a{'n' * (name[0] in 'AEIO')} {name}"
