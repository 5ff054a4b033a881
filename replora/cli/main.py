"""`replora-cli`: fit, validate, test and predict by LightningCLI (`replora/trainer.py`), other verbs by `commands/`.

Nothing heavy is imported before it is known that the verb needs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from replora.cli.commands.configs import configs
from replora.cli.commands.export import export, merge
from replora.cli.commands.plot import plot
from replora.cli.commands.predict import predict_files
from replora.cli.commands.prepare import (
    name_root,
    prepare_clip_features,
    prepare_commonsense,
    prepare_fgvc,
    prepare_hmdb51,
    prepare_images,
    prepare_ssv2,
    prepare_videos,
    prepare_vtab,
)
from replora.cli.commands.quickstart import quickstart
from replora.cli.commands.report import report
from replora.cli.commands.sweep import sweep
from replora.cli.user_errors import user_error
from replora.errors import RepLoRAError, nearest
from replora.launch import launch

# Verbs that LightningCLI runs, and verbs that are functions of `replora.cli.commands` (several with a second word).
TRAINER_VERBS = {
    "fit": "train an adapter, then test it where the protocol allows",
    "validate": "measure a trained adapter on the validation data",
    "test": "measure a trained adapter on the test data",
    "predict": "write a trained adapter's predictions as CSV, or JSON lines",
}
COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "configs": configs,
    "prepare": {
        "vtab": prepare_vtab,
        "fgvc": prepare_fgvc,
        "images": prepare_images,
        "ssv2": prepare_ssv2,
        "hmdb51": prepare_hmdb51,
        "videos": prepare_videos,
        "commonsense": prepare_commonsense,
        "clip-features": prepare_clip_features,
    },
    "predict-files": predict_files,
    "export": export,
    "merge": merge,
    "plot": plot,
    "quickstart": quickstart,
    "sweep": sweep,
    "report": report,
}

# Verbs whose last positional argument is a list of files -> number of positional arguments before it.
LISTS = {"predict-files": 1, "report": 0}


def main(args: list[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: Command line without the name of the program. Default: that of this process.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what it cannot encode, such as names in a log of ASCII, is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    if not sys.stderr.isatty():  # transformers and the hub would write a line per step of their bars into a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        run(arguments)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("replora-cli: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        _silence_output()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        message = user_error(error)
        if message is None or os.environ.get("REPLORA_DEBUG") == "1":
            raise
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):  # what is left in the buffer would fail again at the very end
            _silence_output()
        print(f"replora-cli: error: {message}", file=sys.stderr)
        sys.exit(2)


def _silence_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_help())
    elif verb == "--version":
        print(f"replora {importlib.metadata.version('replora')}")
    elif verb == "sweep":
        from jsonargparse import ArgumentParser

        # auto_cli reserves --config.
        parser = ArgumentParser(prog="replora-cli sweep", description=_first_line(sweep))
        parser.add_function_arguments(sweep, as_group=False)
        sweep(**parser.parse_args(arguments[1:]))
    elif verb in COMMANDS:
        from jsonargparse import auto_cli

        components: Any = COMMANDS[verb]
        options = name_root(arguments[1:]) if verb == "prepare" else arguments[1:]
        options = _list_files(options, LISTS[verb]) if verb in LISTS else options
        auto_cli(components, args=options, prog=f"replora-cli {verb}")
    elif verb in TRAINER_VERBS:
        launch(arguments)
    else:
        raise RepLoRAError(f"There is no verb {verb!r}. {nearest(verb, [*TRAINER_VERBS, *COMMANDS])}")


def _list_files(arguments: list[str], before: int) -> list[str]:
    """RUN a.jpg b.jpg --out x -> RUN ["a.jpg", "b.jpg"] --out x, as jsonargparse takes a list as one argument.

    Args:
        arguments: Arguments of the verb.
        before: Number of positional arguments before the list.
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
  replora-cli fit --model ImageClassification --model.adapter.help RepLoRAConfig
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
