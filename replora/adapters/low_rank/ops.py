r"""How an update W0 + s B A is applied: the plain reference, and beside it the fast operator with the same result.

A *piece* is one low-rank update: A (rank, in), B (rows, rank) and the output rows it acts on (None for all of them).

**The fast operator**, `updated_linear`, computes y = x W^T + bias with W = W0 + s B A. Its backward pass never forms
the gradient of W (out x in), which training does not need, and nothing is kept for it but the input and references to
W0, A and B. With g the gradient of y, and summing over the n tokens (rows of x and g):

    u = g B    (n, rank)         dA = s u^T x        dB = g^T (s x A^T)        dx = g W = g W0 + s u A

**Two orders.** W can be *formed* (then one product with x gives all of y), or the update can be *added* to x W0^T
through the narrow middle. Either way the extra arithmetic is small, and what counts is how many numbers are moved
between memory and processor. With k inputs, m outputs of which M have an update, and n tokens, leaving out terms in
the rank:

    |          | form W                                             | add the update                       |
    |----------|----------------------------------------------------|--------------------------------------|
    | forward  | copy W0, read and write M of its rows: 2 k (m + M) | read x, write and read y: n (k + 2m) |
    | backward | the same once more: 2 k (m + M)                    | write and read dx: 2 n k             |

so W is formed where there are many tokens for its size. Measured on one core at k = 768, m = 2304, M = 1536, n = 3152
(ViT-B/16, 16 images) in float32: forming takes 0.8 ms, adding 1.8 ms forward and 0.6 ms backward, beside 52 ms for
x W0^T.

**Rounding.** The update is small beside W0, above all early in training. In 16 bits it would vanish in two places, and
is kept from both. Weights that are held in 16 bits are never formed: what is less than half the spacing of their
numbers would change none of them. (Under autocast W is formed from a 32-bit W0 and rounded once, as autocast rounds
every weight.) And the update is not added to a rounded x W0^T: it is computed first, and the large product is
accumulated on top of it, so that the sum is rounded once. An update of a thousandth of W0 arrives whole on average that
way, and by a third to a half too small if it is added to a bfloat16 output (`tests/adapters/test_ops.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Rows = tuple[int, int]


class Piece(NamedTuple):
    """One low-rank update of a weight matrix."""

    A: Tensor
    B: Tensor
    rows: Rows | None


# --- the plain reference


def add_update_to_output(y: Tensor, x: Tensor, pieces: list[Piece], scale: float) -> Tensor:
    """y + scale * x A^T B^T on the rows of each piece.

    Args:
        y: Output of the frozen layer, (..., out). Changed in place where a piece has rows of its own.
        x: Input of the layer after dropout, (..., in).
        pieces: The updates, in any floating dtype; they are computed in the dtype and on the device of `x`.
        scale: alpha / rank.
    """
    for A, B, rows in pieces:
        update = (F.linear(F.linear(x, A.to(x)), B.to(x)) * scale).to(y.dtype)
        if rows is None:
            y = y + update
        else:
            y[..., rows[0] : rows[1]] += update
    return y


def add_update_to_weight(weight: Tensor, pieces: list[Piece], scale: float) -> Tensor:
    """weight + scale * B A on the rows of each piece, (out, in): a new tensor, through which gradients flow."""
    updated = weight.clone()
    for A, B, rows in pieces:
        first, last = rows or (0, len(weight))
        updated[first:last] += (scale * (B @ A)).to(weight)
    return updated


# --- the fast operator


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer computes for input `x`: that of autocast where it is on, else that of `x`."""
    if x.dtype == torch.float64:  # autocast leaves it alone
        return x.dtype
    return autocast_dtype(x.device.type) or x.dtype


def autocast_dtype(device: str) -> torch.dtype | None:
    """That of autocast where it is on. Some devices have none at all, as `meta`, and must not be asked for it."""
    if _has_autocast(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast off, on a device that has it."""
    if _has_autocast(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _has_autocast(device: str) -> bool:
    """Whether a device has autocast; what torch compiles for has it, and in 2.10 it cannot compile the question."""
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)


def updated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, pieces: list[Piece], scale: float) -> Tensor:
    """x (W0 + scale * B A)^T + bias, (..., in) to (..., out): the reference's result, up to rounding.

    Args:
        x: Input, (..., in).
        weight: The frozen W0, (out, in). It gets no gradient.
        bias: The frozen bias, (out,), or None. It gets no gradient.
        pieces: The updates, each in the dtype `compute_dtype(x)`; their rows must not overlap.
        scale: alpha / rank.
    """
    rows = tuple(piece.rows or (0, len(weight)) for piece in pieces)
    factors = [factor for piece in pieces for factor in (piece.A, piece.B)]
    y: Tensor = _UpdatedLinear.apply(x.to(compute_dtype(x)), weight, bias, scale, rows, *factors)
    return y


class _UpdatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, rows: Sequence[Rows], *factors: Tensor
    ) -> Tensor:
        ctx.scale, ctx.rows = scale, rows
        ctx.save_for_backward(x if any(ctx.needs_input_grad[5:]) else None, weight, *factors)
        tokens = x.reshape(-1, x.shape[-1])  # (n, in)
        A, B = factors[::2], factors[1::2]
        if _forming_moves_less(len(tokens), weight, rows, backward=False):
            return F.linear(x, _formed_weight(weight, rows, A, B, scale, x.dtype), bias)
        z = tokens @ _scaled(_stacked(A), scale).T  # s x A^T of every piece, (n, sum of ranks)
        B_T = _spread(B, rows, len(weight)).T
        y = z @ B_T if bias is None else torch.addmm(bias.to(z.dtype), z, B_T)
        return y.addmm_(tokens, weight.to(z.dtype).T).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        A, B = factors[::2], factors[1::2]
        with without_autocast(gradient.device.type):
            g = gradient.reshape(-1, gradient.shape[-1])  # (n, out)
            u = _stacked([g[:, first:last] @ b for (first, last), b in zip(ctx.rows, B, strict=True)], dim=1)
            dx: Tensor | None = None
            dfactors: list[Tensor | None] = [None] * len(factors)
            sA = _scaled(_stacked(A), ctx.scale)  # (sum of ranks, in)
            if ctx.needs_input_grad[0]:
                # The order by addition can itself be differentiated, should a second derivative be asked for.
                if _forming_moves_less(len(g), weight, ctx.rows, backward=True) and not torch.is_grad_enabled():
                    dx = g @ _formed_weight(weight, ctx.rows, A, B, ctx.scale, g.dtype)
                else:
                    dx = (u @ sA).addmm_(g, weight.to(g.dtype))
                dx = dx.view(*gradient.shape[:-1], weight.shape[1])
            if x is not None:
                tokens = x.reshape(-1, x.shape[-1])
                ranks = [len(a) for a in A]
                dA = _split(_scaled(u.T @ tokens, ctx.scale), ranks)
                z = _split(tokens @ sA.T, ranks, dim=1)
                # As (z^T g)^T, which is more than twice as fast on a CPU as g^T z.
                dB = [(z_.T @ g[:, first:last]).T for (first, last), z_ in zip(ctx.rows, z, strict=True)]
                dfactors = [d for pair in zip(dA, dB, strict=True) for d in pair]
        return dx, None, None, None, None, *dfactors


def _forming_moves_less(tokens: int, weight: Tensor, rows: Sequence[Rows], *, backward: bool) -> bool:
    """Whether to form the updated weight; the count of numbers moved is explained at the top of this file."""
    if weight.itemsize < 4:
        return False
    outputs, inputs = weight.shape
    updated = sum(last - first for first, last in rows)
    added = 2 * inputs if backward else inputs + 2 * outputs
    return 2 * inputs * (outputs + updated) < tokens * added


def _formed_weight(
    weight: Tensor, rows: Sequence[Rows], A: Sequence[Tensor], B: Sequence[Tensor], scale: float, dtype: torch.dtype
) -> Tensor:
    """W0 + scale * B A in `dtype`, rounded once where that is narrower than the weight's."""
    formed = weight.to(dtype, copy=True)
    for (first, last), a, b in zip(rows, A, B, strict=True):
        if dtype == weight.dtype:
            formed[first:last].addmm_(b, a, alpha=scale)
        else:
            formed[first:last].copy_(weight[first:last].add(b @ a, alpha=scale))
    return formed


def _spread(B: Sequence[Tensor], rows: Sequence[Rows], outputs: int) -> Tensor:
    """The matrix (out, sum of ranks) that has each piece at its rows and in the columns of its rank, else zeros."""
    if len(B) == 1 and rows[0] == (0, outputs):
        return B[0]
    spread = B[0].new_zeros(outputs, sum(b.shape[1] for b in B))
    for (first, last), b, columns in zip(rows, B, _split(spread, [b.shape[1] for b in B], dim=1), strict=True):
        columns[first:last].copy_(b)
    return spread


def _stacked(pieces: Sequence[Tensor], dim: int = 0) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces), dim)


def _split(stacked: Tensor, ranks: Sequence[int], dim: int = 0) -> Sequence[Tensor]:
    """The part of each piece."""
    return (stacked,) if len(ranks) == 1 else torch.split(stacked, list(ranks), dim)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else tensor * scale
