"""Several adapters side by side on one backbone: one acts, the others wait, and a switch copies no weight.

    replora.load_adapter(model, "birds.safetensors", name="birds")
    replora.load_adapter(model, "cars.safetensors", name="cars")      # acts now
    replora.set_adapter(model, "birds")

Each may have its own method, rank, targets and head (of its own number of classes). What waits is no part of the model:
not of its `state_dict`, its parameters or its device; it follows to the model's device when it is set.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from replora.adapters.config import BitFitConfig, FullConfig
from replora.adapters.container import Adapters, adapters_of, device_of, train_only
from replora.adapters.inject import remove
from replora.adapters.labels import match_classes
from replora.adapters.low_rank.layer import AdaptedLinear, AdaptedMultiheadAttention, WeightUpdate
from replora.adapters.peft_methods import peft_layers
from replora.adapters.weight_tying import refuse_tied_heads
from replora.adapters.wrappers import plain_name, unwrap
from replora.errors import RepLoRAError, nearest

DEFAULT_NAME = "default"  # of an adapter that was injected, not loaded under a name


@dataclass
class Waiting:
    """An adapter that is taken off its model.

    Attributes:
        adapters: What `inject` added.
        layers: Name -> what stands there while the adapter acts: a wrapped layer or a head.
        attention: Name of an `nn.MultiheadAttention` -> its updates.
    """

    adapters: Adapters
    layers: dict[str, nn.Module] = field(default_factory=dict)
    attention: dict[str, list[WeightUpdate]] = field(default_factory=dict)


@dataclass
class Shelf:
    """The adapters of one model, kept as its attribute `replora_shelf`.

    Attributes:
        active: Name of the one that acts, None if none does.
        waiting: The others.
        heads: The backbone's own modules in the places of heads, as they were before any adapter was loaded.
    """

    active: str | None
    waiting: dict[str, Waiting] = field(default_factory=dict)
    heads: dict[str, nn.Module] = field(default_factory=dict)


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on `model`, the acting one first."""
    shelf = shelf_of(model)
    return [*([shelf.active] if shelf.active else []), *shelf.waiting]


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Let the adapter called `name` act, and return the model.

    Raises:
        RepLoRAError: There is no such adapter, or the acting one is merged.
    """
    shelf = shelf_of(model)
    if name == shelf.active:
        return model
    if name not in shelf.waiting:
        raise RepLoRAError(f"There is no adapter {name!r} on this model. {nearest(name, adapter_names(model))}")
    take_off(unwrap(model))
    _put_on(unwrap(model), shelf.waiting.pop(name))
    shelf.active = name
    return model


def delete_adapter(model: nn.Module, name: str) -> None:
    """Forget an adapter that waits.

    Raises:
        RepLoRAError: It acts, or there is none of that name.
    """
    shelf = shelf_of(model)
    if name == shelf.active:
        raise RepLoRAError(f"The adapter {name!r} acts. Set another one first, or call replora.remove(model).")
    if name not in shelf.waiting:
        raise RepLoRAError(f"There is no adapter {name!r} on this model. {nearest(name, adapter_names(model))}")
    del shelf.waiting[name]


def shelf_of(model: nn.Module) -> Shelf:
    """The model's shelf, made at the first use."""
    model = unwrap(model)
    shelf = model.__dict__.get("replora_shelf")
    present = isinstance(getattr(model, "replora", None), Adapters)
    if shelf is None:
        shelf = model.__dict__["replora_shelf"] = Shelf(DEFAULT_NAME if present else None)
    if not present:
        shelf.active = None  # it was removed
    elif shelf.active is None:
        shelf.active = DEFAULT_NAME  # it was injected
    return shelf


def head_states(state: Mapping[str, Tensor], heads: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Of a state by names in the model, the part of each head by names in the head."""
    return {h: {key.removeprefix(f"{h}."): t for key, t in state.items() if key.startswith(f"{h}.")} for h in heads}


@contextmanager
def added(model: nn.Module, name: str, heads: dict[str, dict[str, Tensor]]) -> Iterator[None]:
    """Take off the acting adapter and give the model fresh heads; inside, another one is injected, which is `name`.

    After an error everything is as it was.

    Args:
        model: The model.
        name: Of the adapter to come.
        heads: For each module that it trains as a whole, its state: the head becomes one of these shapes.

    Raises:
        RepLoRAError: The name is taken, the acting adapter is merged or changes the backbone's own parameters, or a
            head cannot take these shapes or is tied to a frozen module.
    """
    shelf = shelf_of(model)
    before = shelf.active
    if name in adapter_names(model):
        raise RepLoRAError(f"There is an adapter {name!r} on this model already. Choose another name, or delete it.")
    fresh = {head: _shaped(model, shelf, head, state) for head, state in heads.items()}
    refuse_tied_heads(model, heads)
    take_off(model)
    for head, module in fresh.items():
        shelf.heads.setdefault(head, model.get_submodule(head))
        model.set_submodule(head, module)
    try:
        yield
        shelf.active = name
    except BaseException:
        if isinstance(getattr(model, "replora", None), Adapters):
            remove(model)
        shelf.active = None
        for head in fresh:
            model.set_submodule(head, shelf.heads[head])
        match_classes(model, fresh)
        if before is not None:
            set_adapter(model, before)
        raise


def take_off(model: nn.Module) -> None:
    """Move the acting adapter, if there is one, to the shelf; the backbone is as it was before it."""
    shelf = shelf_of(model)
    if shelf.active is None:
        return
    adapters = adapters_of(model)
    _refuse_inseparable(adapters)
    waiting = Waiting(adapters)
    adapters.unhook(model)
    layers = peft_layers(model) if adapters.peft_called else {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedLinear):
            waiting.layers[name] = module
            model.set_submodule(name, module.linear)
        elif type(module) is AdaptedMultiheadAttention:
            waiting.attention[name] = module.updates
            del module.updates
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
        elif name in layers:
            waiting.layers[name] = module
            model.set_submodule(name, layers[name].get_base_layer())
    for head in adapters.also_train:
        waiting.layers[head] = model.get_submodule(head)
        own = shelf.heads.setdefault(head, waiting.layers[head])
        model.set_submodule(head, _like(own, waiting.layers[head], dtype=True))
    match_classes(model, adapters.also_train)
    del model.replora
    train_only(model, adapters.required_grad)
    shelf.waiting[shelf.active] = waiting
    shelf.active = None


def _put_on(model: nn.Module, waiting: Waiting) -> None:
    adapters = waiting.adapters
    adapters.required_grad = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    for name, module in waiting.layers.items():
        # A head takes the data type of what stood there; factors keep theirs.
        model.set_submodule(name, _like(module, model.get_submodule(name), dtype=name in adapters.also_train))
        module.train(model.training)
    match_classes(model, adapters.also_train)
    for name, updates in waiting.attention.items():
        attention: Any = model.get_submodule(name)
        attention.__class__ = AdaptedMultiheadAttention
        attention.updates = updates
    if adapters.updates:
        adapters.banks.to(device_of(adapters.updates[0]))
    model.replora = adapters.train(model.training)
    train_only(model, set(adapters.trained))
    adapters.hook_onto(model)


def _like(module: nn.Module, there: nn.Module, dtype: bool) -> nn.Module:
    """`module` on the device of `there`, and with `dtype` of its type: the model may have moved in the meantime."""
    like = next(there.parameters(), None)
    if like is None:
        return module
    return module.to(like.device, like.dtype) if dtype and like.is_floating_point() else module.to(like.device)


def _refuse_inseparable(adapters: Adapters) -> None:
    if isinstance(adapters.config, FullConfig | BitFitConfig):
        raise RepLoRAError(
            f"{adapters.config.name!r} trains the backbone's own parameters, so no other adapter can stand beside it. "
            "Load the backbone a second time."
        )
    if adapters.merged:
        raise RepLoRAError("The acting adapter is merged into the backbone. Call replora.unmerge first.")


def _shaped(model: nn.Module, shelf: Shelf, head: str, state: dict[str, Tensor]) -> nn.Module:
    """A copy of the backbone's module `head` whose tensors have the shapes of `state`."""
    try:
        module = copy.deepcopy(shelf.heads.get(head) or model.get_submodule(head))
    except AttributeError as error:
        known = [name for name, _ in model.named_modules() if name]
        raise RepLoRAError(
            f"The adapter trains {head!r}, which {type(model).__name__} does not have. {nearest(head, known)}"
        ) from error
    own = module.state_dict()
    if {name: tensor.shape for name, tensor in own.items()} == {name: tensor.shape for name, tensor in state.items()}:
        return module
    if type(module) is nn.Linear and own.keys() == state.keys() and state["weight"].shape[1] == module.in_features:
        like = module.weight
        return nn.Linear(
            module.in_features, len(state["weight"]), module.bias is not None, device=like.device, dtype=like.dtype
        )
    raise RepLoRAError(
        f"The adapter's {head!r} has other tensors than {type(model).__name__}'s. Build the model with the head that "
        "the adapter was trained with."
    )
