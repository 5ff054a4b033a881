"""Adapter-only state: what training changed, by name, in memory and as a safetensors file.

The file, format "replora-adapter" version 1: a safetensors file whose tensors have their names in the adapted model,
and whose header holds `format`, `version`, `metadata` of `save_adapter` and `description`, which is JSON:

    method, options, targets, parameters      as `replora.describe` gives them, and with `sharing: tied` `tied`
    also_train                                names of the modules that train as a whole (absent in the earliest files)
    base                                      the frozen model, see `replora.adapters.fingerprint` (absent before)
    trained_as                                of a deployed file: method, options and parameters of the training

A *deployed* file holds A and B alone, without the MLPs that produced them. It is the file of vanilla LoRA on the same
targets, so every release that reads LoRA files reads it (with `sharing: tied`, every release that knows that). Readers
ignore entries that they do not know; a change that would mislead old readers raises the version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from replora.adapters import multi_adapter
from replora.adapters.config import (
    AdapterConfig,
    BitFitConfig,
    FullConfig,
    LinearProbeConfig,
    PeftMethodConfig,
    RepLoRAConfig,
    acting_options,
)
from replora.adapters.container import Adapters, adapters_of, describe, options_of, parameter_counts
from replora.adapters.fingerprint import base_of, check_base_weights
from replora.adapters.inject import inject
from replora.adapters.low_rank.factors import FactorBank
from replora.adapters.low_rank.frozen_layers import MERGEABLE, check_not_merged
from replora.adapters.wrappers import plain_keys, plain_name, unwrap
from replora.errors import RepLoRAError, check_arguments, listed, nearest
from replora.io import UnreadableFileError, parse_json, replacing

FILE_FORMAT = "replora-adapter"
FILE_VERSION = 1
HEADER = ("format", "version", "description")  # the entries of the header that are the format's own
_PLAIN_CONFIGS: dict[str, type[AdapterConfig]] = {
    "full": FullConfig,
    "linear_probe": LinearProbeConfig,
    "bitfit": BitFitConfig,
}


class StateMismatchError(RepLoRAError):
    """A state of another model, method, rank or set of targets."""


@check_arguments
def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that training changes (the adapter and what `also_train` named), by its name in `model`.

    The tensors are the model's own, not copies. Whether the adapter is merged makes no difference.
    """
    adapters, model = adapters_of(model), unwrap(model)
    tensors = {plain_name(name): t for name, t in (*model.named_parameters(), *model.named_buffers())}
    return {name: tensors[name].detach() for name in adapters.trained}


@check_arguments
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor], found: str = "The state") -> None:
    """Copy `state` into `model`. All keys and shapes must agree; otherwise nothing is changed.

    Args:
        model: A model into which the same method was injected.
        state: State that `adapter_state` returned; prefixes of wrappers (`_orig_mod.`, `module.`) are ignored.
        found: What the state is, for the error.

    Raises:
        StateMismatchError: A key is missing, unknown or of another shape.
    """
    _copy_state(model, state, found)


def _copy_state(model: nn.Module, state: Mapping[str, Tensor], found: str, differing: Sequence[str] = ()) -> None:
    """Copy `state`, unless its method is `differing` or a tensor is."""
    own = adapter_state(model)
    state = plain_keys(state, own)
    problems = [*differing, *(f"missing: {name}" for name in own if name not in state)]
    shared = {name: (state[name], tensor) for name, tensor in own.items() if name in state}
    problems += [f"{n}: {_dtype(t)} instead of {_dtype(o)}" for n, (t, o) in shared.items() if _kind(t) != _kind(o)]
    problems += [f"unknown: {name}" for name in state if name not in own]
    problems += [
        f"{name}: {tuple(t.shape)} instead of {tuple(o.shape)}" for name, (t, o) in shared.items() if t.shape != o.shape
    ]
    if problems:
        adapters = adapters_of(model)
        listed = "\n  ".join(problems[:12] + ([f"and {len(problems) - 12} more"] if len(problems) > 12 else []))
        raise StateMismatchError(
            f"{found} does not fit this {type(model).__name__} with {adapters.config}: "
            f"{len(problems)} differences.\n  {listed}\nInject with the method, options and targets it was saved with."
        )
    if adapters_of(model).merged:
        check_not_merged()
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _kind(tensor: Tensor) -> str:
    """What may be copied into what: a float into any other of at least 16 bits, everything else into its own dtype."""
    return "float" if tensor.dtype in MERGEABLE else _dtype(tensor)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors with NaN or infinity.

    Raises:
        RepLoRAError: There is one.
    """
    floats = {name: t for name, t in tensors.items() if t.dtype in MERGEABLE and not t.is_meta}
    wrong = [name for name, tensor in floats.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise RepLoRAError(
            f"{what} has values that are not finite, in {listed(wrong, most=3)}: the training diverged, or a file is "
            "corrupt. force=True (--force true on the command line) takes it all the same."
        )


@check_arguments
def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    deploy: bool = False,
    force: bool = False,
) -> Path:
    """Write the adapter and head as one safetensors file, whole or not at all.

    Args:
        model: A model with an adapter.
        path: The file.
        metadata: Further entries of the file's header.
        deploy: Write A and B alone, without the MLPs that produce them: all that a use of the adapter needs, and the
            size of a LoRA file. Training goes on from a file with the MLPs.
        force: Write values that are not finite as well.

    Raises:
        RepLoRAError: A tensor is offloaded from memory, or has values that are not finite.
        OSError: The file cannot be written; a file that was there before is still whole.
    """
    path = Path(path)
    adapters = adapters_of(model)
    description = describe(model) | {"also_train": list(adapters.also_train), "base": base_of(unwrap(model), adapters)}
    state = adapter_state(model)
    if deploy and adapters.factor_banks():
        description, state = _deployed(model, description, state)
    header = {"format": FILE_FORMAT, "version": str(FILE_VERSION), "description": json.dumps(description)}
    check_in_memory(state)
    if not force:
        check_finite(state, "The adapter")
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header | dict(metadata or {}))
        _sort_metadata(temporary)
    return path


def _sort_metadata(file: Path) -> None:
    """Give the entries `__metadata__` of a safetensors file one order: the library writes them in a random one."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            stream.seek(8)
            stream.write(text.ljust(length))


def check_in_memory(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write tensors that a device map offloads.

    Raises:
        RepLoRAError: One is not in memory.
    """
    if absent := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise RepLoRAError(
            f"{absent[0]} is not in memory (a device map offloads it, or the model has shapes only), so it cannot be "
            "saved. Give modules that train as a whole (also_train) a place in the device map: cpu or a GPU."
        )


@torch.no_grad()
def _deployed(
    model: nn.Module, description: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and state of the LoRA, ours or that of `peft`, that has the same A and B."""
    adapters = adapters_of(model)
    kept = {n: t for n, t in state.items() if not n.startswith(("replora.banks.", "replora.generators."))}
    if adapters.generators is None:
        config: AdapterConfig = RepLoRAConfig(**vars(adapters.config) | {"factors": "none", "init": "zero"})
    else:
        config = PeftMethodConfig(**vars(adapters.config) | {"reparameterize": False})
        kept |= adapters.generators.deployed()
    for number, bank in enumerate(adapters.banks):
        assert isinstance(bank, FactorBank)
        for slot, (A, B) in enumerate(bank()):
            kept |= {f"replora.banks.{number}.A.{slot}": A, f"replora.banks.{number}.B.{slot}": B}
    counts = parameter_counts(model)
    deployed = {
        "method": config.name,
        "options": options_of(config),
        "parameters": asdict(replace(counts, adapter_trained=counts.adapter_deployed)),
        # One that was deployed before keeps what it was trained as.
        "trained_as": adapters.trained_as or {key: description[key] for key in ("method", "options", "parameters")},
    }
    return description | deployed, kept


@check_arguments
@torch.inference_mode(False)
def load_adapter(
    model: nn.Module, path: str | os.PathLike[str], name: str | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Read a file of `save_adapter` into a model, and return its description.

    Without a name: a model that carries no adapter gets the one that the file describes; one that does must have the
    same method, options and targets. With a name: the adapter is added beside those that the model carries, under this
    name, and becomes the active one (`replora.set_adapter` makes another one active).

    Args:
        model: The backbone with the weights of the training, with or without an adapter.
        path: The file.
        name: Name of the adapter, if the model is to carry more than one.
        force: Load an adapter of other backbone weights, or with values that are not finite, as well.

    Raises:
        RepLoRAError: There is no such file, it is not an adapter of this format, the name is taken, the backbone has
            another class or other weights than in its training, or a value is not finite.
        StateMismatchError: It belongs to another model, method or set of targets, or to other options that change what
            the adapter computes (not dropout, not init).
    """
    description, state = read_adapter(path)
    config = config_of(description)
    target = unwrap(model)
    present = adapters_of(target) if isinstance(getattr(target, "replora", None), Adapters) else None

    def compare_bases() -> None:
        if not force:
            check_base_weights(target, description.get("base"), description.get("also_train", ()), str(path), present)

    if not force:
        check_finite(state, str(path))
    if present is None or name is not None:
        if "also_train" not in description:
            raise RepLoRAError(
                f"{path} does not say which modules were trained as a whole, so the model cannot be prepared for it. "
                "First call replora.inject(model, config, also_train=[...]) as in its training."
            )
        heads = multi_adapter.head_states(state, description["also_train"])
        with multi_adapter.added(target, name or multi_adapter.DEFAULT_NAME, heads):
            compare_bases()
            inject(target, config, also_train=description["also_train"])
            _load(target, path, description, state)
        return description
    compare_bases()
    _load(target, path, description, state)
    return description


def _load(
    model: nn.Module, path: str | os.PathLike[str], description: dict[str, Any], state: Mapping[str, Any]
) -> None:
    options = ", ".join(f"{k}={v}" for k, v in description["options"].items())
    found = f"{path} (method {description['method']}; {options})"
    adapters = adapters_of(model)
    _copy_state(model, state, found, _differing(adapters, description))
    adapters.trained_as = description.get("trained_as")


def _differing(adapters: Adapters, description: Mapping[str, Any]) -> list[str]:
    """Where the model's method computes something else from the file's tensors; what the file does not say is left out.

    Tensors of equal names and shapes may belong to another activation, another alpha or other layers.
    """
    saved = config_of(description)
    low_rank = isinstance(saved, RepLoRAConfig) and isinstance(adapters.config, RepLoRAConfig)  # LoRAConfig is one, too
    if type(saved) is not type(adapters.config) and not low_rank:
        return [f"method: {saved.name} in the file, {adapters.config.name} here"]
    # Through JSON, as the file's own options went.
    found, here = (json.loads(json.dumps(acting_options(config))) for config in (saved, adapters.config))
    named = [key for key in here if key in description["options"] and key in found]
    problems = [f"{key}: {found[key]!r} in the file, {here[key]!r} here" for key in named if found[key] != here[key]]
    targets = description.get("targets", adapters.targets)
    if targets != adapters.targets:
        only = [sorted(set(a) - set(b)) for a, b in ((targets, adapters.targets), (adapters.targets, targets))]
        sides = [f"{', '.join(names[:4])}{', ...' if names[4:] else ''}" or "none" for names in only]
        problems.append(f"targets: {sides[0]} only in the file, {sides[1]} only here")
    return problems


def config_of(description: Mapping[str, Any]) -> AdapterConfig:
    """The method that a file's description names.

    Raises:
        RepLoRAError: This release does not know the method or one of its options.
    """
    method, options = description["method"], description["options"]
    try:
        if "factors" in options:
            return RepLoRAConfig(**options)
        if "method" in options:
            return PeftMethodConfig(**options)
        if method in _PLAIN_CONFIGS:
            return _PLAIN_CONFIGS[method]()
    except (RepLoRAError, TypeError) as error:
        raise RepLoRAError(f"The adapter file has an option that this release does not know ({error}).") from error
    raise RepLoRAError(f"The adapter file's method {method!r} is not known. {nearest(method, _PLAIN_CONFIGS)}")


@check_arguments
def read_adapter(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of an adapter file.

    Raises:
        RepLoRAError: There is no such file, it is damaged, or it is not an adapter of this format.
    """
    header, state = _read(path)
    try:
        description = parse_json(header["description"], f"The description in {path}")
        known = {"method", "options"} <= description.keys()
    except (KeyError, UnreadableFileError, AttributeError) as error:
        raise RepLoRAError(f"{path} is damaged: its header has no description that can be read ({error}).") from error
    if not known:
        raise RepLoRAError(f"{path} is damaged: its description names no method ({', '.join(description) or 'empty'}).")
    for entry, fits in _ENTRIES.items():
        if entry in description and not fits(description[entry]):
            raise RepLoRAError(f"{path} is damaged: the entry {entry!r} of its description is {description[entry]!r}.")
    _check_sizes(description["options"], state, path)
    return description, state


def _check_sizes(options: Mapping[str, Any], state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Compare the sizes that the options ask for with the tensors, before memory is asked for."""
    sizes: Container[int] = {size for tensor in state.values() for size in tensor.shape}
    used = {"mlp": ("rank", "hidden"), "linear": ("rank", "hidden"), "none": ("rank",)}
    if "method" in options:  # of peft; some have matrices of other sizes, but none more ranks than values
        sizes = range(1 + max([8, *(tensor.numel() for tensor in state.values())]))
    for name in used["mlp"] if options.get("reparameterize") else used.get(str(options.get("factors", "none")), ()):
        if isinstance(options.get(name), int) and options[name] not in sizes:
            raise RepLoRAError(f"{path} is damaged: its option {name} is {options[name]}, and no tensor has that size.")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_base(value: object) -> bool:
    return not value or (
        isinstance(value, dict)
        and {"class", "name", "dtype", "fingerprint"} <= value.keys()
        and isinstance(value["dtype"], str)
        and isinstance(value.get("rounded", {}), dict)
    )


# What an entry of the description is, where a file has it.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "method": lambda value: isinstance(value, str),
    "options": lambda value: isinstance(value, dict),
    "targets": _is_names,
    "also_train": _is_names,
    "base": _is_base,
}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The header of an adapter file, with the `metadata` that `save_adapter` was given.

    Raises:
        RepLoRAError: As `read_adapter` says.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not Path(path).is_file():
        raise RepLoRAError(f"There is no adapter file {path}.")
    with Path(path).open("rb"):  # safetensors does not tell a missing permission from a missing file
        pass
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
    version = header.get("version", "")
    if not version.isdecimal():
        raise RepLoRAError(f"{path} is damaged: its header gives {version!r} as the version of its format.")
    if int(version) > FILE_VERSION:
        raise RepLoRAError(
            f"{path} has format version {version}; this release reads up to {FILE_VERSION}. Update replora."
        )
    return header, state
