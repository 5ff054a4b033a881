"""Fold the update into the frozen weights and take it out again; switch it off for a while. Always explicit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from replora.adapters.config import BitFitConfig, FullConfig, PeftMethodConfig, RepLoRAConfig
from replora.adapters.container import Adapters, adapters_of
from replora.adapters.inject import check_merged_in_place, remove
from replora.adapters.low_rank.frozen_layers import check_is_parameter, check_merge_keeps_outputs, check_mergeable
from replora.adapters.peft_methods import MULTIPLYING, merge_peft, peft_layers, unmerge_peft
from replora.adapters.weight_tying import declare_untied, shared_with
from replora.adapters.wrappers import unwrap
from replora.errors import RepLoRAError, check_arguments


@check_arguments
def merge(model: nn.Module, *, force: bool = False) -> nn.Module:
    """Add the update to the frozen weights, in float32 and rounded once; a second call changes nothing.

    The weights before are kept, so that `unmerge` restores them bit for bit. A merged model cannot train. A weight
    that is tied to another module (the output layer of a language model to its embedding) is untied while merged. The
    state dict of a merged model has the frozen weights, and none can be loaded into it.

    Args:
        model: A model with an adapter.
        force: Merge even if the sums are not finite.

    Raises:
        RepLoRAError: A frozen weight is quantized, or offloaded from memory; a layer is of a class that computes
            something else than a linear layer; a sum is not finite (the training diverged or a 16-bit weight
            overflows); or the adapter is switched off by `disabled`. Then nothing is changed.
    """
    adapters = adapters_of(model)
    with adapters.lock:
        _merge(unwrap(model), adapters, force)
    return model


@torch.inference_mode(False)  # merged weights may stay in the model
def _merge(model: nn.Module, adapters: Adapters, force: bool) -> None:
    """Merge all layers or none."""
    if adapters.merged:
        return
    if adapters.switch.disabled:
        raise RepLoRAError("The adapter is switched off by replora.disabled. Leave that block before merging.")
    for update in adapters.updates:
        update.check_mergeable()
        check_merge_keeps_outputs(update.owner, ", ".join(update.names))
    layers = peft_layers(model) if isinstance(adapters.config, PeftMethodConfig) else {}
    for name, layer in layers.items():
        check_is_parameter(layer.get_base_layer().weight, layer.get_base_layer(), name)
        check_mergeable(layer.get_base_layer().weight, name)
        if cast(PeftMethodConfig, adapters.config).method not in MULTIPLYING:
            check_merge_keeps_outputs(layer.get_base_layer(), name)
    try:
        with adapters.switch.changing():
            for update in adapters.updates:
                update.merge()
                if not force:
                    update.check_finite()
            if layers:
                merge_peft(model, adapters.aside, force)
    except BaseException:  # an interrupt as well
        _unmerge(model, adapters)
        raise


@check_arguments
def unmerge(model: nn.Module) -> nn.Module:
    """Take the update out of the weights again, bit for bit.

    Raises:
        RepLoRAError: A block of `replora.merged` is open, in this thread or another.
    """
    adapters = adapters_of(model)
    with adapters.lock:
        if adapters.blocks.count:
            raise RepLoRAError("The adapter is merged by `with replora.merged(model)`. Leave that block to unmerge it.")
        _unmerge(unwrap(model), adapters)
    return model


@torch.inference_mode(False)
def _unmerge(model: nn.Module, adapters: Adapters) -> None:
    check_merged_in_place(model, adapters)
    with adapters.switch.changing():
        for update in adapters.updates:
            update.unmerge()
        if isinstance(adapters.config, PeftMethodConfig):
            unmerge_peft(model, adapters.aside)


@check_arguments
def merge_and_unload(model: nn.Module, *, force: bool = False) -> nn.Module:
    """Fold the update in for good: the plain model, with no trace of the adapter, ready for its own `save_pretrained`.

    Other adapters that wait beside it are forgotten: they belong to the backbone as it was. Passes of other threads go
    on, with the same outputs.

    Args:
        model: A model with an adapter.
        force: Whether to merge an adapter with infinite or NaN values, as in `merge`.

    Raises:
        RepLoRAError: As `merge` says; then nothing is changed.
    """
    adapters = adapters_of(model)
    inner = unwrap(model)
    with adapters.lock:
        _merge(inner, adapters, force)
        frozen = [p for aside in adapters.aside.values() for p in aside.frozen.values()]
        frozen += [update.base_before_merge for update in adapters.updates if update.base_before_merge is not None]
        if shared_with(inner, frozen, []):
            declare_untied(inner)
        for update in adapters.updates:
            update.keep_merged()
        adapters.updates.clear()
        for aside in adapters.aside.values():
            aside.drop()
        adapters.aside.clear()
        inner.__dict__.pop("replora_registry", None)
        return remove(model)


@check_arguments
@contextmanager
def merged(model: nn.Module, *, force: bool = False) -> Iterator[nn.Module]:
    """`with replora.merged(model): evaluate(model)` runs at the frozen backbone's own speed.

    Blocks may stand one inside another and be open in several threads at once: the first merges and the last unmerges,
    unless `merge` was called before. While one is open, the model is merged in all threads.

    Args:
        model: A model with an adapter.
        force: Whether to merge an adapter with infinite or NaN values, as in `merge`.

    Raises:
        RepLoRAError: As `merge` says.
    """
    adapters = adapters_of(model)
    blocks = adapters.blocks
    entered = False
    try:
        with adapters.lock:
            if not blocks.count:
                blocks.stays = adapters.merged
            _merge(unwrap(model), adapters, force)
            blocks.count += 1
            entered = True
        yield model
    finally:
        with adapters.lock:
            blocks.count -= entered
            if not blocks.count and not blocks.stays:
                _unmerge(unwrap(model), adapters)


@check_arguments
@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """`with replora.disabled(model):` gives the frozen backbone (with the trained head, if there is one).

    Blocks may stand one inside another. Other threads go on with the adapter.

    Raises:
        RepLoRAError: The adapter is merged, or the backbone's own parameters have trained.
    """
    adapters = adapters_of(model)
    _check_separable(adapters)
    layers = peft_layers(model) if isinstance(adapters.config, PeftMethodConfig) else {}
    with adapters.lock:
        if adapters.merged or any(layer.merged for layer in layers.values()):
            raise RepLoRAError("The adapter is merged, so it cannot be switched off. Call replora.unmerge first.")
        adapters.switch.enter()
    try:
        yield model
    finally:
        with adapters.lock:
            adapters.switch.leave()


def _check_separable(adapters: Adapters) -> None:
    """Refuse what trains parameters of the backbone itself: the frozen ones are gone.

    Raises:
        RepLoRAError: It does.
    """
    heads = tuple(f"{head}." for head in adapters.also_train)
    parts = [name for name in adapters.head if not name.startswith(heads)]
    if isinstance(adapters.config, FullConfig | BitFitConfig) or parts:
        what = f"the parameters {parts[0]} ..." if parts else "parameters"
        raise RepLoRAError(
            f"{adapters.config.name!r} has trained {what} of the backbone itself, so there is no update to switch off. "
            "Load the backbone a second time."
        )


def merges_exactly(model: nn.Module) -> bool:
    """Whether the adapter of `model` is not merged, but can be with no more than float32 rounding, and restored."""
    adapters = adapters_of(model)
    weights = [update.base for update in adapters.updates]
    return (
        isinstance(adapters.config, RepLoRAConfig)
        and not adapters.merged
        and all(bool(p.isfinite().all()) for p in adapters.banks.parameters())
        and all(type(w) in (nn.Parameter, Tensor) and not w.is_meta for w in weights)
        and all(w.dtype in (torch.float32, torch.float64) for w in weights)
    )
