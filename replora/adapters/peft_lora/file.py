"""The file of generators, beside the plain LoRA adapter that `peft` writes: what training goes on with.

Format "replora-generators" version 1: a safetensors file with the parameters of all banks, whose header holds `format`,
`version` and `description`. `description` is JSON: `options`, the arguments of `replora.reparameterize`, and `banks`,
for each bank the names of the layers of each group. Readers ignore entries that they do not know.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replora.adapters.config import RepLoRAConfig
from replora.adapters.peft_lora.generators import Generators
from replora.adapters.peft_lora.matrices import forget
from replora.errors import RepLoRAError
from replora.io import UnreadableFileError, parse_json, replacing

FILE_NAME = "replora_generators.safetensors"
FILE_FORMAT = "replora-generators"
FILE_VERSION = 1


def write(generators: Generators, folder: str | os.PathLike[str], state: Mapping[str, Tensor] | None = None) -> Path:
    """Write the generators of one adapter into a folder, whole or not at all.

    Args:
        generators: What `reparameterize` made.
        folder: The folder of the adapter.
        state: Their state, where the caller has gathered it from several processes.
    """
    tensors = generators.state_dict() if state is None else state
    description = {"options": generators.options, "banks": _layout(generators)}
    header = {"format": FILE_FORMAT, "version": str(FILE_VERSION), "description": json.dumps(description)}
    path = Path(folder) / FILE_NAME
    with replacing(path) as temporary:
        save_file({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}, temporary, header)
    return path


def find_file(path: str | os.PathLike[str]) -> Path | None:
    """The file of generators at a path or in the folder there, or None if the folder has none.

    Raises:
        RepLoRAError: There is no such path.
    """
    path = Path(path)
    if not path.exists():
        raise RepLoRAError(f"generators: {path} does not exist. Give the folder that save_pretrained wrote.")
    if path.is_dir():
        path /= FILE_NAME
    return path if path.exists() else None


def agreed_options(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The options that the file was written with.

    Raises:
        RepLoRAError: An option was given that is another one in the file.
    """
    own = _read(path)[0]["options"]
    for name, value in given.items():
        if value not in (own[name], getattr(RepLoRAConfig(), name)):
            raise RepLoRAError(
                f"{name}: {value!r} asked for, but {path} was written with {own[name]!r}. Leave it out to go on with "
                "these generators, or leave out generators= to solve for new ones."
            )
    return {name: own[name] for name in given}


def take_up(generators: Generators, path: Path) -> None:
    """Copy the generators in a file, if they produce the A and B that the layers have.

    Otherwise the folder was changed after they were written, or belongs to another adapter: then those that were solved
    for stay, and a warning says so.
    """
    description, tensors = _read(path)
    own = dict(generators.named_parameters())
    fits = description["banks"] == _layout(generators) and {n: t.shape for n, t in tensors.items()} == {
        n: p.shape for n, p in own.items()
    }
    if fits:
        before = {name: p.detach().clone() for name, p in own.items()}
        wanted = [pair for bank in generators.factor_banks() for pair in bank()]
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])
            made = [pair for bank in generators.factor_banks() for pair in bank()]
            fits = all(
                torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
                for one, other in zip(wanted, made, strict=True)
                for a, b in zip(one, other, strict=True)
            )
            if not fits:
                for name, parameter in own.items():
                    parameter.copy_(before[name])
    if not fits:
        warnings.warn(
            f"{path} does not belong to the A and B of this adapter. Its generators were solved for, up to rounding, "
            "so training goes on from the same A and B; the state of an optimizer does not fit them.",
            stacklevel=3,
        )
    for matrices in generators.matrices:
        forget(matrices)


def _layout(generators: Generators) -> list[list[list[str]]]:
    """The names of the layers, for each group of each bank; without what `PeftModel` puts before them."""
    return [
        [[pair.name.removeprefix("base_model.model.") for pair in members] for members in groups]
        for groups in generators.members
    ]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise UnreadableFileError(f"{path} cannot be read as safetensors: {error}") from error
    if header.get("format") != FILE_FORMAT:
        raise RepLoRAError(f"{path} holds no generators of RepLoRA: format {header.get('format')!r}.")
    if int(header["version"]) > FILE_VERSION:
        raise RepLoRAError(
            f"{path} has version {header['version']}, and this release reads up to {FILE_VERSION}. Install a newer one."
        )
    description: dict[str, Any] = parse_json(header["description"], str(path))
    return description, tensors
