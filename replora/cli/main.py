"""`replora-cli`: fit, validate, test and predict by LightningCLI (`replora/trainer/`), other verbs by `commands/`.

Nothing heavy is imported before it is known that the verb needs it.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Callable

from replora import __version__
from replora.cli.commands.ask import ask
from replora.cli.commands.compare import compare
from replora.cli.commands.configs import configs
from replora.cli.commands.export import export, merge
from replora.cli.commands.plot import plot
from replora.cli.commands.predict import predict_files
from replora.cli.commands.prepare import (
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
from replora.cli.commands.serve import serve
from replora.cli.commands.sweep import sweep
from replora.cli.commands.tune import tune
from replora.cli.defects import report_defect
from replora.cli.run_command import columns, described, run_command
from replora.cli.user_errors import user_error
from replora.errors import RepLoRAError, nearest, visible
from replora.launch import launch
from replora.progress import is_terminal
from replora.trainer.run_options import HELP_FLAGS

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
    "ask": ask,
    "export": export,
    "merge": merge,
    "serve": serve,
    "plot": plot,
    "compare": compare,
    "quickstart": quickstart,
    "tune": tune,
    "sweep": sweep,
    "report": report,
}

# What other programs call it -> verb.
OTHER_NAMES = {
    "train": "fit",
    "finetune": "fit",
    "eval": "test",
    "evaluate": "test",
    "infer": "predict-files",
    "classify": "predict-files",
    "download": "prepare",
    "demo": "quickstart",
    "save": "export",
    "convert": "merge",
    "deploy": "serve",
    "server": "serve",
    "search": "tune",
    "optimize": "tune",
}


def main(args: list[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: Command line without the name of the program. Default: that of this process.

    Raises:
        SystemExit: With status 2 for what a user can fix, 1 for a defect, and 128 and the signal's number for Ctrl-C,
            SIGTERM in a sweep, and a closed pipe.
        Exception: A defect, if `args` are given by a program; any error with REPLORA_DEBUG=1 in the environment.
    """
    arguments = sys.argv[1:] if args is None else list(args)
    if args is None:  # Python would end by a search for cycles among the objects of torch and Lightning: a second
        atexit.register(gc.freeze)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what it cannot encode, such as names in a log of ASCII, is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    if not is_terminal():  # transformers and the hub would write a line per step of their bars into a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        run(arguments)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:  # SIGTERM raises it as well in a sweep, with the number
        print("replora-cli: interrupted", file=sys.stderr)
        sys.exit(128 + next(iter(interrupt.args), signal.SIGINT))
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        _silence_output()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        message = user_error(error)
        if os.environ.get("REPLORA_DEBUG") == "1" or (message is None and args is not None):
            raise
        status = 1 if message is None else 2
        message = report_defect(error, arguments) if message is None else message
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):  # what is left in the buffer would fail again at the very end
            _silence_output()
        print(f"replora-cli: error: {visible(message)}", file=sys.stderr)
        sys.exit(status)


def _silence_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb == "help" and arguments[1:]:
        run([*arguments[1:], "--help"])
    elif verb in ("-h", "--help", "help"):
        print(_help())
    elif verb in ("--version", "-V", "version"):
        print(f"replora {__version__}")
    elif verb in COMMANDS:
        run_command(verb, COMMANDS[verb], arguments[1:])
    elif verb in TRAINER_VERBS and any(flag in arguments for flag in HELP_FLAGS):
        # Only here: the other verbs do not wait for torch and Lightning.
        from replora.trainer.help import help_page

        print(help_page(verb, TRAINER_VERBS[verb], arguments[1:]))
    elif verb in TRAINER_VERBS:
        launch(arguments, pictures=True)
    else:
        verbs = [*TRAINER_VERBS, *COMMANDS]
        meant = f"Did you mean {OTHER_NAMES[verb]!r}?" if verb in OTHER_NAMES else nearest(verb, verbs)
        raise RepLoRAError(f"There is no verb {verb!r}. {meant}")


def _help() -> str:
    return f"""usage: replora-cli VERB [options]

RepLoRA on PyTorch Lightning: adapt frozen backbones, measure them, compare methods.

{columns(TRAINER_VERBS | described(COMMANDS))}

The options of a verb, with the values that a configuration gives them:
  replora-cli fit --config vtab.yaml --help
  replora-cli fit --config vtab.yaml --help_all

Those of a class, with their full texts:
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
  replora-cli tune --config image_folder.yaml --data.root photos --time_budget 20m
  replora-cli fit --config commonsense_smollm2.yaml --data.root commonsense
  replora-cli predict-files runs/NAME new_photos --out predictions.csv
  replora-cli sweep --config sweep/quickstart_low_data.yaml
  replora-cli report runs/quickstart_low_data --out report
  replora-cli export runs/NAME
  replora-cli export runs/NAME --format onnx --out model
  replora-cli merge runs/NAME --out model
  replora-cli serve runs/NAME"""
