"""Two methods of a model, `generate` and `save_pretrained`, which need to know of its adapter."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

import replora
from replora.adapters.config import BitFitConfig, FullConfig
from replora.adapters.low_rank.layer import AdaptedLinear
from replora.adapters.wrappers import plain_name

if TYPE_CHECKING:
    from replora.adapters.container import Adapters

ADAPTER_FILE = "adapter.safetensors"  # beside the files of `save_pretrained`


class _Method:
    """A method of one model, in place of its class's or of one that a program has put there."""

    name: ClassVar[str]

    def __init__(self, model: nn.Module, adapters: Adapters) -> None:
        self.model, self.adapters = model, adapters
        self.replaced = {self.name: model.__dict__[self.name]} if self.name in model.__dict__ else {}

    @property
    def own(self) -> Any:
        """What it stands in place of."""
        return self.replaced.get(self.name) or getattr(type(self.model), self.name).__get__(self.model)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.own)


class Generate(_Method):
    """`generate`, in all passes of which the factors are produced once."""

    name = "generate"

    def __call__(self, *args: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for bank in self.adapters.factor_banks():
                stack.enter_context(bank.keeping())
            return self.own(*args, **options)


class SavePretrained(_Method):
    """`save_pretrained`: the frozen weights (and trained heads) under their own names, and the adapter beside them.

    So `from_pretrained` gives the backbone, `replora.load_adapter` of `adapter.safetensors` the adapter. The state has
    the adapter's tensors too, for a program that loads it back into the adapted model, as transformers' Trainer does.
    """

    name = "save_pretrained"

    def __call__(
        self, save_directory: str | os.PathLike[str], *args: Any, state_dict: Any = None, **options: Any
    ) -> Any:
        state = base_names(self.model, self.model.state_dict() if state_dict is None else state_dict)
        result = self.own(save_directory, *args, state_dict=state, **options)
        if args[0] if args else options.get("is_main_process", True):
            replora.save_adapter(self.model, Path(save_directory) / ADAPTER_FILE, force=True)
        return result


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


def _adapted_layers(model: nn.Module) -> list[tuple[str, str]]:
    """Name of each wrapped layer, and of its attribute that holds the frozen one."""
    return [
        (name, "linear" if isinstance(module, AdaptedLinear) else "base_layer")
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear) or hasattr(module, "base_layer")
    ]


def replace_methods(model: nn.Module, adapters: Adapters) -> None:
    """Let the model's `generate` and `save_pretrained` know of the adapter."""
    # What trains the backbone's own parameters is saved with them.
    apart = not isinstance(adapters.config, FullConfig | BitFitConfig)
    for method in (Generate, *((SavePretrained,) if apart else ())):
        if callable(getattr(model, method.name, None)):
            setattr(model, method.name, method(model, adapters))


def restore_methods(model: nn.Module) -> None:
    """Undo `replace_methods`."""
    for method in (Generate, SavePretrained):
        if isinstance(own := model.__dict__.get(method.name), _Method):
            del model.__dict__[method.name]
            model.__dict__ |= own.replaced
