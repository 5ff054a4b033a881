"""Arguments of a wrong type: every public function of adapters says so, by the argument's name, and changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import nn

import replora
from tests.adapters.tiny_models import timm_vit

CONFIG = replora.LoRAConfig(2)
FUNCTIONS = [  # what works with files and runs has its tests elsewhere
    name
    for name in replora.__all__
    if inspect.isfunction(function := getattr(replora, name))
    and function.__module__.startswith("replora.adapters.")
    and name != "use_parameter_groups"
]
CARRYING = set(FUNCTIONS) - {"inject", "load_adapter", "import_peft", "find_targets", "read_adapter", "reparameterize"}

NAMES = ["head", b"head", 5, 2.5, True, [None], [5], [b"head"], {"head": 1}, nn.Linear(2, 2), [nn.Linear(2, 2)]]
PATHS = [None, 5, True, ["a"], {}, b"x", nn.Linear(2, 2)]
TEXTS = [5, True, ["a"], {}, b"x", Path, nn.Linear(2, 2)]
FLAGS = ["false", "no", None, 0, 1, [], {}]
# Argument -> values that are none for it.
WRONG: dict[str, list[Any]] = {
    "model": [None, "vit", 3, CONFIG, {"a": torch.ones(1)}, torch.ones(2), timm_vit, nn.Linear, [nn.Linear(2, 2)]],
    "config": [None, "lora", 8, {"rank": 2}, [CONFIG], replora.LoRAConfig, peft.LoraConfig(), nn.Linear(2, 2)],
    "also_train": [None, *NAMES],
    "modules_to_save": NAMES,
    "wanted": [None, *NAMES],
    "blocks": [None, "first", 5, [None], ["0"], [True], [1.5], {0: 1}],
    "skip": [None, "head", 5, ["head"], nn.Linear(2, 2)],
    "check": FLAGS,
    "force": FLAGS,
    "deploy": FLAGS,
    "overwrite": FLAGS,
    "path": PATHS,
    "folder": PATHS,
    "name": TEXTS,
    "adapter_name": [None, *TEXTS],
    "hidden": ["8", 2.5, True, [8], nn.Linear(2, 2)],
    "activation": [None, "sigmoid", 5, ["tanh"], nn.Tanh()],
    "sharing": [None, "all", 5, ["group"], False],
    "scale_exponent": [None, "0.5", True, [0.5]],
    "generators": PATHS[1:],
    "base_model": TEXTS,
    "usage": TEXTS,
    "classes": [None, "cat", 5, [5], [None], {"cat": 1}],
    "license": [None, *TEXTS],
    "data": TEXTS,
    "images": TEXTS,
    "found": [None, *TEXTS],
    "state": [None, 5, "x", ["a"], {"a": 1}, {1: torch.ones(1)}, torch.ones(1), nn.Linear(2, 2)],
    "metadata": [5, "x", ["a"], {"a": 1}, {1: "a"}],
    "metrics": [5, "x", ["a"], {"a": "high"}, {1: 0.5}, {"a": None}],
}
CASES = [
    (function, argument, value)
    for function in FUNCTIONS
    for argument in inspect.signature(getattr(replora, function)).parameters
    if argument != "example"  # of any type: the model itself says what it takes
    for value in WRONG[argument]
]


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm_vit()


@pytest.fixture(scope="module")
def models() -> dict[bool, nn.Module]:
    return {True: replora.inject(vit(), CONFIG, also_train=["head"]), False: vit()}


def arguments_of(function: str, model: nn.Module, folder: Path) -> dict[str, Any]:
    """Right values for the arguments that must be given."""
    right = {
        "model": model,
        "config": CONFIG,
        "path": folder / "a.safetensors",
        "folder": folder / "peft",
        "name": "default",
        "state": {},
    }
    parameters = inspect.signature(getattr(replora, function)).parameters.values()
    return {p.name: right[p.name] for p in parameters if p.default is p.empty}


@pytest.mark.parametrize(("function", "argument", "value"), CASES, ids=[f"{f}-{a}-{str(v)[:20]}" for f, a, v in CASES])
def test_a_value_of_a_wrong_type_is_named(
    function: str, argument: str, value: Any, models: dict[bool, nn.Module], tmp_path: Path
) -> None:
    model = models[function in CARRYING]
    before = [name for name, _ in model.named_modules()]
    arguments = arguments_of(function, model, tmp_path) | {argument: value}
    with pytest.raises(replora.RepLoRAError, match=rf"^{function}: {argument} is .*It must be "):
        getattr(replora, function)(**arguments)
    assert [name for name, _ in model.named_modules()] == before
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: replora.inject(vit(), replora.LoRAConfig), r"Make one: LoRAConfig\(\.\.\.\)"),
        (lambda: replora.inject(vit(), CONFIG, also_train="head"), r"Put it into a list: \['head'\]"),
        (lambda: replora.find_targets(vit(), "q"), r"Put it into a list: \['q'\]"),
        (lambda: replora.describe(SimpleNamespace(model=vit())), "Its attribute `model` is one: pass that"),
        (lambda: replora.use_parameter_groups(vit()), "takes a transformers.Trainer that has a model"),
        (lambda: replora.use_parameter_groups(None), "takes a transformers.Trainer that has a model"),
    ],
)
def test_the_error_says_what_to_do(call: Callable[[], Any], remedy: str) -> None:
    with pytest.raises(replora.RepLoRAError, match=remedy):
        call()


def test_what_python_itself_refuses_keeps_its_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'config'"):
        replora.inject(vit())
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank'"):
        replora.inject(vit(), CONFIG, rank=3)


@pytest.mark.parametrize("heads", [("head",), ["head"], {"head"}, (name for name in ["head"]), {"head": 0}.keys()])
def test_names_may_be_in_any_collection(heads: Any) -> None:
    assert replora.inject(vit(), CONFIG, also_train=heads, modules_to_save=None).replora.also_train == ("head",)


@pytest.mark.parametrize("options", ["x", None, 5, ["r"], {1: 2}])
def test_options_of_a_method_of_peft_are_a_dict_of_names(options: Any) -> None:
    with pytest.raises(replora.RepLoRAError, match=r"options: .* a dict of arguments by their names"):
        replora.PeftMethodConfig(options=options)


@pytest.mark.parametrize("config", [replora.RepLoRAConfig, replora.LoRAConfig, replora.PeftMethodConfig])
def test_a_rank_above_all_dimensions_is_refused(config: Any) -> None:
    with pytest.raises(replora.RepLoRAError, match="rank: 1000000000 is out of range"):
        replora.inject(vit(), config(rank=10**9))
