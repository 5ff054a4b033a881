"""Does a run follow the recipe that it names? Its options, beside those of the recipe's packaged file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a recipe of videos is called in the results -> its file.
FILES = {"v_petl": "recipe/v_petl.yaml", "tuned": "recipe/tuned_video.yaml"}
# What a recipe leaves unsaid, and what would change it all the same.
UNSAID = {
    "trainer.max_steps": -1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.limit_train_batches": None,
    "trainer.gradient_clip_val": None,
}
# Each method is given its own, and results show them beside its name.
OF_METHODS = ("optimizer.lr", "optimizer.weight_decay")
CHANGED = ", changed: "


def changed_options(recipe: str, options: Mapping[str, Any]) -> list[str]:
    """Names of the options that are not those of the recipe's file, such as `optimizer.lr`; none for one's own recipe.

    Args:
        recipe: what the results call it.
        options: of the whole run: `model`, `data` and `trainer`, with or without `class_path` and `init_args`.
    """
    import yaml  # type: ignore[import-untyped]

    from replora.config_files import packaged_configs

    if recipe not in FILES:
        return []
    file = packaged_configs()[FILES[recipe]]
    wanted = UNSAID | _short_names(yaml.safe_load(file.read_text(encoding="utf-8")))
    found = _short_names(options)
    changed = [name for name, value in wanted.items() if not _equal(name, found.get(name), value)]
    return sorted(name.partition(".")[2] for name in changed if name != "data.recipe")


def named(recipe: str, changed: list[str]) -> str:
    """`v_petl`, or `v_petl, changed: clips.stride, optimizer.lr`."""
    return recipe + (CHANGED + ", ".join(changed) if changed else "")


def shared_by_methods(name: str) -> str:
    """What `named` gave, without the options that every method has of its own."""
    recipe, _, changed = name.partition(CHANGED)
    return named(recipe, [option for option in changed.split(", ") if option and option not in OF_METHODS])


def _short_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names on the command line, where `init_args` may be left out."""
    return {name.replace(".init_args", ""): value for name, value in flat_options(options).items()}


def _equal(name: str, found: Any, wanted: Any) -> bool:
    if name.endswith("class_path"):  # a class may be given by its name alone
        return str(found).rpartition(".")[2] == str(wanted).rpartition(".")[2]
    return bool(found == wanted)


def flat_options(content: Any, path: str = "") -> dict[str, Any]:
    """{"model": {"init_args": {"rank": 8}}} -> {"model.init_args.rank": 8}; an empty mapping is a value."""
    if not isinstance(content, dict) or not content:
        return {path: content}
    return {k: v for key, value in content.items() for k, v in flat_options(value, f"{path}.{key}".lstrip(".")).items()}
