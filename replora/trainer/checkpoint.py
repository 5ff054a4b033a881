"""Which checkpoint a verb uses."""

from __future__ import annotations

from pathlib import Path

from lightning_modules.callbacks.results_writer import best_checkpoint
from replora.errors import RepLoRAError
from replora.results import UNTRAINED
from replora.resuming import read_checkpoint
from replora.run_directory import last_checkpoint


def find_checkpoint(verb: str, path: Path | None, run_dir: Path | None) -> Path | None:
    """The checkpoint to use: `--ckpt_path`, or the last one of the run for verbs that need one.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        path: `--ckpt_path`.
        run_dir: `--run_dir`.

    Returns:
        The checkpoint, or None for a fit that starts.

    Raises:
        RepLoRAError: It does not exist, or is not a checkpoint.
        OSError: It cannot be read.
    """
    last = None if run_dir is None else last_checkpoint(run_dir)
    if path is None and verb == "fit":
        return None
    if str(path) == "best":
        return best_checkpoint(last)
    if path is None or str(path) == "last":
        if last is None:
            raise RepLoRAError(
                f"{verb} needs trained weights. Give the run, --config RUN/fit.yaml, or a checkpoint, "
                "--ckpt_path RUN/checkpoints/last.ckpt. A language model can be measured before any training: "
                f"--ckpt_path {UNTRAINED}."
            )
        path = last
    path = path.expanduser()
    if not path.is_file():
        raise RepLoRAError(f"There is no checkpoint {path}. A fit writes RUN/checkpoints/last.ckpt after every epoch.")
    if path.suffix == ".safetensors":
        raise RepLoRAError(
            f"--ckpt_path: {path} is an adapter for replora.load_adapter; a run's checkpoint is "
            "RUN/checkpoints/last.ckpt."
        )
    read_checkpoint(path)
    return path
