"""`replora-cli`: fit, validate, test and predict by LightningCLI (`trainer_cli.py`), other verbs by `commands.py`.

Nothing heavy is imported before it is known that the verb needs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replora import commands
from replora.errors import RepLoRAError, nearest

# Verbs that LightningCLI runs, and verbs that are functions of `replora.commands`, or several of them by a second word.
TRAINER_VERBS = {
    "fit": "train an adapter, then test it where the protocol allows",
    "validate": "measure a trained adapter on the validation data",
    "test": "measure a trained adapter on the test data",
    "predict": "write a trained adapter's predictions as CSV, or JSON lines",
}
COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "configs": commands.configs,
    "prepare": {
        "vtab": commands.prepare_vtab,
        "fgvc": commands.prepare_fgvc,
        "images": commands.prepare_images,
        "ssv2": commands.prepare_ssv2,
        "hmdb51": commands.prepare_hmdb51,
        "videos": commands.prepare_videos,
        "commonsense": commands.prepare_commonsense,
        "clip-features": commands.prepare_clip_features,
    },
    "predict-files": commands.predict_files,
    "export": commands.export,
    "merge": commands.merge,
    "plot": commands.plot,
    "quickstart": commands.quickstart,
    "sweep": commands.sweep,
    "report": commands.report,
}

# Verbs whose last positional argument is a list of files, and how many arguments stand before it.
LISTS = {"predict-files": 1, "report": 0}


def main(args: list[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: The command line without the program's name; that of this process by default.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    try:
        run(arguments)
        sys.stdout.flush()
    except ValueError as error:
        mistake = _root_mistake(error)
        if mistake is None or os.environ.get("REPLORA_DEBUG") == "1":
            raise
        print(f"replora-cli: error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def run(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_help())
    elif verb == "--version":
        print(f"replora {importlib.metadata.version('replora')}")
    elif verb == "sweep":
        from jsonargparse import ArgumentParser

        # auto_cli keeps --config to itself.
        parser = ArgumentParser(prog="replora-cli sweep", description=_first_line(commands.sweep))
        parser.add_function_arguments(commands.sweep, as_group=False)
        commands.sweep(**parser.parse_args(arguments[1:]))
    elif verb in COMMANDS:
        from jsonargparse import auto_cli

        components: Any = COMMANDS[verb]
        options = _list_files(arguments[1:], LISTS[verb]) if verb in LISTS else arguments[1:]
        auto_cli(components, args=options, prog=f"replora-cli {verb}")
    elif verb in TRAINER_VERBS:
        _run_trainer(arguments)
    else:
        raise RepLoRAError(f"There is no verb {verb!r}. {nearest(verb, [*TRAINER_VERBS, *COMMANDS])}")


def _list_files(arguments: list[str], before: int) -> list[str]:
    """RUN a.jpg b.jpg --out x -> RUN ["a.jpg", "b.jpg"] --out x, for jsonargparse takes a list as one argument.

    Args:
        arguments: Of the verb.
        before: How many arguments stand before those of the list.
    """
    first_option = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    if first_option <= before:
        return arguments
    return [*arguments[:before], json.dumps(arguments[before:first_option]), *arguments[first_option:]]


def _help() -> str:
    verbs = dict(TRAINER_VERBS)
    for name, command in COMMANDS.items():
        named = {f"{name} {word}": f for word, f in command.items()} if isinstance(command, dict) else {name: command}
        verbs |= {words: _first_line(function) for words, function in named.items()}
    width = max(map(len, verbs)) + 2
    listed = "\n".join(f"  {name:<{width}}{text}" for name, text in verbs.items())
    return f"""usage: replora-cli VERB [options]

RepLoRA on PyTorch Lightning: adapt frozen backbones, measure them, compare methods.

{listed}

replora-cli VERB --help lists the options of a verb. Those of a class:
  replora-cli fit --model.help ImageClassification
  replora-cli fit --model.adapter.help RepLoRAConfig
  replora-cli fit --data.help VTABDataModule

For example:
  replora-cli quickstart
  replora-cli prepare vtab --root DIR
  replora-cli fit --config vtab.yaml --data.root DIR --data.task dtd
  replora-cli fit --config vtab.yaml --config adapter/lora.yaml --config trainer/ddp.yaml --data.task dtd
  replora-cli test --config runs/NAME/fit.yaml
  replora-cli fit --config image_folder.yaml --data.root photos
  replora-cli fit --config commonsense_smollm2.yaml --data.root commonsense
  replora-cli predict-files runs/NAME new_photos --out predictions.csv
  replora-cli sweep --config sweep/quickstart_low_data.yaml
  replora-cli report runs/quickstart_low_data --out report
  replora-cli export runs/NAME
  replora-cli merge runs/NAME --out model"""


def _first_line(function: Callable[..., None]) -> str:
    line = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]


def _root_mistake(error: BaseException) -> RepLoRAError | None:
    """The user's mistake behind an error; jsonargparse wraps what a constructor raises in errors of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RepLoRAError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


# --- configurations that ship with the package


def packaged_configs() -> dict[str, Path]:
    """Name -> file of every configuration that ships with the package, such as `vtab.yaml` and `adapter/lora.yaml`."""
    root = Path(str(importlib.resources.files("replora.configs")))
    return {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The configuration file called `name`: a local one, else the packaged one (whose `.yaml` may be left out).

    Raises:
        RepLoRAError: There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_configs()
    for candidate in (name, f"{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    raise RepLoRAError(
        f"--config {name}: no such file here ({Path.cwd()}), and none of that name ships with the package. "
        f"{nearest(name, packaged)} List them with: replora-cli configs"
    )


# --- fit, validate, test, predict


def _run_trainer(arguments: list[str]) -> None:
    """Parse a command line and run its verb with the Trainer."""
    _require_own_packages()
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from replora.trainer_cli import TrainerCLI

    try:
        TrainerCLI(arguments)
    except SIGTERMException:  # Lightning's own exit status would be 0
        sys.exit(128 + signal.SIGTERM)
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
