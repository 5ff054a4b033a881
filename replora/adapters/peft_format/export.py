"""To the folders of the `peft` library: a trained adapter that stock PEFT loads. `peft_import.py` is the way back.

After training A and B are constants, so RepLoRA, its linear ablation and LoRA are all plain LoRA to PEFT. PEFT adapts a
whole layer with one A and one B. Where several targets lie in one layer (the query and value rows of a fused `qkv`,
each with its own rank-r pair), the pairs are stacked into one of rank 2r, which is the same update:

    A = [A_q]      B = [B_q   0 ]  q rows        r' = 2r,  alpha' = 2 alpha: the scale alpha / r stays
        [A_v]          [ 0    0 ]  k rows
                       [ 0   B_v]  v rows

All layers get the highest of the ranks, by zeros: some programs know one rank and one alpha for a whole folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from replora.adapters.config import PeftMethodConfig, RepLoRAConfig
from replora.adapters.container import Adapters, adapters_of, describe
from replora.adapters.fingerprint import architecture, base_name
from replora.adapters.labels import class_count, is_of_labels
from replora.adapters.low_rank.frozen_layers import computes_by_weight
from replora.adapters.low_rank.layer import AdaptedLinear, is_conv1d, stacked
from replora.adapters.peft_format.model_card import model_card
from replora.adapters.peft_methods import peft_config, peft_layers
from replora.adapters.state import check_finite, check_in_memory
from replora.adapters.verify import outputs_on_example
from replora.adapters.weight_tying import shared_with
from replora.adapters.wrappers import aliases_of, plain_name, unwrap
from replora.errors import RepLoRAError, check_arguments, listed
from replora.io import new_folder

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "README.md"
PREFIX = "base_model.model."  # how PEFT's own wrapper names what it wraps


class PeftFormatError(RepLoRAError):
    """An adapter that PEFT cannot express, or a PEFT folder that is not a plain LoRA of this model."""


@check_arguments
def export_peft(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    license: str = "unknown",
    data: str | None = None,
    metrics: Mapping[str, float] | None = None,
    example: Any = None,
    force: bool = False,
    images: str | None = None,
    classes: Sequence[str] = (),
    usage: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the adapter of `model` as a folder that `peft.PeftModel.from_pretrained(base, folder)` opens.

    The folder holds `adapter_config.json`, `adapter_model.safetensors` and a model card, `README.md`. Heads go into
    `modules_to_save`. The outputs are those of `model` up to rounding; a merge in PEFT equals a merge here.

    Args:
        model: A model with an adapter of a low-rank method (RepLoRA, linear, LoRA) or of the `peft` library.
        folder: Where to write; it must not exist, or be empty.
        base_model: Name or path of the frozen model, for the configuration and the card. Default: the model's own.
        license: License of the adapter for the model card, an identifier of the Hugging Face hub such as `apache-2.0`.
        data: What it was trained on, for the card.
        metrics: Name -> value, for the card.
        example: An input to find out whether each adapted layer is called or its weight is read, where the model has
            not run yet and is of no known library.
        force: Write values that are not finite as well.
        images: How images are preprocessed, for the card.
        classes: Class names in the order of the outputs, for the card.
        usage: Code that opens and uses the folder, for the card. Default: code that opens it.
        overwrite: Replace an earlier folder that holds nothing else.

    Raises:
        RepLoRAError: A tensor is offloaded from memory, or has values that are not finite.
        PeftFormatError: PEFT cannot express the adapter. `replora.merge_and_unload` works for every method.
        OSError: The folder cannot be written; then nothing is left behind.
    """
    model = unwrap(model)
    adapters = adapters_of(model)
    _check_no_trained_parts(adapters)
    _check_targets_not_tied(model, adapters)
    _check_layers_suit_peft(model)
    if isinstance(adapters.config, RepLoRAConfig):
        config, tensors = _plain_lora(model, adapters, adapters.config, example)
    elif isinstance(adapters.config, PeftMethodConfig):
        config, tensors = _own_peft(model, adapters, adapters.config)
    else:
        raise PeftFormatError(
            f"PEFT has no adapter that could hold what {adapters.config.name!r} trains. {_MERGE_INSTEAD}"
        )
    _check_head_names(model, adapters)
    for head in adapters.also_train:
        state = model.get_submodule(head).state_dict()
        tensors |= {f"{PREFIX}{plain_name(f'{head}.{name}')}": tensor for name, tensor in state.items()}
    config.modules_to_save = list(adapters.also_train) or None
    config.base_model_name_or_path = base_model or base_name(model)
    config.inference_mode = True
    _say_task(config, model)

    card = model_card(
        describe(model),
        config.base_model_name_or_path,
        license,
        data,
        images,
        metrics or {},
        classes=classes,
        base_class=type(model).__name__,
        library="peft",
        usage=usage or _usage(model, config.base_model_name_or_path),
    )
    check_in_memory(tensors)
    if not force:
        check_finite(tensors, "The adapter")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with new_folder(folder, overwrite) as temporary:
        config.save_pretrained(str(temporary))
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
    return Path(folder)


_MERGE_INSTEAD = (
    "Fold it into the backbone instead: replora.merge_and_unload(model) from Python, replora-cli merge for a run."
)


@torch.no_grad()
def _plain_lora(
    model: nn.Module, adapters: Adapters, config: RepLoRAConfig, example: Any
) -> tuple[Any, dict[str, Tensor]]:
    import peft

    _check_weights_not_read(model, adapters, example)
    names = {
        id(module.linear): plain_name(name)
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
    }
    pairs = {names[id(u.owner)]: stacked(u.pieces(torch.float32), u.shape[0]) for u in adapters.updates}
    rank = max(len(A) for A, _ in pairs.values())
    tensors: dict[str, Tensor] = {}
    for name, (A, B) in pairs.items():
        missing = rank - len(A)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = F.pad(A, (0, 0, 0, missing))
        tensors[f"{PREFIX}{name}.lora_B.weight"] = F.pad(B, (0, missing))
    lora = peft.LoraConfig(
        r=rank,
        lora_alpha=_plain_number(config.scale * rank),
        lora_dropout=config.dropout,
        fan_in_fan_out=any(update.transposed for update in adapters.updates),
        target_modules=_shortest_targets(model, list(pairs), adapters.also_train),
    )
    return lora, tensors


def _plain_number(alpha: float) -> float:
    """As people write it: 8, not 8.0."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _check_weights_not_read(model: nn.Module, adapters: Adapters, example: Any) -> None:
    """PEFT adds its update to the output of a layer; where a model only reads the weight that would do nothing."""
    adapted = {id(m.linear) for m in model.modules() if isinstance(m, AdaptedLinear)}

    def unknown() -> list[str]:
        updates = [u for u in adapters.updates if id(u.owner) in adapted and not (u.called or u.read)]
        return [name for update in updates for name in update.names]

    ran = not unknown() or outputs_on_example(model, example) is not None
    if names := unknown():
        reached = f"No input so far has reached {listed(names, 4)}" if ran else "The model has not run yet"
        raise PeftFormatError(
            f"{reached}, so it is not known whether it calls its adapted layers, as PEFT needs. Pass an "
            "input that reaches them: replora.export_peft(..., example=...)."
        )
    read = [name for u in adapters.updates if id(u.owner) not in adapted or not u.called for name in u.names]
    if read:
        raise PeftFormatError(
            f"PEFT adapts the output of a layer that is called, but {type(model).__name__} reads the weight of "
            f"{listed(read, 4)} instead, so the update would silently do nothing there. {_MERGE_INSTEAD}"
        )


def _shortest_targets(model: nn.Module, wanted: list[str], also_train: tuple[str, ...]) -> list[str]:
    """Last parts of the names where they select exactly the wanted layers, as servers expect; else full names.

    PEFT's rule: an entry selects the modules of that name, and those whose name ends in "." + entry.
    """
    last = sorted({name.rpartition(".")[2] for name in wanted})
    outside = [name for name in _base_modules(model) if not any(f".{head}." in f".{name}." for head in also_train)]
    selected = {name for name in outside if name.rpartition(".")[2] in last}
    return last if selected == set(wanted) else wanted


def _base_modules(model: nn.Module) -> list[str]:
    """Names of the modules that the model has without its adapter."""
    added = ["replora"]
    adapted = {**{n: m for n, m in model.named_modules() if isinstance(m, AdaptedLinear)}, **peft_layers(model)}
    added += [f"{name}.{child}" for name, module in adapted.items() for child, _ in module.named_children()]
    inside = tuple(f"{name}." for name in added)
    names = [n for n, _ in model.named_modules() if n and n not in added and not n.startswith(inside)]
    return list(dict.fromkeys(map(plain_name, names)))


def _own_peft(model: nn.Module, adapters: Adapters, config: PeftMethodConfig) -> tuple[Any, dict[str, Tensor]]:
    """The adapter of a method that `peft` itself injected."""
    import peft

    transposed = any(is_conv1d(layer.get_base_layer()) for layer in peft_layers(model).values())
    own = peft_config(config, adapters.targets, transposed=transposed)
    head = set(adapters.head)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in head}
    model.peft_config = {"default": own}  # type: ignore[assignment]
    try:
        found = peft.get_peft_model_state_dict(model, state_dict=state, adapter_name="default")
    finally:
        del model.peft_config
    return own, {f"{PREFIX}{plain_name(name)}": tensor for name, tensor in found.items()}


def _check_no_trained_parts(adapters: Adapters) -> None:
    """PEFT saves its own matrices and whole modules, not single biases or norms that trained as well."""
    heads = tuple(f"{head}." for head in adapters.also_train)
    if single := [name for name in adapters.head if not name.startswith(heads)]:
        raise PeftFormatError(
            f"{len(single)} parameters of the backbone trained beside the adapter ({', '.join(single[:3])} ...), and "
            f"PEFT's file has no place for them. {_MERGE_INSTEAD}"
        )


def _check_targets_not_tied(model: nn.Module, adapters: Adapters) -> None:
    """PEFT merges into the frozen weight itself, and so into every module that shares it."""
    weights = [
        (", ".join(u.names), u.base if u.base_before_merge is None else u.base_before_merge, u.owner)
        for u in adapters.updates
    ]
    for name, layer in peft_layers(model).items() if isinstance(adapters.config, PeftMethodConfig) else ():
        frozen = adapters.aside[name].frozen if name in adapters.aside else layer.get_base_layer()._parameters
        weights.append((name, frozen["weight"], layer))
    for name, weight, module in weights:
        if elsewhere := shared_with(model, [cast(nn.Parameter, weight)], [module]):
            raise PeftFormatError(
                f"{name} shares its weight with {elsewhere[0]}, and a merge in PEFT would update that too. "
                f"{_MERGE_INSTEAD}"
            )


def _check_layers_suit_peft(model: nn.Module) -> None:
    """PEFT adapts a layer under the first of its names alone, and merges as if each were a plain linear layer."""
    for names in aliases_of(model).values():
        layer: Any = model.get_submodule(names[0])
        frozen = layer.linear if isinstance(layer, AdaptedLinear) else getattr(layer, "base_layer", None)
        if frozen is not None and names[1:]:
            raise PeftFormatError(
                f"{names[0]} is used as {', '.join(names[1:])} as well, and PEFT would adapt only the first of these. "
                f"{_MERGE_INSTEAD}"
            )
        if frozen is not None and not computes_by_weight(frozen):
            raise PeftFormatError(
                f"{names[0]} is a {type(frozen).__name__}, whose forward computes something else than x W^T + bias: a "
                "merge in PEFT would change the outputs. Use the adapter with this package (replora.save_adapter)."
            )


def _check_head_names(model: nn.Module, adapters: Adapters) -> None:
    """PEFT finds `modules_to_save` by the end of a name, and leaves layers alone that have the name on their way."""
    for head in adapters.also_train:
        others = [n for n in _base_modules(model) if n.endswith(head) and n not in adapters.also_train]
        inside = [t for t in adapters.targets if f".{head}." in f".{t.partition('[')[0]}."]
        if others or inside:
            raise PeftFormatError(
                f"PEFT would take {', '.join((others + inside)[:3])} for the head {head!r}, because it finds "
                f"modules_to_save by a part of their name. {_MERGE_INSTEAD}"
            )


def _say_task(config: Any, model: nn.Module) -> None:
    """What lets `AutoPeftModel...` build the base: the task of a text model, the class of another one."""
    name, own = type(model).__name__, getattr(model, "config", None)
    # PEFT's model of that kind takes text alone: not so Whisper, BLIP or LLaVA.
    of_text = getattr(model, "main_input_name", "") == "input_ids" and not hasattr(own, "vision_config")
    if name.endswith("ForCausalLM"):
        config.task_type = "CAUSAL_LM"
        return
    if name.endswith("ForConditionalGeneration") and of_text and getattr(own, "is_encoder_decoder", False):
        config.task_type = "SEQ_2_SEQ_LM"
        return
    config.auto_mapping = {"base_model_class": name, "parent_library": type(model).__module__}


def base_code(model: nn.Module, base: str | None) -> tuple[str, str]:
    """Code that builds the frozen model of a known library again: the import, and an expression."""
    name = type(model).__name__
    if known := architecture(model):
        classes = getattr(model, "num_classes", None)
        options = f"num_classes={'...' if classes is None else classes}"
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if size and tuple(size) != tuple(model.pretrained_cfg["input_size"][1:]):  # type: ignore[index]
            options += f", img_size={size[0]}"
        if base:
            return (
                "import timm",
                f"timm.create_model({_quoted(base.removeprefix('timm/'))}, pretrained=True, {options})",
            )
        return "import timm", f"timm.create_model({_quoted(known)}, {options})  # and the weights of its training"
    if base and hasattr(model, "save_pretrained"):
        classes = class_count(model) if is_of_labels(model) else None
        options = "" if classes is None else f", num_labels={classes}, ignore_mismatched_sizes=True"
        return f"from {library_of(model)} import {name}", f"{name}.from_pretrained({_quoted(base)}{options})"
    return "", f"...  # {' '.join((base or name).split())}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _usage(model: nn.Module, base: str | None) -> str:
    """Code that opens the folder."""
    needed, built = base_code(model, base)
    opened = 'model = PeftModel.from_pretrained(base, ".")  # this folder'
    return f"from peft import PeftModel\n{needed}\n\nbase = {built}\n{opened}"


def library_of(model: nn.Module) -> str:
    """Where the class of a transformers model is imported from: `transformers`, or a module of its own as VL-BART's."""
    module = type(model).__module__
    return "transformers" if module.startswith("transformers.") else module
