"""Methods of a transformers model which need to know of its adapter: of generation, saving and its vocabulary."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

import replora
from replora.adapters.config import BitFitConfig, FullConfig
from replora.adapters.low_rank.layer import AdaptedLinear
from replora.adapters.wrappers import plain_name
from replora.errors import RepLoRAError

ADAPTER_FILE = "adapter.safetensors"  # beside the files of `save_pretrained`


class Method:
    """A method of one model, in place of its class's or of one that a program has put there."""

    name: ClassVar[str]

    def __init__(self, model: nn.Module, adapters: Any) -> None:
        self.model, self.adapters = model, adapters
        self.replaced = {self.name: model.__dict__[self.name]} if self.name in model.__dict__ else {}

    @property
    def own(self) -> Any:
        """What it stands in place of."""
        return self.replaced.get(self.name) or getattr(type(self.model), self.name).__get__(self.model)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.own)

    def arguments(self, *args: Any, **options: Any) -> dict[str, Any]:
        """The arguments of a call by name, those of `**kwargs` among them."""
        given = dict(self.__signature__.bind(*args, **options).arguments)
        for name, parameter in self.__signature__.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return given


class Generate(Method):
    """`generate`, in all passes of which the factors are produced once."""

    name = "generate"

    def __call__(self, *args: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for bank in self.adapters.factor_banks():
                stack.enter_context(bank.keeping())
            return self.own(*args, **options)


class SavePretrained(Method):
    """`save_pretrained`: the frozen weights (and trained heads) under their own names, and the adapter beside them.

    So `from_pretrained` gives the backbone, `replora.load_adapter` of `adapter.safetensors` the adapter. The state has
    the adapter's tensors too, for a program that loads it back into the adapted model, as transformers' Trainer does.
    That loads by the names in the model, so the file has these, not older ones that `from_pretrained` would translate.
    What trains the backbone's own parameters is saved with them, and has no file of its own.
    """

    name = "save_pretrained"

    def __call__(
        self, save_directory: str | os.PathLike[str], *args: Any, state_dict: Any = None, **options: Any
    ) -> Any:
        state = base_names(self.model, self.model.state_dict() if state_dict is None else state_dict)
        if "save_original_format" in inspect.signature(self.own).parameters:
            options.setdefault("save_original_format", False)
        result = self.own(save_directory, *args, state_dict=state, **options)
        apart = not isinstance(self.adapters.config, FullConfig | BitFitConfig)
        if apart and (args[0] if args else options.get("is_main_process", True)):
            replora.save_adapter(self.model, Path(save_directory) / ADAPTER_FILE, force=True)
        return result


class TieWeights(Method):
    """`tie_weights`, which sees the frozen layers: the parameters that it shares are theirs."""

    name = "tie_weights"

    def __call__(self, *args: Any, **options: Any) -> Any:
        wrapped = [
            (name, self.model.get_submodule(name), f"{name}.{inside}") for name, inside in _adapted_layers(self.model)
        ]
        asides = [*self.adapters.aside.values(), *(u.aside for u in self.adapters.updates if u.aside is not None)]
        with self.adapters.lock, ExitStack() as stack:
            for aside in asides:
                stack.enter_context(aside.shown())
            for name, layer, inside in wrapped:
                stack.callback(self.model.set_submodule, name, layer)
                self.model.set_submodule(name, self.model.get_submodule(inside))
            return self.own(*args, **options)


class ResizeTokenEmbeddings(Method):
    """`resize_token_embeddings`, which cannot change the shape of an adapted layer."""

    name = "resize_token_embeddings"

    def __call__(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **options: Any
    ) -> Any:
        adapted = {name for name, _ in _adapted_layers(self.model)}
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        name = next((name for name, module in self.model.named_modules() if module is head), "")
        if name not in adapted:
            return self.own(new_num_tokens, pad_to_multiple_of, *args, **options)
        table: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        size = len(table.weight) if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != len(table.weight):
            raise RepLoRAError(
                f"{name} is adapted, so the vocabulary cannot change from {len(table.weight)} to {size} tokens. Call "
                "resize_token_embeddings before replora.inject."
            )
        return table


_METHODS: tuple[type[Method], ...] = (Generate, SavePretrained, TieWeights, ResizeTokenEmbeddings)


def base_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of the adapted `model`, its frozen tensors under the names that they have in the plain one."""
    inner = {f"{plain_name(name)}.": attribute for name, attribute in _adapted_layers(model)}
    renamed = {}
    for key, tensor in state.items():
        name = plain_name(key)
        parent, _, last = name.rpartition(".")
        layer, _, inside = parent.rpartition(".")
        own = inner.get(f"{layer}.") == inside
        renamed[f"{layer}.{last}" if own else name] = tensor
    return renamed


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state that a plain model has, or that an adapted one would have without its adapter."""
    state = model.state_dict()
    layers = tuple(f"{plain_name(name)}." for name, _ in _adapted_layers(model))
    added = ("replora.", *layers) if hasattr(model, "replora") else layers
    pairs = zip(state.items(), base_names(model, state), strict=True)
    # Inside of an adapted layer only the frozen tensors have other names in the plain model.
    return {name: t for (key, t), name in pairs if not plain_name(key).startswith(added) or name != plain_name(key)}


def _adapted_layers(model: nn.Module) -> list[tuple[str, str]]:
    """Name of each wrapped layer, and of its attribute that holds the frozen one."""
    return [
        (name, "linear" if isinstance(module, AdaptedLinear) else "base_layer")
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, AdaptedLinear) or hasattr(module, "base_layer")
    ]


def replace_methods(model: nn.Module, adapters: Any, methods: Sequence[type[Method]] = _METHODS) -> None:
    """Let these methods of the model know of the adapter."""
    for method in methods:
        if callable(getattr(model, method.name, None)):
            setattr(model, method.name, method(model, adapters))


def restore_methods(model: nn.Module) -> None:
    """Undo `replace_methods`."""
    for name, own in list(model.__dict__.items()):
        if isinstance(own, Method):
            del model.__dict__[name]
            model.__dict__ |= own.replaced
