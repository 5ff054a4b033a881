"""`--trainer.precision auto`: what the hardware does well."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

AUTO = "auto"


def offer_auto() -> None:
    """Let the parser take `auto`, which Lightning's Trainer does not know."""
    hints = inspect.unwrap(Trainer.__init__).__annotations__
    if AUTO not in str(hints["precision"]):
        hints["precision"] = hints["precision"] | Literal["auto"]


def resolve_auto(trainer: Any) -> None:
    """Replace `auto` in the options of the Trainer: bf16-mixed where a GPU computes with it, 16-mixed on older ones.

    On a CPU and on Apple's GPUs it is 32-true: mixed precision is slower there, or not exact enough to be a default.
    """
    if trainer.precision != AUTO:
        return
    on_gpu = str(trainer.accelerator) in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    # Turing and older only emulate bfloat16.
    bf16 = on_gpu and torch.cuda.get_device_capability() >= (8, 0)
    trainer.precision = "bf16-mixed" if bf16 else "16-mixed" if on_gpu else "32-true"
    rank_zero_info(f"precision: auto is {trainer.precision} on this machine")
