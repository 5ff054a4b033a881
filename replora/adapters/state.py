"""Adapter-only state: what training changed, by name, in memory and as a safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from replora.adapters.inject import adapters_of, describe
from replora.atomic import replacing
from replora.errors import RepLoRAError

FILE_FORMAT = "replora-adapter"
FILE_VERSION = 1


class StateMismatchError(RepLoRAError):
    """A state of another model, method, rank or set of targets."""


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that training changes (the adapter and what `also_train` named), by its name in `model`.

    The tensors are the model's own, not copies. Whether the adapter is merged makes no difference.
    """
    model = getattr(model, "_orig_mod", model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensors[name].detach() for name in adapters_of(model).trained}


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor], found: str = "The state") -> None:
    """Copy `state` into `model`. All keys and shapes must agree; otherwise nothing is changed.

    Args:
        model: A model into which the same method was injected.
        state: As from `adapter_state`; a prefix of torch.compile is ignored.
        found: What the state is, for the error.

    Raises:
        StateMismatchError: A key is missing, unknown or of another shape.
    """
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    own = adapter_state(model)
    problems = [f"missing: {name}" for name in own if name not in state]
    problems += [f"unknown: {name}" for name in state if name not in own]
    problems += [
        f"{name}: {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        adapters = adapters_of(model)
        listed = "\n  ".join(problems[:12] + ([f"and {len(problems) - 12} more"] if len(problems) > 12 else []))
        raise StateMismatchError(
            f"{found} does not fit this {type(model).__name__} with {adapters.config}: "
            f"{len(problems)} tensors differ.\n  {listed}\nInject with the method, rank and targets it was saved with."
        )
    if any(update.merged for update in adapters_of(model).updates):
        raise RepLoRAError(
            "The adapter is merged into the backbone. Call replora.unmerge before loading another state."
        )
    for name, tensor in own.items():
        tensor.copy_(state[name])


def save_adapter(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> Path:
    """Write the adapter and head as one safetensors file, whole or not at all.

    The header holds the format's name and version, `describe(model)` as JSON, and `metadata`.

    Raises:
        OSError: The file cannot be written; a file that was there before is still whole.
    """
    from safetensors.torch import save_file

    path = Path(path)
    header = {"format": FILE_FORMAT, "version": str(FILE_VERSION), "description": json.dumps(describe(model))}
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in adapter_state(model).items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header | dict(metadata or {}))
    return path


def load_adapter(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of `save_adapter` into a model with the same injection, and return its description.

    Raises:
        RepLoRAError: There is no such file, or it is not an adapter of this format.
        StateMismatchError: It belongs to another model, method, rank or set of targets.
    """
    description, state = read_adapter(path)
    options = ", ".join(f"{k}={v}" for k, v in description["options"].items())
    load_adapter_state(model, state, found=f"{path} (method {description['method']}; {options})")
    return description


def read_adapter(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of an adapter file.

    Raises:
        RepLoRAError: There is no such file, it is damaged, or it is not an adapter of this format.
    """
    header, state = _read(path)
    return json.loads(header["description"]), state


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The header of an adapter file, with the `metadata` that `save_adapter` was given.

    Raises:
        RepLoRAError: As `read_adapter` says.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise RepLoRAError(f"There is no adapter file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise RepLoRAError(f"{path} is damaged or not a safetensors file: {error}") from error
    if header.get("format") != FILE_FORMAT:
        raise RepLoRAError(
            f"{path} is a safetensors file, but not a RepLoRA adapter (its header says {header or 'nothing'})."
        )
    if int(header["version"]) > FILE_VERSION:
        raise RepLoRAError(
            f"{path} has format version {header['version']}; this release reads up to {FILE_VERSION}. Update replora."
        )
    return header, state
