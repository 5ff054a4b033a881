"""What every backbone is, whatever it sees: a model and what is needed to name it in a result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from replora.errors import RepLoRAError


class BackboneError(RepLoRAError):
    """The backbone asked for does not exist, its weights cannot be had, or they are those of another model."""


@dataclass(frozen=True)
class Backbone:
    """A model and where it is from.

    Attributes:
        model: The model, before an adapter is injected.
        name: As asked for.
        head_names: Dotted names of the layers in `model` that are new and train as a whole; empty where all of it is
            pre-trained.
        weights: Where the weights are from: a file's or folder's path, a hub id, or `random`.
        sha256: Of the weights' file; None for hub weights, several files and random ones.
        fingerprint: Of the weights without the head: equal weights have equal fingerprints, wherever they are from.
    """

    model: nn.Module
    name: str
    head_names: tuple[str, ...]
    weights: str
    sha256: str | None
    fingerprint: str


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(
    model: nn.Module, heads: tuple[str, ...] = (), sample: int = 256, dtype: torch.dtype | None = None
) -> str:
    """A hash of every tensor's name, shape and first values: milliseconds, where all of ViT-B would take a second.

    With `dtype`, of the values rounded to it.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not in_head(name, heads) and isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            if not tensor.is_meta:
                values = tensor.flatten()[:sample]
                values = values.to(dtype) if dtype is not None and values.is_floating_point() else values
                digest.update(values.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def in_head(name: str, heads: tuple[str, ...]) -> bool:
    """Whether a tensor's name lies in one of the modules `heads`."""
    return any(name.startswith(f"{head}.") for head in heads)
