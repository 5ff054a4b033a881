r"""The updated weight W0 + s B A as code sees it that reads a layer's `weight` instead of calling the layer.

Formed in the graph, the weight would have a gradient of its size (out x in): a product over all tokens, which training
does not need. Therefore what is read is a stand-in without numbers. In `F.linear`, which nearly all such code uses, it
becomes the fast operator. Any other function gets the formed weight, whose gradient dW is passed on and not kept:

    dA = s B^T dW        dB = s dW A^T
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from replora.adapters.low_rank.ops import (
    Piece,
    Rows,
    add_update_to_weight,
    autocast_dtype,
    compute_dtype,
    updated_linear,
    without_autocast,
)

# Gives the updates of a weight in a dtype, or in their own for None.
Pieces = Callable[[torch.dtype | None], list[Piece]]

# What the stand-in says about itself.
_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad_fn", "is_leaf", "is_cuda", "is_cpu")
_DESCRIPTIONS = {getattr(Tensor, name).__get__ for name in _ATTRIBUTES} | {Tensor.size, Tensor.dim, Tensor.numel}


def read_weight(frozen: Tensor, pieces: Pieces, scale: float) -> Tensor:
    """The stand-in of frozen + scale * B A, (out, in). Gradients flow through it to A and B.

    Args:
        frozen: W0, (out, in). It gets no gradient.
        pieces: Function that gives the updates, whose rows must not overlap.
        scale: alpha / rank.
    """
    make = torch.Tensor._make_wrapper_subclass
    weight = make(ReadWeight, frozen.shape, dtype=frozen.dtype, device=frozen.device)
    weight.frozen, weight.pieces, weight.scale = frozen, pieces, scale
    return _through_factors(lambda: weight, frozen, pieces(None), scale)


class ReadWeight(Tensor):
    """The stand-in. Once it has been formed, all its uses take the formed weight: code may have changed that in place.

    Attributes:
        frozen, pieces, scale: The arguments of `read_weight`.
        formed: The formed weight, or None before it is needed.
    """

    frozen: Tensor
    pieces: Pieces
    scale: float
    formed: Tensor | None = None

    def form(self) -> Tensor:
        """A plain tensor with the same value and the same gradients."""
        if self.formed is None:
            with torch.enable_grad():  # the first that needs it may want none
                updates = self.pieces(None)
                self.formed = _through_factors(
                    lambda: add_update_to_weight(self.frozen, updates, self.scale), self.frozen, updates, self.scale
                )
        return self.formed

    @classmethod
    def __torch_function__(
        cls, function: Any, kinds: Any, arguments: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if function in _DESCRIPTIONS:
            return super().__torch_function__(function, kinds, arguments, options)  # type: ignore[no-untyped-call]
        if function is F.linear and (y := _linear(*arguments, **options)) is not None:
            return y
        if function is F.multi_head_attention_forward:
            # It calls F.linear, but hands itself over where it is asked whether an argument is more than a tensor.
            inside = vars(F) | {"has_torch_function": lambda _: False}
            function = FunctionType(function.__code__, inside, argdefs=function.__defaults__)
            return function(*arguments, **options)
        return cls.__torch_dispatch__(function, kinds, arguments, options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, _kinds: Any, arguments: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """What code in C++ does with it."""
        arguments, options = pytree.tree_map_only(ReadWeight, ReadWeight.form, (tuple(arguments), options or {}))
        return function(*arguments, **options)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The output of the fast operator, or None where it does not give that of `F.linear` with all its gradients."""
    if (
        type(weight) is ReadWeight
        and weight.formed is None
        and type(input) in (Tensor, nn.Parameter)
        and type(bias) in (Tensor, nn.Parameter, type(None))
        and not input.is_nested
        and (weight.dtype == compute_dtype(input) or autocast_dtype(input.device.type) is not None)
        and not (bias is not None and bias.requires_grad)
        and not is_transformed()
    ):
        pieces = weight.pieces(compute_dtype(input))
        if input.is_contiguous():
            return updated_linear(input, weight.frozen, bias, pieces, weight.scale)
        # To transposed tokens torch adds the bias after the product. So do we: at the start the output has equal bits.
        y = updated_linear(input.contiguous(), weight.frozen, None, pieces, weight.scale)
        return y if bias is None else y + bias.to(y)
    return None


def is_transformed() -> bool:
    """Whether code runs that knows no autograd functions: a transform of `torch.func`, tracing, or forward mode."""
    known = torch.compiler.is_compiling() or not (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None  # by `torch.jit.trace`, or an export by it, as ONNX's
    )
    return not known or forward_ad._current_level >= 0


def _through_factors(make: Callable[[], Tensor], frozen: Tensor, pieces: list[Piece], scale: float) -> Tensor:
    """What `make` returns, with a gradient to the factors as of frozen + scale * B A."""
    rows = tuple(piece.rows or (0, len(frozen)) for piece in pieces)
    factors = [factor for piece in pieces for factor in (piece.A, piece.B)]
    return _ThroughFactors.apply(make, scale, rows, *factors)  # type: ignore[no-any-return]


class _ThroughFactors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Callable[[], Tensor], scale: float, rows: Sequence[Rows], *factors: Tensor) -> Tensor:
        ctx.scale, ctx.rows = scale, rows
        ctx.save_for_backward(*factors)
        return make()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factors = ctx.saved_tensors
        dfactors: list[Tensor] = []
        with without_autocast(gradient.device.type):
            for (first, last), A, B in zip(ctx.rows, factors[::2], factors[1::2], strict=True):
                dW = gradient[first:last].to(B.dtype) * ctx.scale
                dfactors += [B.T @ dW, dW @ A.T]
        return None, None, None, *dfactors
