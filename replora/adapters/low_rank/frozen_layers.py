"""Frozen layers: which can be adapted, merged into and differentiated, and where their weights are while merged."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from replora.errors import RepLoRAError

# Hook that computes a weight before each pass -> what undoes it.
_UNDO: dict[type, str] = {
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
    BasePruningMethod: "torch.nn.utils.prune.remove",
}


def check_adaptable(module: nn.Module, attribute: str, name: str) -> None:
    """Refuse a weight that is no parameter of its own, because each pass computes it from others.

    Args:
        module: The layer.
        attribute: Its weight's name.
        name: The layer's name in the model.

    Raises:
        RepLoRAError: It is such a weight.
    """
    if module._parameters.get(attribute) is not None:
        return
    what, remedy = _reparametrization(module, attribute)
    raise RepLoRAError(
        f"The {attribute} of {name} is computed in each pass by {what}, so there is no frozen parameter to adapt. Make "
        f"it one before replora.inject: {remedy}."
    )


def _reparametrization(module: nn.Module, attribute: str) -> tuple[str, str]:
    """What computes the weight, and the call that folds it into a parameter."""
    if parametrize.is_parametrized(module, attribute):
        kinds = (type(part).__name__.lstrip("_") for part in module.parametrizations[attribute])  # type: ignore[index]
        undo = "torch.nn.utils.parametrize.remove_parametrizations"
        return f"torch.nn.utils.parametrize ({', '.join(kinds)})", f"{undo}(module, {attribute!r})"
    for hook in module._forward_pre_hooks.values():
        for kind, undo in _UNDO.items():
            if isinstance(hook, kind):
                argument = "" if kind is WeightNorm and attribute == "weight" else f", {attribute!r}"
                return undo.replace("remove_", "").removesuffix(".remove"), f"{undo}(module{argument})"
    return "code of its own", f"module.{attribute} = torch.nn.Parameter(module.{attribute}.detach())"


def is_tensor_subclass(weight: Tensor) -> bool:
    """Whether a weight is one of the tensors that libraries define to hold quantized values, as torchao does."""
    return hasattr(weight, "__tensor_flatten__")


def computes_by_weight(layer: nn.Module) -> bool:
    """Whether calling a linear layer gives x W^T + bias: it may be a subclass that computes something else.

    Then an update of its weight is not the update of its output that has been trained.
    """
    if not isinstance(layer, nn.Linear) or type(layer).forward is nn.Linear.forward:
        return True
    weight = layer.weight
    x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        want = F.linear(x, weight, layer.bias)
        try:
            got = layer(x)
        except Exception:  # it wants another input than a linear layer
            return False
    tolerance = 0.02 * float(want.abs().max())
    return isinstance(got, Tensor) and got.shape == want.shape and torch.allclose(got, want, rtol=0, atol=tolerance)


def stops_gradients(model: nn.Module) -> str | None:
    """Name of a quantized linear layer that gives no gradient to its input, if the model has one."""
    asked: set[tuple[type, ...]] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or not is_tensor_subclass(layer.weight):
            continue
        if (kind := (type(layer), type(layer.weight))) in asked:
            continue
        asked.add(kind)
        x = torch.zeros(1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device, requires_grad=True)
        with torch.enable_grad():
            y = layer(x).sum()
            if not y.requires_grad or torch.autograd.grad(y, x, allow_unused=True)[0] is None:
                return str(name)
    return None


# What an update can be added to. Narrower floats (float8) hold scaled values and would round the update away.
MERGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_trainable(model: nn.Module, trained: Container[int]) -> None:
    """Refuse parameters that are to train but that no optimizer can change, because their values are quantized.

    Args:
        model: The model.
        trained: The identities of what is to train.

    Raises:
        RepLoRAError: There is such a parameter.
    """
    for name, parameter in model.named_parameters():
        if id(parameter) in trained and not _is_writable(parameter):
            kind = type(parameter).__name__ if is_tensor_subclass(parameter) else parameter.dtype
            raise RepLoRAError(
                f"{name} is quantized ({kind}), so it cannot train. Leave its module in 16 or 32 bit when you quantize "
                "the backbone (torchao's filter_fn, transformers' modules_to_not_convert or llm_int8_skip_modules)."
            )


@torch.no_grad()
def _is_writable(parameter: Tensor) -> bool:
    if parameter.dtype in MERGEABLE and not is_tensor_subclass(parameter):
        return True
    if not parameter.is_floating_point():
        return False
    try:
        parameter.detach().clone().mul_(1.0)  # as an optimizer does
    except (NotImplementedError, RuntimeError):
        return False
    return True


def check_is_parameter(weight: object, layer: nn.Module, name: str) -> None:
    """Refuse a frozen layer that was replaced after the injection by one whose weight is no parameter.

    Raises:
        RepLoRAError: It is such a layer.
    """
    if not isinstance(weight, Tensor):
        raise RepLoRAError(
            f"{name} has become a {type(layer).__module__}.{type(layer).__name__} since replora.inject, and its "
            "weight is no parameter that could be merged or written. Do that first and replace the layers afterwards: "
            "replora.merge_and_unload(model)."
        )


def check_mergeable(weight: Tensor, name: str) -> None:
    """Raise if nothing can be added to the frozen `weight` of the layers `name`.

    Raises:
        RepLoRAError: It is quantized, not in memory, or sharded.
    """
    if hasattr(weight, "device_mesh"):
        raise RepLoRAError(
            f"The frozen weight of {name} is sharded over processes, each of which holds a part. Merge in one process, "
            "from the saved adapter: replora-cli merge."
        )
    if weight.dtype not in MERGEABLE or is_tensor_subclass(weight):
        kind = type(weight).__name__ if is_tensor_subclass(weight) else weight.dtype
        raise RepLoRAError(
            f"The frozen weight of {name} is quantized ({kind}), and an update cannot be added to it without rounding. "
            "Load the backbone in 16 or 32 bit to merge."
        )
    if weight.is_meta:
        raise RepLoRAError(
            f"The frozen weight of {name} is not in memory (a device map offloads it, or the model has shapes only), "
            "so no update can be added to it. Load the whole backbone on the CPU to merge."
        )


def check_merge_keeps_outputs(layer: nn.Module, name: str) -> None:
    """Refuse to merge into a layer that computes something else from its weight than a linear layer does.

    Raises:
        RepLoRAError: It does.
    """
    if not computes_by_weight(layer):
        raise RepLoRAError(
            f"{name} is a {type(layer).__name__}, whose forward computes something else than x W^T + bias, so an "
            "updated weight would not give the outputs of the adapter. Use the adapter without merging it."
        )


def check_finite(merged: Tensor, frozen: Tensor, name: str) -> None:
    """Refuse a weight of the layers `name` that is not finite since it was merged.

    Raises:
        RepLoRAError: It is not, and the frozen one was.
    """
    if not bool(merged.isfinite().all()) and bool(frozen.isfinite().all()):
        raise RepLoRAError(
            f"The merged weight of {name} has values that are not finite. Either the training diverged, or the sum "
            f"does not fit into {str(merged.dtype).removeprefix('torch.')}: load the backbone in 32 bit then. "
            "force=True (--force true on the command line) merges all the same."
        )


class SetAside:
    """The frozen parameters of a module while others, which hold an update, stand in their place.

    State dicts have the frozen ones, so what is saved does not depend on merging. Nothing can be loaded meanwhile.
    """

    def __init__(self, owner: nn.Module, frozen: Mapping[str, nn.Parameter]) -> None:
        self.owner, self.frozen = owner, dict(frozen)
        hooked: Any = owner
        self._hooks = [
            hooked.register_state_dict_post_hook(partial(self._save_frozen)),
            hooked.register_load_state_dict_pre_hook(check_not_merged),
        ]

    def check_in_place(self, owner: nn.Module, name: str) -> None:
        """Refuse to unmerge the layer `name` if another module has taken the place of the merged one.

        Raises:
            RepLoRAError: It has: `owner` is another one.
        """
        if owner is not self.owner:
            raise RepLoRAError(
                f"{name} was replaced by a {type(owner).__name__} while the adapter was merged, and that one has no "
                "frozen weight to go back to. replora.merge_and_unload(model) keeps it as it is."
            )

    def put_back(self) -> None:
        """Put the frozen parameters back, bit for bit; they follow the device and dtype of what stands there."""
        for hook in self._hooks:
            hook.remove()
        for name, frozen in self.frozen.items():
            there = self.owner._parameters[name]
            if there is not None and (there.dtype, there.device) != (frozen.dtype, frozen.device):
                frozen.data = frozen.data.to(there.device, there.dtype)
            self.owner._parameters[name] = frozen

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the frozen parameters stand in their places, and may be replaced there."""
        there = {name: self.owner._parameters[name] for name in self.frozen}
        self.owner._parameters.update(self.frozen)
        try:
            yield
        finally:
            self.frozen = {name: cast(nn.Parameter, self.owner._parameters[name]) for name in there}
            self.owner._parameters.update(there)

    def drop(self) -> None:
        """Forget the frozen parameters: what stands there is the module's own from now on."""
        for hook in self._hooks:
            hook.remove()

    def _save_frozen(self, owner: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        for name, frozen in self.frozen.items():
            if f"{prefix}{name}" in state:
                graph = state[f"{prefix}{name}"] is owner._parameters[name]  # keep_vars=True
                state[f"{prefix}{name}"] = frozen if graph else frozen.detach()


def check_not_merged(*_hook_arguments: Any) -> None:
    """Refuse to load a state while the adapter is merged; a hook of `load_state_dict`.

    Raises:
        RepLoRAError: Always.
    """
    raise RepLoRAError("The adapter is merged into the backbone. Call replora.unmerge before loading another state.")


def take_base_names(state: dict[str, Any], prefix: str, inside: str) -> None:
    """Rename the tensors of a wrapped layer at `prefix` that have the plain model's names, to load them into it."""
    for key in ("weight", "bias"):
        if f"{prefix}{key}" in state and f"{prefix}{inside}.{key}" not in state:
            state[f"{prefix}{inside}.{key}"] = state.pop(f"{prefix}{key}")
