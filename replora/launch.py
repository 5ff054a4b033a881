"""Run one verb of the Trainer in this process: for the command line, the quickstart and the trials of a sweep."""

from __future__ import annotations

import importlib
import importlib.metadata
import signal
import sys

from replora.errors import RepLoRAError


def launch(arguments: list[str]) -> None:
    """Parse a command line of fit, validate, test or predict and run it.

    Args:
        arguments: The verb and its options.

    Raises:
        RepLoRAError: The user's mistake; jsonargparse may wrap it in an error of its own.
        SystemExit: The parser refused an option, or SIGTERM (status 143) or Ctrl-C (status 130) ended the run.
    """
    _require_own_packages()
    # Only here: the light verbs of the command line do not wait for torch and Lightning.
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from replora.trainer import TrainerCLI

    try:
        TrainerCLI(arguments)
    except SIGTERMException:  # Lightning's own exit status would be 0
        sys.exit(128 + signal.SIGTERM)
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # Lightning's own exit status is 1
            sys.exit(128 + signal.SIGINT)
        raise
    _leave_process_group()


def _leave_process_group() -> None:
    """End what connects the processes of a run while Python is whole.

    Threads of gloo that still hold tensors when the interpreter is taken apart abort the process (status -6), seldom
    but after its work is done. After an error the group is left alone: others may be waiting in it.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _require_own_packages() -> None:
    """Name the culprit if another `datamodules` or `lightning_modules` comes before ours on the import path.

    Raises:
        RepLoRAError: It does.
    """
    for package, own in (("datamodules", "BaseDataModule"), ("lightning_modules", "AdaptedModule")):
        module = importlib.import_module(package)
        if hasattr(module, own):
            continue
        found = module.__file__ or ", ".join(module.__path__)
        others = [name for name in importlib.metadata.packages_distributions().get(package, []) if name != "replora"]
        culprit = f"belongs to the installed {' and '.join(others)}" if others else "comes first on the import path"
        raise RepLoRAError(
            f"The package {package!r} that Python finds is {found}, not the one of replora. It {culprit}. Use an "
            "environment without it, or rename it."
        )
