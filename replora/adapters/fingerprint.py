"""Which frozen model an adapter belongs to: written into its file, compared where a base is named for the file.

    base: {class, name, dtype, fingerprint, rounded}

`fingerprint` is that of the weights rounded to `dtype`, the type they had in training, so a base saved in a wider type
has the same. `rounded` holds those for narrower types (absent in earlier files). A fingerprint is None where values are
quantized, sharded or not in memory: nothing can be compared then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from replora.adapters.config import BitFitConfig, FullConfig
from replora.adapters.container import Adapters
from replora.adapters.low_rank.frozen_layers import MERGEABLE
from replora.adapters.model_methods import base_state
from replora.adapters.wrappers import is_sharded
from replora.errors import RepLoRAError


def describe_base(model: nn.Module, heads: Iterable[str]) -> dict[str, Any]:
    """The entry `base` for a model before an adapter is injected that trains the modules `heads` as a whole."""
    dtype = _dtype_of(model)
    return {
        "class": type(model).__name__,
        "name": base_name(model) or architecture(model),
        "dtype": str(dtype).removeprefix("torch."),
        "fingerprint": _fingerprint(model, heads, dtype),
        "rounded": {
            str(narrow).removeprefix("torch."): _fingerprint(model, heads, narrow)
            for narrow in (torch.float32, torch.bfloat16, torch.float16)
            if narrow.itemsize < dtype.itemsize
        },
    }


def base_of(model: nn.Module, adapters: Adapters) -> dict[str, Any]:
    """The same for a model with an adapter: its weights may have been loaded after the injection.

    That of the injection where training changes these weights themselves, or where they can no longer be compared.
    """
    heads = tuple(f"{head}." for head in adapters.also_train)
    trains_base = isinstance(adapters.config, FullConfig | BitFitConfig)
    if trains_base or any(not name.startswith(heads) for name in adapters.head) or is_sharded(model):
        return adapters.base
    now = describe_base(model, adapters.also_train)
    return adapters.base if now["fingerprint"] is None else adapters.base | now


def check_base_weights(
    model: nn.Module,
    recorded: Mapping[str, Any] | None,
    heads: Iterable[str],
    file: str,
    injected: Adapters | None = None,
) -> None:
    """Refuse a base that is not the one `recorded` in an adapter file; the earliest files record none.

    Args:
        model: The base. With an adapter, it is compared only if that trains the same heads.
        recorded: The entry `base` of the file.
        heads: Names of the modules that the adapter trains as a whole.
        file: The file's name, for the error.
        injected: The adapter that the model carries.

    Raises:
        RepLoRAError: It is of another class, or has other weights.
    """
    if not recorded:
        return
    where = f"{file} was trained on {recorded['name'] or 'a model'} of the class {recorded['class']}"
    if type(model).__name__ != recorded["class"]:
        raise RepLoRAError(f"{where}, but this base is a {type(model).__name__}. Name the base of its training.")
    dtype = getattr(torch, recorded["dtype"], None)
    wanted = recorded["fingerprint"]
    if wanted is None or not isinstance(dtype, torch.dtype):
        return
    if injected is None:
        if (own := _dtype_of(model)) != dtype and own.itemsize <= dtype.itemsize:
            dtype = own
            wanted = recorded.get("rounded", {}).get(str(own).removeprefix("torch."))
        found = None if wanted is None else _fingerprint(model, heads, dtype)
    else:
        own_base = base_of(model, injected)
        like = own_base["dtype"] == recorded["dtype"] and set(injected.also_train) == set(heads)
        found = own_base["fingerprint"] if like else None
    if found not in (None, wanted):
        raise RepLoRAError(
            f"{where} with other weights: their fingerprint is {wanted}, this base's {found} (both in "
            f"{str(dtype).removeprefix('torch.')}). Name the base of its training (pretrained=True, the same weights). "
            "From Python, replora.load_adapter(model, file, force=True) loads it all the same."
        )


def base_name(model: nn.Module) -> str | None:
    """What the frozen model calls itself: `name_or_path` in transformers; None in timm, which does not note whether
    weights were loaded."""
    name = getattr(model, "name_or_path", None)
    return name if isinstance(name, str) and name else None


def architecture(model: nn.Module) -> str | None:
    """timm's name of a model, without that of weights."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture")


def timm_weights(model: nn.Module) -> str | None:
    """Where timm has the weights that it loads into such a model: hub id, or name and tag."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if cfg.get("hf_hub_id"):
        return str(cfg["hf_hub_id"])
    return ".".join(part for part in (cfg.get("architecture"), cfg.get("tag")) if part) or None


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _fingerprint(model: nn.Module, heads: Iterable[str], dtype: torch.dtype) -> str | None:
    plain = all(type(p.data) is Tensor and p.dtype in MERGEABLE and not p.is_meta for p in model.parameters())
    return fingerprint(model, tuple(heads), dtype=dtype) if plain and dtype in MERGEABLE else None


def fingerprint(
    model: nn.Module, heads: tuple[str, ...] = (), sample: int = 256, dtype: torch.dtype | None = None
) -> str:
    """A hash of every tensor's name, shape and first values: milliseconds, where all of ViT-B would take a second.

    With `dtype`, of the values rounded to it.
    """
    digest = hashlib.sha256()
    for name, tensor in base_state(model).items():
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


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """A hash of all values of a state dict, with names, shapes and types: equal tensors have equal hashes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
