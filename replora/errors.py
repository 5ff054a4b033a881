"""The errors of this project, and the check of arguments that raises one for a value of a wrong type.

All derive from `RepLoRAError`, so that one `except` catches what a user can fix.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class RepLoRAError(ValueError):
    """Something the user asked for cannot be done; the message says what was found and what to do."""


def alike(name: str, choices: Iterable[str], count: int = 3) -> str:
    """The names most like `name`, as a sentence to append to an error; empty where none is alike."""
    close = difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """The names most like `name`, as a sentence to append to an error, or all of them where none is alike."""
    known = list(choices)
    if close := alike(name, known, count):
        return close
    listed = ", ".join(repr(c) for c in known[:40]) + (", ..." if len(known) > 40 else "")
    return f"Known: {listed or 'none'}."


def listed(names: list[str], most: int = 8) -> str:
    """Names for a message, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# Control characters other than tabs and line ends, and those that turn the direction of what follows.
_ACTS_ON_TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text for a screen: what a terminal would act upon is escaped like `\\x1b`."""
    return _ACTS_ON_TERMINAL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# Name of a type -> how a message calls one value of it, and several.
_WORDS = {
    "AdapterConfig": ("a method, such as replora.RepLoRAConfig(rank=8)", "methods"),
    "Module": ("a model (torch.nn.Module)", "modules"),
    "NoneType": ("None", "None"),
    "PathLike": ("a path", "paths"),
    "Tensor": ("a tensor", "tensors"),
    "device": ("a torch.device", "devices"),
    "bool": ("True or False", "truth values"),
    "float": ("a number", "numbers"),
    "int": ("an integer", "integers"),
    "str": ("a string", "strings"),
}


def check_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function raise a `RepLoRAError` for an argument that is not what its annotation says."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        hints = _hints(function)
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:
            return function(*args, **options)  # Python says best what is missing or unknown
        for name, value in given.items():
            if not _fits(value, hints[name]):
                raise RepLoRAError(
                    f"{function.__name__}: {name} is {_describe(value)}. It must be {_wanted(hints[name])}."
                    f"{_remedy(value, hints[name])}"
                )
        return function(*args, **options)

    return checked


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


def _fits(value: object, hint: Any) -> bool:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if kind is Literal:
        return isinstance(value, str) and value in arguments
    if kind in (int, float):  # numpy's floats and torch's are numbers too
        return hasattr(value, "__index__" if kind is int else "__float__") and not isinstance(value, bool)
    if kind is Mapping:
        items = value.items() if isinstance(value, Mapping) else [(value, value)]
        return isinstance(value, Mapping) and all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in items)
    if kind not in (Iterable, Sequence):
        return isinstance(value, kind)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False
    return not isinstance(value, Collection) or all(_fits(item, arguments[0]) for item in value)


def _describe(value: object) -> str:
    text = repr(value).partition("\n")[0]
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return f"the class {value.__name__}" if isinstance(value, type) else f"{short} ({type(value).__name__})"


def _wanted(hint: Any) -> str:
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(_wanted(each) for each in arguments)
    if kind is Literal:
        return " or ".join(map(repr, arguments))
    if kind is Mapping:
        return f"a dict of {_WORDS[arguments[0].__name__][1]} and {_WORDS[arguments[1].__name__][1]}"
    if kind in (Iterable, Sequence):
        return f"a list of {_WORDS[arguments[0].__name__][1]}"
    return _WORDS[kind.__name__][0]


def _remedy(value: object, hint: Any) -> str:
    wanted = _wanted(hint)
    if isinstance(value, type) and isinstance(hint, type) and issubclass(value, hint):
        return f" Make one: {value.__name__}(...)."
    if isinstance(value, str) and _WORDS["str"][1] in wanted:
        return f" Put it into a list: [{value!r}]."
    if isinstance(hint, type) and isinstance(getattr(value, "model", None), hint):
        return " Its attribute `model` is one: pass that."
    return ""
