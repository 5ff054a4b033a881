"""Checks of a command line before it is parsed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator

from datamodules import BaseDataModule
from lightning_modules import AdaptedModule
from replora.adapters.config import AdapterConfig
from replora.errors import RepLoRAError, nearest
from replora.identity import plain_option
from replora.options.class_options import find_class
from replora.options.settings import settings_of
from replora.runs import concrete_subclasses
from replora.trainer.in_force import options_in_force

# Options of the model that the data set -> what they are, and the options of the data that may exist for them.
OF_THE_DATA = {
    "--model.num_classes": ("the number of classes", ("data.num_classes",)),
    "--model.num_frames": ("the number of frames", ("data.clips.num_frames",)),
    "--model.image_size": ("the size of the images", ("data.image_size", "data.clips.image_size")),
}


def check_command_line(arguments: list[str]) -> None:
    """Check arguments that the parser would ignore silently, or reject without listing the valid names.

    Raises:
        RepLoRAError: The model is given an option that comes from the data, or a class or choice does not exist.
    """
    bases = {"--model": AdaptedModule, "--data": BaseDataModule, "--model.adapter": AdapterConfig}
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        value = value if equals else " ".join(arguments[position + 1 : position + 2])
        if option in ("--run_dir", "--ckpt_path") and not value and (equals or arguments[position + 1 :]):
            raise RepLoRAError(f"{option} is empty, as from a variable that is not set. Name a path, or leave it out.")
        if plain_option(option) in OF_THE_DATA:
            what, names = OF_THE_DATA[plain_option(option)]
            raise RepLoRAError(f"{option}: {what} is the data's. {_where_to_set(arguments, names)}")
        if option in bases and value.isidentifier():
            known = [cls.__name__ for cls in concrete_subclasses(bases[option])]
            if value not in known:
                raise RepLoRAError(f"{option}: there is no class {value!r}. {nearest(value, known)}")
        group, _, name = plain_option(option).rpartition(".")
        choices = _choices(bases[group], name) if group in bases and value.isidentifier() else set()
        if choices and value not in choices:
            raise RepLoRAError(f"{option}: {value!r} is not an option. {nearest(value, sorted(choices))}")


def _where_to_set(arguments: list[str], names: tuple[str, ...]) -> str:
    tree, _ = options_in_force(settings_of(arguments[1:]))
    cls = tree.classes.get("data")
    found = [name for name in names if tree.find(name) is not None]
    if cls is None or found:
        return f"Set --{(found or names)[0]}."
    return f"{cls.__name__} has no option for it: it reads it from its files."


# Options of the Trainer that Lightning takes unseen, or that end in an error of its loops -> smallest value.
SMALLEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": 0,
    "reload_dataloaders_every_n_epochs": 0,
}


NOT_ZERO = {
    "limit_train_batches": "Leave it out for all batches, or use replora-cli validate.",
    "val_check_interval": "Leave it out for a validation per epoch; --trainer.limit_val_batches 0 leaves them out.",
}
# Callbacks of Lightning that expect another kind of module -> what to use.
NOT_HERE = {
    "BackboneFinetuning": "the adapter selects what trains. Set --model.adapter, such as replora.FullConfig.",
    "LearningRateFinder": "set --model.optimizer.lr, or compare learning rates with replora-cli sweep.",
    "Timer": "set --trainer.max_time DD:HH:MM:SS.",
}
GPUS: dict[str, tuple[type[Accelerator], ...]] = {
    "gpu": (CUDAAccelerator, MPSAccelerator),
    "cuda": (CUDAAccelerator,),
    "mps": (MPSAccelerator,),
}


def check_trainer(options: Mapping[str, Any] | None) -> None:
    """Check the ranges of options of the Trainer.

    Raises:
        RepLoRAError: One is too small, or there is no such accelerator, or a callback cannot work; it is named.
    """
    if options is None:
        raise RepLoRAError("trainer: null leaves it without options. Remove the line, or set options below it.")
    for name, remedy in NOT_ZERO.items():
        if options.get(name) == 0:
            raise RepLoRAError(f"--trainer.{name} 0 is too small: it must be above 0. {remedy}")
    accelerator = str(options.get("accelerator"))
    if accelerator in GPUS and not any(gpu.is_available() for gpu in GPUS[accelerator]):
        raise RepLoRAError(
            f"--trainer.accelerator {accelerator}: torch {torch.__version__} finds none on this machine. Set "
            "--trainer.accelerator cpu (or --config trainer/cpu.yaml), or install a torch for the driver of the GPU: "
            "https://pytorch.org/get-started/locally."
        )
    callbacks = options.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(callback["class_path"]).rpartition(".")[2]
        if name in NOT_HERE:
            raise RepLoRAError(f"--trainer.callbacks {name} does not work here: {NOT_HERE[name]}")
    for name, smallest in SMALLEST.items():
        value = options.get(name)
        if value is not None and value < smallest:
            raise RepLoRAError(f"--trainer.{name} {value} is too small: it must be at least {smallest}.")


def check_data_files(data: Mapping[str, Any]) -> None:
    """Check that the folders of the data are there.

    Args:
        data: Class of the data and its options.

    Raises:
        DatasetNotFoundError: One is missing.
    """
    cls = find_class(data["class_path"], (BaseDataModule,))
    if cls is not None and issubclass(cls, BaseDataModule):
        with suppress(KeyError):  # a custom subclass may set itself where the data are
            cls.check_files(data.get("init_args", {}))


def _choices(base: type, name: str) -> set[str]:
    """The choices of an option in all classes that have it; none if one of these classes takes other values."""
    hints = [get_type_hints(cls.__init__).get(name) for cls in concrete_subclasses(base)]  # type: ignore[misc]
    found = [hint for hint in hints if hint is not None]
    if any(get_origin(hint) is not Literal for hint in found):
        return set()
    return {choice for hint in found for choice in get_args(hint)}


def fix_int_float_union() -> None:
    """Keep `--trainer.limit_val_batches 1` (one batch) apart from 1.0 (all), whatever was imported before Lightning.

    The parser uses the first type of a union that fits, and `typing` returns one cached object for Union[int, float]
    and Union[float, int], whichever was created first: after `import ray.tune` the Trainer would read 1 as 1.0.
    """
    hints = inspect.unwrap(Trainer.__init__).__annotations__
    for option, hint in hints.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            hints[option] = int | float | None
