"""From the folders of the `peft` library: a plain LoRA as an adapter of ours, to evaluate or to start training from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from replora.adapters import multi_adapter
from replora.adapters.config import RepLoRAConfig
from replora.adapters.container import Adapters, adapters_of
from replora.adapters.fingerprint import in_head
from replora.adapters.inject import inject
from replora.adapters.low_rank.factors import FactorBank, FactorPairs
from replora.adapters.low_rank.frozen_layers import MERGEABLE
from replora.adapters.low_rank.layer import AdaptedLinear, rows_of
from replora.adapters.peft_format.export import CONFIG_FILE, PREFIX, WEIGHTS_FILE, PeftFormatError
from replora.adapters.state import adapter_state, check_finite
from replora.adapters.weight_tying import UNTIE, shared_with
from replora.adapters.wrappers import aliases_of, plain_name, unwrap
from replora.errors import RepLoRAError, check_arguments, listed, nearest
from replora.io import UnreadableFileError, read_json

# Initializations that leave the frozen weights as they are; others (PiSSA, OLoRA, CorDA ...) change them.
_HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "eva")
_DEFAULT_ALPHA = 8  # PEFT's, where a folder names none
# Options under which a folder holds more than W0 + scale * B A, with the value that switches them off.
_EXTRAS: dict[str, Any] = {
    "bias": "none",
    "lora_bias": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
}


@check_arguments
@torch.inference_mode(False)
def import_peft(
    model: nn.Module, folder: str | os.PathLike[str], name: str | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Read a plain LoRA folder of PEFT into `model`, to evaluate it here or to go on training from it.

    A model without an adapter gets vanilla LoRA (`RepLoRAConfig(factors="none")`) on the layers of the folder. A model
    that carries a low-rank method on the same layers starts from the folder's A and B: LoRA takes them over, RepLoRA
    solves for the weights V of its MLPs that produce them (possible where `hidden` >= `rank`). A folder of lower rank
    leaves the further rows of A as they are, with B = 0; another alpha is taken into B. With a name, vanilla LoRA is
    added beside the adapters that the model carries, as by `replora.load_adapter`.

    Args:
        model: The base model, with or without an adapter.
        folder: Folder that holds `adapter_config.json` and `adapter_model.safetensors`.
        name: Name of a new adapter; None loads into the adapter that the model carries.
        force: Read values that are not finite as well.

    Returns:
        The folder's configuration.

    Raises:
        PeftFormatError: The folder is none of PEFT, not plain LoRA, or has other layers, heads or a higher rank than
            the model's adapter.
        RepLoRAError: The name is taken, the active adapter cannot be detached, or a value is not finite.
    """
    model = unwrap(model)
    folder = Path(folder)
    config, tensors = _read_folder(folder)
    if not force:
        check_finite(tensors, str(folder))
    pairs, scales, rest = _lora_pairs(folder, config, tensors)
    _check_one_name(model, folder, pairs)
    if name is None and isinstance(getattr(model, "replora", None), Adapters):
        rest = _without_the_models_own(model, folder, rest, adapters_of(model).also_train)
        before = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
        try:
            _fill(model, folder, pairs, scales, rest)
        except RepLoRAError:
            for key, tensor in before.items():
                adapter_state(model)[key].copy_(tensor)
            raise
        return config
    heads = _heads(model, config, rest)
    rest = _without_the_models_own(model, folder, rest, heads)
    _check_known_tensors(model, folder, pairs, heads)
    with multi_adapter.added(model, name or multi_adapter.DEFAULT_NAME, multi_adapter.head_states(rest, heads)):
        _inject_like(model, config, pairs, scales, heads)
        _fill(model, folder, pairs, scales, rest)
    return config


def _fill(
    model: nn.Module,
    folder: Path,
    pairs: dict[str, tuple[Tensor, Tensor]],
    scales: dict[str, float],
    rest: dict[str, Tensor],
) -> None:
    """Give the model's adapter and heads the folder's values."""
    adapters = adapters_of(model)
    if not isinstance(adapters.config, RepLoRAConfig):
        raise PeftFormatError(
            f"The model carries {adapters.config.name!r}; A and B of {folder} go into RepLoRA, linear or LoRA "
            "(RepLoRAConfig), or into a model without an adapter."
        )
    factors = _fitted(model, adapters, folder, pairs, scales)
    state = _head_state(model, adapters, folder, rest)
    for bank, found in factors:
        bank.assign(found)
    for tensor, value in state:
        tensor.copy_(value)


def _check_one_name(model: nn.Module, folder: Path, layers: Iterable[str]) -> None:
    """PEFT adapts a layer under one of its names, and leaves it frozen where the model uses it under another."""
    for names in aliases_of(model).values():
        for name in set(layers).intersection(map(plain_name, names)) if names[1:] else ():
            others = ", ".join(other for other in map(plain_name, names) if other != name)
            raise PeftFormatError(
                f"{folder} adapts {name}, which {type(model).__name__} uses as {others} as well, but PEFT has adapted "
                "only that one. Use the folder with the peft library."
            )


def _without_the_models_own(
    model: nn.Module, folder: Path, rest: dict[str, Tensor], heads: tuple[str, ...]
) -> dict[str, Tensor]:
    """`rest` without the frozen weights that PEFT writes as well: embeddings, and the layers beneath its own.

    Raises:
        PeftFormatError: The model has other values there.
    """
    modules = dict(model.named_modules())
    embeddings = _embeddings(model)
    kept, other = {}, set()
    for key, value in rest.items():
        module, _, attribute = key.rpartition(".")
        plain = modules.get(module.removesuffix(".base_layer"))
        frozen = module.endswith(".base_layer") or (plain is not None and plain in embeddings)
        if in_head(key, heads) or not frozen:
            kept[key] = value
            continue
        own = getattr(plain.linear if isinstance(plain, AdaptedLinear) else plain, attribute, None)
        if own is None or own.shape != value.shape or not torch.equal(own.cpu().to(value.dtype), value):
            other.add(key)
    if other:
        raise PeftFormatError(
            f"{folder} also holds frozen weights ({_few(other)}) that differ from {type(model).__name__}'s: its base "
            "was another one, or its vocabulary was changed. Give the model that base or vocabulary first."
        )
    return kept


def _embeddings(model: nn.Module) -> list[Any]:
    """Input and output embedding of a transformers model, as far as it has them."""
    found = []
    for kind in ("input", "output"):
        with suppress(NotImplementedError):  # image and audio models
            found.append(getattr(model, f"get_{kind}_embeddings", lambda: None)())
    return found


def _heads(model: nn.Module, config: dict[str, Any], rest: dict[str, Tensor]) -> tuple[str, ...]:
    """The modules that PEFT saved whole: `modules_to_save` says how their names end."""
    endings = tuple(config.get("modules_to_save") or ())
    ends = [name for name, _ in model.named_modules() if endings and name.endswith(endings)]
    return tuple(name for name in ends if any(key.startswith(f"{name}.") for key in rest))


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        pickled = " adapter_model.bin is a pickle, which is not read." if "adapter_model.bin" in there else ""
        raise PeftFormatError(f"{folder} is not an adapter of PEFT: {', '.join(missing)} missing ({there}).{pickled}")
    try:
        config = read_json(folder / CONFIG_FILE)
        tensors = load_file(folder / WEIGHTS_FILE)
    except (UnreadableFileError, SafetensorError) as error:
        raise PeftFormatError(f"{folder} is damaged: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("modules_to_save") or [], str | list):
        raise PeftFormatError(f"{folder} is damaged: {CONFIG_FILE} is none of PEFT's.")
    if config.get("peft_type") != "LORA":
        raise PeftFormatError(f"{folder} is of PEFT's method {config.get('peft_type')!r}; only LORA can be imported.")
    unusual = [key for key, plain in _EXTRAS.items() if config.get(key, plain) != plain]
    unusual += [k for k, v in config.items() if v and k.startswith("use_") and k != "use_rslora"]
    unusual += [
        k for k, v in config.items() if v and k.endswith("_config") and k not in ("eva_config", "megatron_config")
    ]
    unusual += ["init_lora_weights"] * (config.get("init_lora_weights", True) not in _HARMLESS_INITS)
    if unusual:
        raise PeftFormatError(
            f"{folder} is not plain LoRA: {', '.join(f'{k}={config[k]!r}' for k in unusual)}. Use it with the peft "
            "library itself."
        )
    return config, tensors


def _lora_pairs(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float], dict[str, Tensor]]:
    """A and B of each layer, its scale, and the tensors that are of neither."""
    from peft.utils.other import get_pattern_key

    rest = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    layers = [name.removesuffix(".lora_A.weight") for name in rest if name.endswith(".lora_A.weight")]
    pairs, scales = {}, {}
    for layer in layers:
        A, B = rest.pop(f"{layer}.lora_A.weight"), rest.pop(f"{layer}.lora_B.weight", None)
        if B is None or A.ndim != 2 or B.ndim != 2:
            raise PeftFormatError(f"{folder}: {layer} has no matching pair of matrices lora_A and lora_B.")
        if wrong := {tensor.dtype for tensor in (A, B)}.difference(MERGEABLE):
            raise PeftFormatError(
                f"{folder}: {layer} has matrices of {wrong.pop()}. LoRA's are of 16 or 32 bit floats."
            )
        alphas = config.get("alpha_pattern") or {}
        alpha = alphas.get(get_pattern_key(list(alphas), layer), config.get("lora_alpha", _DEFAULT_ALPHA))
        if not isinstance(alpha, int | float) or isinstance(alpha, bool):
            raise PeftFormatError(f"{folder}: lora_alpha is {alpha!r} in {CONFIG_FILE}. It must be a number.")
        pairs[layer], scales[layer] = (A, B), alpha / (len(A) ** 0.5 if config.get("use_rslora") else len(A))
    other = {name for name in rest if "lora_" in name}
    if other:
        raise PeftFormatError(f"{folder} has tensors that plain LoRA has not: {_few(other)}.")
    if not pairs:
        raise PeftFormatError(f"{folder} has no LoRA layers: none of its tensors ends in lora_A.weight.")
    return pairs, scales, rest


def _check_known_tensors(
    model: nn.Module, folder: Path, pairs: dict[str, tuple[Tensor, Tensor]], heads: tuple[str, ...]
) -> None:
    """Refuse layers that the model does not have, and heads that are tied to a frozen module."""
    modules = {plain_name(name) for name, _ in model.named_modules()}
    unknown = [name for name in pairs if name not in modules]
    if unknown:
        raise PeftFormatError(
            f"{folder} adapts {unknown[0]}{f' and {len(unknown) - 1} more layers' if unknown[1:] else ''}, which "
            f"{type(model).__name__} does not have. {nearest(unknown[0], modules)}"
        )
    for head in heads:
        own = model.get_submodule(head)
        if elsewhere := shared_with(model, own.parameters(), [model.get_submodule(name) for name in heads]):
            raise PeftFormatError(
                f"{folder} has a {head!r} of its own (modules_to_save), but {type(model).__name__}'s shares its weight "
                f"with {elsewhere[0]}, which would change with it. Use the folder with the peft library, or {UNTIE}."
            )


def _inject_like(
    model: nn.Module,
    config: dict[str, Any],
    pairs: dict[str, tuple[Tensor, Tensor]],
    scales: dict[str, float],
    heads: tuple[str, ...],
) -> None:
    """Vanilla LoRA on the folder's layers, its rank the highest of them."""
    rank = max(len(A) for A, _ in pairs.values())
    lora = RepLoRAConfig(
        rank=rank,
        alpha=max(scales.values()) * rank,
        factors="none",
        dropout=config.get("lora_dropout") or 0.0,
        targets=tuple(pairs),
        sharing="none",
    )
    inject(model, lora, also_train=heads)


@torch.no_grad()
def _fitted(
    model: nn.Module,
    adapters: Adapters,
    folder: Path,
    pairs: dict[str, tuple[Tensor, Tensor]],
    scales: dict[str, float],
) -> list[tuple[FactorBank, FactorPairs]]:
    """The folder's A and B in the shapes of the model's banks; their own values where the folder's rank is lower."""
    names = {
        id(module.linear): plain_name(name)
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
    }
    layers = {names.get(id(update.owner), update.names[0]): update for update in adapters.updates}
    if layers.keys() != pairs.keys():
        raise PeftFormatError(
            f"{folder} and the model's adapter are on different layers. Only in the folder: "
            f"{_few(pairs.keys() - layers.keys())}. Only in the model: {_few(layers.keys() - pairs.keys())}. Inject on "
            "the same layers, or import into a model without an adapter."
        )
    wanted = [(bank, [(A.clone(), torch.zeros_like(B)) for A, B in bank()]) for bank in adapters.factor_banks()]
    place = {id(bank): found for bank, found in wanted}
    filled: dict[tuple[int, int, int], tuple[str, Tensor, Tensor]] = {}
    for name, update in layers.items():
        A, B = pairs[name]
        used = torch.zeros_like(B, dtype=torch.bool)
        if (B.shape[0], A.shape[1]) != update.shape:
            raise PeftFormatError(
                f"{folder}: {name} is of a layer {A.shape[1]} -> {B.shape[0]}, but the model's is "
                f"{update.shape[1]} -> {update.shape[0]}."
            )
        for target, view in zip(update.names, update.views, strict=True):
            own_rows = rows_of(B, view.rows).flatten(0, 1)
            columns = own_rows.ne(0).any(dim=0)
            if view.rows is None:  # all but the zeros that fill up a lower rank
                columns |= A.ne(0).any(dim=1)
            rank = int(columns.sum())
            if rank > view.bank.rank:
                raise PeftFormatError(
                    f"{folder}: {name} has rank {rank}, more than the model's adapter ({view.bank.rank})."
                )
            rows_of(used, view.rows).fill_(True)
            own_A, own_B = place[id(view.bank)][view.slot]
            new_A, new_B = A[columns].to(own_A), (own_rows[:, columns] * (scales[name] / update.scale)).to(own_B)
            other, *same = filled.setdefault((id(view.bank), view.group, view.slot), (target, new_A, new_B))
            if other != target and not all(map(torch.equal, same, (new_A, new_B))):
                raise PeftFormatError(
                    f"{folder} has different factors for {other} and {target}, to which the model's adapter gives the "
                    "same A and B (sharing: tied). Import into sharing: group or none."
                )
            own_A[view.group, :rank], own_B[view.group, :, :rank] = new_A, new_B
        if bool(B[~used].any()):
            raise PeftFormatError(
                f"{folder} changes rows of {name} that the model's adapter leaves alone: it is a joint update of the "
                f"whole layer. Inject on the whole layer, targets=['*.{name.rpartition('.')[2]}'], or import into a "
                "model without an adapter."
            )
    return wanted


def _head_state(
    model: nn.Module, adapters: Adapters, folder: Path, rest: dict[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The tensors of the model's heads beside their values in the folder."""
    own = {
        plain_name(f"{head}.{name}"): tensor.detach()
        for head in adapters.also_train
        for name, tensor in model.get_submodule(head).state_dict().items()
    }
    wrong = [name for name in own.keys() & rest.keys() if own[name].shape != rest[name].shape]
    if own.keys() != rest.keys() or wrong:
        raise PeftFormatError(
            f"{folder} has other heads than the model trains. Only in the folder: {_few(rest.keys() - own.keys())}. "
            f"Only in the model: {_few(own.keys() - rest.keys())}. Of another shape: {_few(set(wrong))}. Name "
            "them with also_train, and give the model as many classes."
        )
    places: dict[int, str] = {}
    for name, tensor in own.items():
        first = places.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if not torch.equal(rest[first], rest[name]):
            raise PeftFormatError(
                f"{folder} has different values for {first} and {name}, which {type(model).__name__} shares. Untie "
                f"them before the import: {UNTIE.partition(': ')[2]}."
            )
    return [(own[name], rest[name]) for name in own]


def _few(names: set[str]) -> str:
    return listed(sorted(names), 3) or "none"
