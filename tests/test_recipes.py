"""A run names the options of its recipe that it changed."""

from __future__ import annotations

import copy

import pytest
import yaml

from replora.config_files import packaged_configs
from replora.identity import recipe_of_all_methods
from replora.recipes import FILES, changed_options, named


@pytest.mark.parametrize(("recipe", "file"), [*FILES.items(), ("v_petl", "ssv2.yaml"), ("v_petl", "hmdb51.yaml")])
def test_changes_are_named(recipe: str, file: str) -> None:
    options = yaml.safe_load(packaged_configs()[file].read_text(encoding="utf-8"))
    options["trainer"] |= {"max_steps": -1, "accumulate_grad_batches": 1}
    assert changed_options(recipe, options) == []
    changed = copy.deepcopy(options)
    changed["model"]["init_args"]["optimizer"]["init_args"]["lr"] *= 2
    changed["data"]["init_args"]["clips"]["stride"] = 4
    changed["trainer"]["accumulate_grad_batches"] = 4
    found = changed_options(recipe, changed)
    assert found == ["accumulate_grad_batches", *(["clips.stride"] if recipe == "v_petl" else []), "optimizer.lr"]
    assert changed_options("own", changed) == []


def test_a_rate_of_its_own_is_a_method_s() -> None:
    name = named("v_petl", ["clips.stride", "optimizer.lr"])
    assert name == "v_petl, changed: clips.stride, optimizer.lr"
    assert recipe_of_all_methods(name) == "v_petl, changed: clips.stride"
    assert recipe_of_all_methods("v_petl, changed: optimizer.lr") == recipe_of_all_methods("v_petl") == "v_petl"
