"""Checks whether a run follows the recipe that it names, by the options of the recipe's packaged file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from replora.config_files import packaged_configs
from replora.identity import CHANGED, flat_options, plain_option

# Name of a video recipe in results -> its file.
FILES = {"v_petl": "recipe/v_petl.yaml", "tuned": "recipe/tuned_video.yaml"}
# Options that the files of recipes do not set, but that would change a recipe all the same.
UNSET = {
    "trainer.max_steps": -1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.limit_train_batches": None,
    "trainer.gradient_clip_val": None,
}


def changed_options(recipe: str, options: Mapping[str, Any]) -> list[str]:
    """Names of the options that differ from the recipe's file, such as `optimizer.lr`; none for a custom recipe.

    Args:
        recipe: Name of the recipe in results.
        options: Options of the whole run: `model`, `data` and `trainer`, with or without `class_path` and `init_args`.
    """
    if recipe not in FILES:
        return []
    file = packaged_configs()[FILES[recipe]]
    wanted = UNSET | _short_names(yaml.safe_load(file.read_text(encoding="utf-8")))
    found = _short_names(options)
    changed = [name for name, value in wanted.items() if not _equal(name, found.get(name), value)]
    return sorted(name.partition(".")[2] for name in changed if name != "data.recipe")


def named(recipe: str, changed: list[str]) -> str:
    """The recipe's name in results: `v_petl`, or `v_petl, changed: clips.stride, optimizer.lr`."""
    return recipe + (CHANGED + ", ".join(changed) if changed else "")


def _short_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names on the command line, without `init_args`."""
    return {plain_option(name): value for name, value in flat_options(options).items()}


def _equal(name: str, found: Any, wanted: Any) -> bool:
    if name.endswith("class_path"):  # a class may be given without its package
        return str(found).rpartition(".")[2] == str(wanted).rpartition(".")[2]
    return bool(found == wanted)
