"""How an update W0 + s * B A is applied: the plain reference. A faster operator takes the same arguments.

A *piece* is one low-rank update: A (rank, in), B (rows, rank) and the output rows it acts on (None for all of them).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Piece(NamedTuple):
    """One low-rank update of a weight matrix."""

    A: Tensor
    B: Tensor
    rows: tuple[int, int] | None


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
