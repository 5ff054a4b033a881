"""Configuration files: local ones, and those that ship with the package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replora.errors import RepLoRAError, nearest

if TYPE_CHECKING:
    import yaml  # type: ignore[import-untyped]

MOST_NODES = 100_000  # entries of a configuration after its aliases are expanded


def packaged_configs() -> dict[str, Path]:
    """Name -> file of every configuration that ships with the package, such as `vtab.yaml` and `adapter/lora.yaml`."""
    root = Path(str(importlib.resources.files("replora.configs")))
    return {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.yaml"))}


def find_config(name: str, option: str = "--config") -> Path:
    """The configuration file called `name`: a local one, else the packaged one (whose `.yaml` may be left out).

    Args:
        name: Path, or name among `packaged_configs`.
        option: What the user gave it to, for the message.

    Raises:
        RepLoRAError: There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_configs()
    for candidate in (name, f"{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    hint = f" {alike}" if (alike := nearest(name, packaged)).startswith("Did") else ""
    raise RepLoRAError(
        f"{option} {name}: no such file here ({Path.cwd()}), and none of that name ships with the package.{hint} List "
        "them with: replora-cli configs"
    )


def read_config(file: Path) -> dict[str, Any]:
    """The content of a configuration file.

    Raises:
        RepLoRAError: It is not a YAML mapping, or `parse_yaml` refuses it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RepLoRAError(f"{file} is no configuration: it is not a text in UTF-8.") from error
    return parse_config(text, str(file))


def is_yaml(value: str) -> bool:
    """Whether the value of `--config` is YAML, not the name of a file."""
    return any(mark in value for mark in "{\n")


def parse_config(text: str, file: str) -> dict[str, Any]:
    """The content of a configuration.

    Args:
        text: YAML.
        file: Where it stands, for messages.

    Raises:
        RepLoRAError: It is not a YAML mapping, or `parse_yaml` refuses it.
    """
    content = parse_yaml(text, file)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = "empty" if content is None else f"not a mapping but a {type(content).__name__}"
        kind = "a mapping of keys that are no text" if isinstance(content, dict) else kind
        raise RepLoRAError(f"{file} is no configuration: it is {kind}. Its first lines are like `model:` and `data:`.")
    return content


def parse_yaml(text: str, file: str) -> Any:
    """The content of a YAML text, in which no key of a mapping is there twice.

    Args:
        text: YAML.
        file: Where it stands, for messages.

    Raises:
        RepLoRAError: It is not YAML, a key is there twice, of which YAML would take the last, or its aliases expand to
            more than `MOST_NODES` entries.
    """
    import yaml  # light verbs read no file

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _expanded_size(root, {}) > MOST_NODES:
            raise RepLoRAError(
                f"{file}: its aliases expand to more than {MOST_NODES:,} entries. Write it without them."
            )
        if root is not None and (twice := _key_there_twice(root, set())):
            key, first = twice
            mark = key.start_mark
            raise RepLoRAError(
                f"{file}, line {mark.line + 1}, column {mark.column + 1}: the key {key.value!r} is there twice, first "
                f"in line {first.start_mark.line + 1}. Remove one of them, or rename it."
            )
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RepLoRAError(f"{file}{where} is not valid YAML: {getattr(error, 'problem', None) or 'wrong'}.") from error
    except RecursionError as error:
        raise RepLoRAError(f"{file} is nested too deeply to be read.") from error


def _key_there_twice(node: yaml.Node, seen: set[int]) -> tuple[yaml.Node, yaml.Node] | None:
    """The first key below a YAML node that its mapping has already, and that earlier one."""
    import yaml  # light verbs read no file

    if id(node) in seen or not isinstance(node.value, list):
        return None
    seen.add(id(node))
    keys: dict[object, yaml.Node] = {}
    for child in node.value:
        key, value = child if isinstance(child, tuple) else (None, child)
        if key is not None and isinstance(key.value, str) and not key.tag.endswith(":merge"):
            read = yaml.constructor.SafeConstructor().construct_object(key)  # of `yes` and `true` the same
            if read in keys:
                return key, keys[read]
            keys[read] = key
        if found := _key_there_twice(value, seen):
            return found
    return None


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of nodes below a YAML node, an alias counted each time it is used; a circle counts as too many."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_NODES + 1
        children = getattr(node, "value", "")
        pairs = [child for pair in children for child in (pair if isinstance(pair, tuple) else (pair,))]
        inner = pairs if isinstance(children, list) else []
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in inner)
    return sizes[id(node)]


def former_defaults(file: Path) -> dict[str, str]:
    """The options that the complete `fit.yaml` of an earlier run lacks -> the values that it means; empty for others.

    A complete file has all options of its data, so also `cache_bytes`; images alone have an `interpolation`.
    """
    data = read_config(file).get("data")
    options = (data.get("init_args") if isinstance(data, dict) else None) or {}
    complete = {"cache_bytes", "subset_seed", "interpolation"} <= options.keys()
    return {"data.init_args.subset_rule": "by_split"} if complete and "subset_rule" not in options else {}
