"""Run one verb of the Trainer in this process: for the command line, the quickstart and the trials of a sweep."""

from __future__ import annotations

import importlib
import importlib.metadata
import signal
import sys
from types import ModuleType

from replora.errors import RepLoRAError

# Top-level packages besides `replora` -> a class that no other package of the name has.
OWN = {"datamodules": "BaseDataModule", "lightning_modules": "AdaptedModule"}


def launch(arguments: list[str], *, pictures: bool = False) -> None:
    """Parse and run a command line of fit, validate, test or predict.

    Args:
        arguments: Verb and its options.
        pictures: Whether a test of images is drawn.

    Raises:
        RepLoRAError: A user error; jsonargparse may wrap it in its own error.
        SystemExit: The parser rejected an option, or SIGTERM (status 143) or Ctrl-C (status 130) ended the run.
    """
    _check_packages()
    # Only here: the light verbs of the command line do not wait for torch and Lightning.
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from replora.trainer.trainer_cli import TrainerCLI  # imports torch

    try:
        TrainerCLI(arguments, pictures=pictures)
    except SIGTERMException:  # Lightning's own exit status would be 0
        sys.exit(128 + signal.SIGTERM)
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # Lightning's own exit status is 1
            sys.exit(128 + signal.SIGINT)
        raise
    _leave_process_group()


def _leave_process_group() -> None:
    """Destroy the process group before the interpreter shuts down.

    Gloo threads that still hold tensors at shutdown can abort the process (status -6) after its work is done. After an
    error the group is left alone, as other processes may be waiting in it.
    """
    from torch import distributed  # slow to import, and loaded by now

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _check_packages() -> None:
    """Check that no other `datamodules` or `lightning_modules` comes first on the import path.

    Raises:
        RepLoRAError: One does; the message names it.
    """
    for package in OWN:
        if message := foreign_package(importlib.import_module(package)):
            raise RepLoRAError(message)


def foreign_package(module: ModuleType) -> str | None:
    """A message, if `module` is another `datamodules` or `lightning_modules` than that of this project."""
    package = module.__name__
    if hasattr(module, OWN[package]):
        return None
    found = module.__file__ or ", ".join(module.__path__)
    others = [name for name in importlib.metadata.packages_distributions().get(package, []) if name != "replora"]
    culprit = f"belongs to the installed {' and '.join(others)}" if others else "comes first on the import path"
    return (
        f"The package {package!r} that Python finds is {found}, not the one of replora. It {culprit}. Use an "
        "environment without it, or rename it."
    )
