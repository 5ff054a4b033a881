"""What a resumed fit may change of the run that it continues (docs/results.md)."""

from __future__ import annotations

from typing import Any

from replora.errors import RepLoRAError
from replora.identity import differing_options

# The batch of all processes is compared as a number.
RESUMED_WITH_OTHERS = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.callbacks"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.accumulate_grad_batches", "data.batch_size"),
)


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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
