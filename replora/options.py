"""The options of a configuration, which YAML nests, by their dotted names."""

from __future__ import annotations

from typing import Any


def flat_options(content: Any, path: str = "") -> dict[str, Any]:
    """{"model": {"init_args": {"rank": 8}}} -> {"model.init_args.rank": 8}; an empty mapping is a value."""
    if not isinstance(content, dict) or not content:
        return {path: content}
    return {k: v for key, value in content.items() for k, v in flat_options(value, f"{path}.{key}".lstrip(".")).items()}
