"""The file of generators, beside the plain LoRA adapter that `peft` writes: what training goes on with.

Format "replora-generators" version 1: a safetensors file with the parameters of all banks, whose header holds `format`,
`version` and `description`. `description` is JSON: `options`, the arguments of `replora.reparameterize`, and `banks`,
for each bank the names of the layers of each group. Readers ignore entries that they do not know.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from replora.adapters.config import RepLoRAConfig
from replora.adapters.peft_lora.generators import Generators, generators_in
from replora.adapters.peft_lora.matrices import forget
from replora.errors import RepLoRAError, check_arguments
from replora.io import UnreadableFileError, parse_json, replacing

FILE_NAME = "replora_generators.safetensors"
FILE_FORMAT = "replora-generators"
FILE_VERSION = 1


@check_arguments
def save_generators(model: nn.Module, folder: str | os.PathLike[str], adapter_name: str = "default") -> Path:
    """Write the generators of a reparameterized adapter into a folder, beside its A and B.

    `save_pretrained` of `peft` and transformers does so by itself. This is for what writes A and B in another way, such
    as `save_lora_weights` of a pipeline of diffusers.

    Args:
        model: A model after `replora.reparameterize`.
        folder: The folder.
        adapter_name: Name of the adapter.

    Returns:
        The file, which `replora.reparameterize(generators=)` and `replora.load_generators` read.

    Raises:
        RepLoRAError: The adapter is not reparameterized.
    """
    return write(generators_in(model, adapter_name, "save_generators"), folder)


@check_arguments
def load_generators(model: nn.Module, folder: str | os.PathLike[str], adapter_name: str = "default") -> nn.Module:
    """Take up saved generators in a reparameterized adapter whose A and B have been loaded.

    `load_adapter` of `peft` does so by itself. This is for what loads A and B in another way, such as
    `peft.set_peft_model_state_dict`. Without it the generators are solved for.

    Args:
        model: A model after `replora.reparameterize`.
        folder: Folder or file that `save_pretrained` or `replora.save_generators` wrote.
        adapter_name: Name of the adapter.

    Returns:
        The same model.

    Raises:
        RepLoRAError: The adapter is not reparameterized, or there is no such file.
    """
    generators, file = generators_in(model, adapter_name, "load_generators"), find_file(folder)
    if file is None:
        raise RepLoRAError(f"load_generators: {folder} has no {FILE_NAME}. Without it the generators are solved for.")
    take_up(generators, file)
    return model


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


def find_file(name: str | os.PathLike[str]) -> Path | None:
    """The file of generators at a path, in the folder there or in a repository of the hub; None if it has none.

    Raises:
        RepLoRAError: There is no such path or repository.
    """
    path = Path(name)
    if path.exists():
        path = path / FILE_NAME if path.is_dir() else path
        return path if path.exists() else None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise RepLoRAError(f"generators: {path} does not exist. Give the folder that save_pretrained wrote.")
    # Slow, and only for names of the hub.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(name), FILE_NAME))
    except (EntryNotFoundError, OSError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = str(error).partition("\n")[0]
        raise RepLoRAError(
            f"generators: {name} is neither a folder here nor a repository of the hub whose {FILE_NAME} can be had: "
            f"{reason} Give the folder that save_pretrained wrote."
        ) from error


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

    Otherwise the folder was changed after they were written, or belongs to another adapter: then they are solved for,
    now or where they were before, and a warning says so.

    Raises:
        RepLoRAError: The file is no such file.
    """
    description, tensors = _read(path)
    own = dict(generators.named_parameters())
    fits = description["banks"] == _layout(generators) and {n: t.shape for n, t in tensors.items()} == {
        n: p.shape for n, p in own.items()
    }
    if fits:
        before = {name: p.detach().clone() for name, p in own.items()}
        every = [matrix for matrices in generators.matrices for matrix in matrices]
        wanted = [matrix.value() if matrix.given is None else matrix.given for matrix in every]
        _copy(own, tensors)
        fits = all(_close(matrix.value(), value) for matrix, value in zip(every, wanted, strict=True))
        if not fits:
            _copy(own, before)
    if fits:
        for matrices in generators.matrices:
            forget(matrices)
        return
    warnings.warn(
        f"{path} does not belong to the A and B of this adapter. Its generators were solved for, up to rounding, "
        "so training goes on from the same A and B; the state of an optimizer does not fit them.",
        stacklevel=3,
    )


@torch.no_grad()
def _copy(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@torch.no_grad()
def _close(made: Tensor, wanted: Tensor) -> bool:
    wanted = wanted.to(made)
    return torch.allclose(made, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


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
    version = header.get("version", "")
    if not version.isdecimal() or int(version) > FILE_VERSION:
        raise RepLoRAError(
            f"{path} has version {version!r}, and this release reads up to {FILE_VERSION}. Install a newer one."
        )
    description = parse_json(header.get("description", ""), str(path))
    if not isinstance(description, dict) or not isinstance(description["options"], dict):
        raise UnreadableFileError(f"{path} is corrupt: its description and the options in it must have names.")
    return description, tensors
