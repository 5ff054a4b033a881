"""The options of a verb, and which of them are in force."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from datamodules import BaseDataModule
from lightning_modules import AdaptedModule
from replora.identity import plain_option
from replora.options.class_options import Option
from replora.options.settings import Setting, settings_of
from replora.options.tree import OptionTree
from replora.trainer.run_options import CONFIG_TEXT, RUN_OPTIONS

# The options of a verb and what they take.
TOP = {
    "model": Option(AdaptedModule | None, required=True),
    "data": Option(BaseDataModule | None, required=True),
    "trainer": Option(Trainer),
    **{name: Option(hint, default, text=text) for name, (hint, default, text) in RUN_OPTIONS.items()},
    "seed_everything": Option(bool | int, default=0, text="Random seed (>= 0) for heads, adapters and data order."),
    "config": Option(str, text=CONFIG_TEXT),
}


def options_in_force(settings: list[Setting]) -> tuple[OptionTree, dict[str, Setting]]:
    """The options of the classes in force, and the last setting of each option."""
    tree = OptionTree(TOP)
    values: dict[str, Setting] = {}
    for setting in settings:
        option = tree.find(setting.name)
        if option is not None:
            tree.use_class(setting, option)
            values[setting.name] = setting
    return tree, values


def name_optimizers(arguments: list[str]) -> list[str]:
    """Let `--model.optimizer SGD` mean that of torch where another library that is loaded has a class of this name.

    peft loads bitsandbytes, whose optimizers have the names of torch's.
    """
    named = list(arguments)
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if plain_option(name.removeprefix("--")) not in ("model.optimizer", "model.optimizer.class_path"):
            continue
        if equals and hasattr(torch.optim, value):
            named[place] = f"{name}=torch.optim.{value}"
        elif not equals and place + 1 < len(named) and hasattr(torch.optim, named[place + 1]):
            named[place + 1] = f"torch.optim.{named[place + 1]}"
    return named


def name_classes_of_help(arguments: list[str]) -> list[str]:
    """Let `--model.help` and `--data.help` without a class be about the class in force, not about its base."""
    named: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        named.append(argument)
        group = argument.removeprefix("--").removesuffix(".help")
        if argument in ("--model.help", "--data.help") and following.startswith("--"):
            tree, _ = options_in_force(settings_of([a for a in arguments[1:] if a != argument]))
            named += [tree.classes[group].__name__] if group in tree.classes else []
    return named
