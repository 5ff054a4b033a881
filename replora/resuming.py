"""What a resumed fit may change of the run that it continues (docs/results.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from replora.errors import RepLoRAError
from replora.identity import differing_options
from replora.io import Entries, check_types
from replora.results import read_results

# What ends a fit.
ENDS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.callbacks")

# The batch of all processes is compared as a number.
RESUMED_WITH_OTHERS = (
    *ENDS,
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.accumulate_grad_batches", "data.batch_size"),
)


class CheckpointError(RepLoRAError):
    """A checkpoint is damaged, or of another program."""


class ResumeError(RepLoRAError):
    """A checkpoint belongs to a fit with other data or options."""


def check_resumed(
    before: dict[str, Any], now: dict[str, Any], trained_on: dict[str, Any], data: dict[str, Any]
) -> None:
    """Check that a resumed fit continues the run of its checkpoint.

    Args:
        before: Options in the checkpoint; empty if it was written without a command line.
        now: Options of this fit.
        trained_on: Data and batch in the checkpoint.
        data: Data and batch of this fit.

    Raises:
        ResumeError: They differ in more than a resumed fit may change.
    """
    options = differing_options(before, now) if before and now else {}
    changed = {name: values for name, values in options.items() if not name.startswith(RESUMED_WITH_OTHERS)}
    compared = [name for name in trained_on if name != "examples"]  # the list and its size tell
    changed |= {name: (trained_on[name], data[name]) for name in compared if trained_on[name] != data.get(name)}
    if changed:
        listed = "\n  ".join(
            f"{name}: {_shown(was)} in the checkpoint, {_shown(is_)} here" for name, (was, is_) in changed.items()
        )
        raise ResumeError(
            f"The checkpoint belongs to a fit with other data or options:\n  {listed}\nA resumed run continues the one "
            "that was interrupted. Give the options it was started with, which are in its fit.yaml, or start a new run "
            "without --ckpt_path. More epochs, other devices with the same batch in all, and options that cannot "
            "change a number are allowed."
        )


def is_finished(checkpoint: Path, results: Path, now: dict[str, Any], most_epochs: int | None, most_steps: int) -> bool:
    """Whether a fit that resumes has nothing to train.

    It has all its epochs or steps already, or the recorded fit ended at this checkpoint, by early stopping for example,
    and nothing that ends a fit was changed since.

    Args:
        checkpoint: What it resumes from.
        results: The record of the run; without that of a fit, the fit did not end.
        now: Options of this fit.
        most_epochs: Epochs after which it ends; -1 or None for no limit.
        most_steps: Steps after which it ends; -1 for no limit.
    """
    state = read_checkpoint(checkpoint)
    content = read_results(results) if results.exists() else {}
    if "fit" not in content:
        return False
    epochs, steps = state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"], state["global_step"]
    if (most_epochs is not None and 0 <= most_epochs <= epochs) or 0 <= most_steps <= steps:
        return True
    if "configuration" not in content or content["fit"]["steps"] != steps:
        return False
    return not any(name.startswith(ENDS) for name in differing_options(content["configuration"], now))


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The content of a checkpoint of a fit. Objects of Python in it are never loaded, as they could run any code.

    Raises:
        CheckpointError: It is damaged, or of another program.
        OSError: It cannot be read.
    """
    with file.open("rb"):  # torch's own errors do not tell a missing permission from a damaged file
        pass
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch each raise their own, and advise to run what is in the file
        raise CheckpointError(
            f"{file} is damaged, or no checkpoint that a fit wrote. Objects of Python in a checkpoint are never "
            "loaded, as they could run any code. Copy the file again from its source, or fit again."
        ) from error
    wanted = {"state_dict": dict, "callbacks": dict, "loops": dict, "global_step": int}
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{file} holds tensors, but is no checkpoint that a fit wrote: it has no 'state_dict'.")
    check_types(content, wanted, str(file))
    return Entries(content, str(file))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
