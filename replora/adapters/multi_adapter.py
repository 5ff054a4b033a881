"""Several adapters on one backbone: one is active, the others are kept, and switching copies no weights.

    replora.load_adapter(model, "birds.safetensors", name="birds")
    replora.load_adapter(model, "cars.safetensors", name="cars")      # is active now
    replora.set_adapter(model, "birds")

Each may have its own method, rank, targets and head (with its own number of classes). An inactive adapter is not part
of the model's `state_dict` or parameters. It moves to the model's device when `set_adapter` makes it active.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from replora.adapters.config import BitFitConfig, FullConfig
from replora.adapters.container import Adapters, adapters_of, device_of, leave_inference_mode, train_only
from replora.adapters.inject import remove
from replora.adapters.labels import LAST_LAYERS, match_classes
from replora.adapters.low_rank.layer import AdaptedLinear, AdaptedMultiheadAttention, WeightUpdate
from replora.adapters.peft_lora.generators import Reparameterized
from replora.adapters.peft_methods import peft_layers
from replora.adapters.weight_tying import check_not_tied
from replora.adapters.wrappers import plain_name, unwrap
from replora.errors import RepLoRAError, check_arguments, nearest

DEFAULT_NAME = "default"  # of an adapter that was injected, not loaded under a name


@dataclass
class InactiveAdapter:
    """An adapter that is detached from its model.

    Attributes:
        adapters: What `inject` added.
        layers: Name -> the module in that place while the adapter is active: a wrapped layer or a head.
        attention: Name of an `nn.MultiheadAttention` -> its updates.
    """

    adapters: Adapters
    layers: dict[str, nn.Module] = field(default_factory=dict)
    attention: dict[str, list[WeightUpdate]] = field(default_factory=dict)


@dataclass
class AdapterRegistry:
    """The adapters of one model, kept as its attribute `replora_registry`.

    Attributes:
        active: Name of the active adapter, None if there is none.
        inactive: The other adapters by name.
        heads: The backbone's own modules in the places of heads, as they were before any adapter was loaded.
    """

    active: str | None
    inactive: dict[str, InactiveAdapter] = field(default_factory=dict)
    heads: dict[str, nn.Module] = field(default_factory=dict)


@check_arguments
def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on `model`, the active one first."""
    registry = registry_of(model)
    return [*([registry.active] if registry.active else []), *registry.inactive]


@check_arguments
@torch.inference_mode(False)
def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Make the adapter called `name` the active one and return the model.

    Raises:
        RepLoRAError: There is no such adapter, or the active one is merged or switched off.
    """
    registry = registry_of(model)
    if name == registry.active:
        return model
    if name not in registry.inactive:
        raise RepLoRAError(f"There is no adapter {name!r} on this model. {nearest(name, adapter_names(model))}")
    detach(unwrap(model))
    _attach(unwrap(model), registry.inactive.pop(name))
    registry.active = name
    return model


@check_arguments
def delete_adapter(model: nn.Module, name: str) -> None:
    """Delete an inactive adapter.

    Raises:
        RepLoRAError: It is the active one, or there is none of that name.
    """
    registry = registry_of(model)
    if name == registry.active:
        raise RepLoRAError(f"The adapter {name!r} is active. Set another one first, or call replora.remove(model).")
    if name not in registry.inactive:
        raise RepLoRAError(f"There is no adapter {name!r} on this model. {nearest(name, adapter_names(model))}")
    del registry.inactive[name]


def registry_of(model: nn.Module) -> AdapterRegistry:
    """The model's registry, created at the first use."""
    model = unwrap(model)
    registry = model.__dict__.get("replora_registry")
    carried = getattr(model, "replora", None)
    present = isinstance(carried, Adapters | Reparameterized) and adapters_of(model) is carried
    if registry is None:
        registry = model.__dict__["replora_registry"] = AdapterRegistry(DEFAULT_NAME if present else None)
    if not present:
        registry.active = None  # it was removed
    elif registry.active is None:
        registry.active = DEFAULT_NAME  # it was injected
    return registry


def head_states(state: Mapping[str, Tensor], heads: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Of a state by names in the model, the part of each head by names in the head."""
    return {h: {key.removeprefix(f"{h}."): t for key, t in state.items() if key.startswith(f"{h}.")} for h in heads}


@contextmanager
def added(model: nn.Module, name: str, heads: dict[str, dict[str, Tensor]]) -> Iterator[None]:
    """Detach the active adapter and give the model new heads; the block injects another adapter, which becomes `name`.

    After an error everything is as it was.

    Args:
        model: The model.
        name: Name of the new adapter.
        heads: State of each module that the new adapter trains as a whole; the head takes these shapes.

    Raises:
        RepLoRAError: The name is taken, the active adapter is merged, switched off or changes the backbone's own
            parameters, or a head cannot take these shapes or is tied to a frozen module.
    """
    registry = registry_of(model)
    before = registry.active
    if name in adapter_names(model):
        raise RepLoRAError(f"There is an adapter {name!r} on this model already. Choose another name, or delete it.")
    leave_inference_mode(model)
    fresh = _shaped(model, registry, heads)
    check_not_tied(model, heads)
    detach(model)
    for head, module in fresh.items():
        registry.heads.setdefault(head, model.get_submodule(head))
        model.set_submodule(head, module)
    try:
        yield
        registry.active = name
    except BaseException:
        if isinstance(getattr(model, "replora", None), Adapters):
            remove(model)
        registry.active = None
        for head in fresh:
            model.set_submodule(head, registry.heads[head])
        match_classes(model, fresh)
        if before is not None:
            set_adapter(model, before)
        raise


def detach(model: nn.Module) -> None:
    """Detach the active adapter, if there is one, and leave the backbone as it was before that adapter."""
    registry = registry_of(model)
    if registry.active is None:
        return
    adapters = adapters_of(model)
    _check_separable(adapters)
    inactive = InactiveAdapter(adapters)
    adapters.unhook(model)
    layers = peft_layers(model, aliases=True) if adapters.peft_called else {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedLinear):
            inactive.layers[name] = module
            model.set_submodule(name, module.linear)
        elif type(module) is AdaptedMultiheadAttention:
            inactive.attention[name] = module.updates
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
            del module.updates
        elif name in layers:
            inactive.layers[name] = module
            model.set_submodule(name, layers[name].get_base_layer())
    for head in adapters.also_train:
        inactive.layers[head] = model.get_submodule(head)
        own = registry.heads.setdefault(head, inactive.layers[head])
        model.set_submodule(head, _like(own, inactive.layers[head], dtype=True))
    match_classes(model, adapters.also_train)
    del model.replora
    train_only(model, adapters.required_grad)
    registry.inactive[registry.active] = inactive
    registry.active = None


def _attach(model: nn.Module, inactive: InactiveAdapter) -> None:
    adapters = inactive.adapters
    adapters.required_grad = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    for name, module in inactive.layers.items():
        there = model.get_submodule(name)
        if isinstance(module, AdaptedLinear):
            module.linear = there  # it may have been replaced in the meantime
        elif name not in adapters.also_train:
            module.base_layer = there
        # A head takes the data type of what stood there; factors keep theirs.
        model.set_submodule(name, _like(module, there, dtype=name in adapters.also_train))
        module.train(model.training)
    match_classes(model, adapters.also_train)
    for name, updates in inactive.attention.items():
        attention: Any = model.get_submodule(name)
        attention.__class__ = AdaptedMultiheadAttention
        attention.updates = updates
    if adapters.updates:
        adapters.banks.to(device_of(adapters.updates[0]))
    if adapters.generators is not None:
        adapters.generators.follow_layers()
    model.replora = adapters.train(model.training)
    train_only(model, set(adapters.trained))
    adapters.hook_onto(model)


def _like(module: nn.Module, there: nn.Module, dtype: bool) -> nn.Module:
    """`module` on the device of `there`, and with `dtype` of its type: the model may have moved in the meantime."""
    like = next(there.parameters(), None)
    if like is None:
        return module
    return module.to(like.device, like.dtype) if dtype and like.is_floating_point() else module.to(like.device)


def _check_separable(adapters: Adapters) -> None:
    if isinstance(adapters.config, FullConfig | BitFitConfig):
        raise RepLoRAError(
            f"{adapters.config.name!r} trains the backbone's own parameters, so no other adapter can stand beside it. "
            "Load the backbone a second time."
        )
    if adapters.merged:
        raise RepLoRAError("The active adapter is merged into the backbone. Call replora.unmerge first.")
    if adapters.switch.disabled:
        raise RepLoRAError("The active adapter is switched off by replora.disabled. Leave that block first.")


def _shaped(
    model: nn.Module, registry: AdapterRegistry, heads: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, nn.Module]:
    """Copies of the backbone's modules `heads` whose tensors have the shapes of their states.

    Weights that these modules share are shared by their copies, and a state has them under the first of their names.
    """
    own: dict[str, nn.Module] = {}
    for head in heads:
        try:
            own[head] = registry.heads[head] if head in registry.heads else model.get_submodule(head)
        except AttributeError as error:
            known = [name for name, _ in model.named_modules() if name]
            raise RepLoRAError(
                f"The adapter trains {head!r}, which {type(model).__name__} does not have. {nearest(head, known)}"
            ) from error
    copies: dict[str, nn.Module] = copy.deepcopy(own)
    given = {id(t) for h, module in copies.items() for name, t in _tensors(module).items() if name in heads[h]}
    return {head: _with_shapes(model, head, copies[head], state, given) for head, state in heads.items()}


def _tensors(head: nn.Module) -> dict[str, Tensor]:
    """The state of a head, which may be compiled by itself."""
    return {plain_name(name): tensor for name, tensor in head.state_dict(keep_vars=True).items()}


def _with_shapes(
    model: nn.Module, head: str, module: nn.Module, state: Mapping[str, Tensor], given: Container[int]
) -> nn.Module:
    """The module, a copy, with as many outputs as the state has."""
    own = {n: t for n, t in _tensors(module).items() if n in state or id(t) not in given}
    if {name: tensor.shape for name, tensor in own.items()} == {name: tensor.shape for name, tensor in state.items()}:
        return module
    if own.keys() == state.keys():
        for name, layer in module.named_modules():
            if isinstance(layer, LAST_LAYERS):
                _set_outputs(layer, state[plain_name(f"{name}.weight".lstrip("."))].shape)
        if all(tensor.shape == state[name].shape for name, tensor in _tensors(module).items()):
            return module
    raise RepLoRAError(
        f"The adapter's {head!r} has other tensors than {type(model).__name__}'s. Build the model with the head that "
        "the adapter was trained with."
    )


def _set_outputs(layer: Any, shape: Sequence[int]) -> None:
    """Give a layer a weight of another number of outputs, and a bias; a state brings their values."""
    if layer.weight.shape == shape or layer.weight.shape[1:] != shape[1:]:
        return
    for name, parameter in layer.named_parameters(recurse=False):
        layer._parameters[name] = nn.Parameter(parameter.new_empty(shape[0], *parameter.shape[1:]))
    layer.reset_parameters()  # with zeros no target would affect the output
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", shape[0])
