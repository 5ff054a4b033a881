"""What a frozen layer must be like to be adapted, to be merged into, and to let gradients through."""

from __future__ import annotations

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
    """Refuse a weight that is no parameter of its own, because other tensors give it anew in each pass.

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
