"""Fold the update into the frozen weights and take it out again; switch it off for a while. Always explicit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from replora.adapters.config import PeftMethodConfig, RepLoRAConfig
from replora.adapters.container import adapters_of
from replora.adapters.inject import remove
from replora.adapters.layer import refuse_unmergeable
from replora.adapters.peft.methods import merge_peft, peft_layers, unmerge_peft
from replora.adapters.weight_tying import declare_untied, shared_with
from replora.errors import RepLoRAError


def merge(model: nn.Module) -> nn.Module:
    """Add the update to the frozen weights, in float32 and rounded once; a second call changes nothing.

    The weights before are kept, so that `unmerge` restores them bit for bit. A merged model cannot train. A weight
    that is tied to another module (the output layer of a language model to its embedding) is untied while merged.

    Raises:
        RepLoRAError: A frozen weight is quantised, or offloaded from memory.
    """
    adapters = adapters_of(model)
    for update in adapters.updates:
        update.refuse_unmergeable()
    layers = peft_layers(model) if isinstance(adapters.config, PeftMethodConfig) else {}
    for name, layer in layers.items():
        refuse_unmergeable(layer.get_base_layer().weight, name)
    for update in adapters.updates:
        update.merge()
    if layers:
        merge_peft(model, adapters.untied)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Take the update out of the weights again (methods of `peft` do so within rounding)."""
    adapters = adapters_of(model)
    for update in adapters.updates:
        update.unmerge()
    if isinstance(adapters.config, PeftMethodConfig):
        unmerge_peft(model, adapters.untied)
    return model


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Fold the update in for good: the plain model, with no trace of the adapter, ready for its own `save_pretrained`.

    Other adapters that wait beside it are forgotten: they belong to the backbone as it was.

    Raises:
        RepLoRAError: As `merge` says; then nothing is changed.
    """
    adapters = adapters_of(model)
    merge(model)
    for update in adapters.updates:
        if update.base_before_merge is not None and shared_with(model, [update.base_before_merge], []):
            declare_untied(model)
        update.keep_merged()
    if adapters.untied:
        declare_untied(model)
    model.__dict__.pop("replora_shelf", None)
    return remove(model)


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """`with replora.merged(model): evaluate(model)` runs at the frozen backbone's own speed."""
    merge(model)
    try:
        yield model
    finally:
        unmerge(model)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """`with replora.disabled(model):` gives the frozen backbone (with the trained head, if there is one).

    Raises:
        RepLoRAError: The adapter is merged.
    """
    adapters = adapters_of(model)
    layers = peft_layers(model) if isinstance(adapters.config, PeftMethodConfig) else {}
    if any(update.merged for update in adapters.updates) or any(layer.merged for layer in layers.values()):
        raise RepLoRAError("The adapter is merged, so it cannot be switched off. Call replora.unmerge first.")
    before = [update.enabled for update in adapters.updates]
    for update in adapters.updates:
        update.enabled = False
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for update, enabled in zip(adapters.updates, before, strict=True):
            update.enabled = enabled
        for layer in layers.values():
            layer.enable_adapters(True)


def merges_exactly(model: nn.Module) -> bool:
    """Whether the adapter of `model` is not merged, but can be with no more than float32 rounding, and restored."""
    adapters = adapters_of(model)
    weights = [update.base for update in adapters.updates]
    return (
        isinstance(adapters.config, RepLoRAConfig)
        and not any(update.merged for update in adapters.updates)
        and all(type(w) in (nn.Parameter, Tensor) and not w.is_meta for w in weights)
        and all(w.dtype in (torch.float32, torch.float64) for w in weights)
    )
