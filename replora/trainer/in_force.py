"""The options of a verb, and which of them are in force."""

from __future__ import annotations

from lightning.pytorch import Trainer

from datamodules import BaseDataModule
from lightning_modules import AdaptedModule
from replora.options.class_options import Option
from replora.options.settings import Setting
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
