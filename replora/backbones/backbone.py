"""What every backbone is, whatever it sees: a model and what is needed to name it in a result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from torch import nn

from replora.errors import RepLoRAError


class BackboneError(RepLoRAError):
    """The backbone asked for does not exist, its weights cannot be had, or they are those of another model."""


@dataclass(frozen=True)
class Backbone:
    """A model and where it is from.

    Attributes:
        model: The model, before an adapter is injected.
        name: Name that the user asked for.
        head_names: Dotted names of the layers in `model` that are new and train as a whole; empty where all of it is
            pre-trained.
        weights: Where the weights are from: a file's or folder's path, a hub id, or `random`.
        sha256: SHA-256 of the weight file; None for hub weights, several files and random ones.
        fingerprint: Hash of the weights without the head: equal weights have equal ones, wherever they are from.
    """

    model: nn.Module
    name: str
    head_names: tuple[str, ...]
    weights: str
    sha256: str | None
    fingerprint: str

    def describe(self) -> dict[str, str | None]:
        """Name and source of the weights, as JSON values."""
        return {name: getattr(self, name) for name in ("name", "weights", "sha256", "fingerprint")}


def why_unreadable(error: Exception) -> str:
    """Why a file of weights cannot be read. torch's own words advise to run the objects of Python in it."""
    if isinstance(error, UnpicklingError) or "weights_only" in str(error):
        return "it is damaged, or holds objects of Python, which are never loaded, as they could run any code"
    return (str(error).splitlines() or [type(error).__name__])[0]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
