"""The modules that stand where a frozen projection stood.

`AdaptedLinear` wraps an `nn.Linear`. Called, it adds the low-rank update to the output. Some attention modules never
call their projection but read its `weight` (torchvision's Swin, timm's SwinV2, BEiT and EVA02,
`nn.MultiheadAttention.out_proj`): therefore its `weight` *is* the updated weight, and such modules are adapted exactly.
`nn.MultiheadAttention` keeps q, k and v in parameters of its own; `AdaptedMultiheadAttention` updates those.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replora.adapters.factors import FactorBank
from replora.adapters.ops import Piece, add_update_to_output, add_update_to_weight
from replora.errors import RepLoRAError


class FactorView:
    """Where one target finds its A and B: a slot of one group in a bank, acting on some rows of a weight."""

    def __init__(self, bank: FactorBank, group: int, slot: int, rows: tuple[int, int] | None) -> None:
        self.bank, self.group, self.slot, self.rows = bank, group, slot, rows

    def piece(self) -> Piece:
        return Piece(*self.bank.factors_of(self.group, self.slot), self.rows)


class WeightUpdate:
    """The low-rank update of one frozen weight matrix of one module.

    Attributes:
        enabled: Whether the update acts; off inside `disabled()`.
        base_before_merge: The frozen weight while the update is merged, else None.
        called, read: Whether the module was called, or its weight read by other code, since injection.
    """

    def __init__(
        self, owner: nn.Module, attribute: str, names: list[str], views: list[FactorView], scale: float, dropout: float
    ) -> None:
        self.owner, self.attribute, self.names = owner, attribute, names
        self.views, self.scale, self.dropout = views, scale, dropout
        self.enabled = True
        self.called = self.read = False
        self.base_before_merge: nn.Parameter | None = None

    @property
    def base(self) -> Tensor:
        """The frozen weight (out, in), which holds the update while it is merged."""
        return cast(Tensor, self.owner._parameters[self.attribute])

    @property
    def merged(self) -> bool:
        return self.base_before_merge is not None

    def pieces(self) -> list[Piece]:
        return [view.piece() for view in self.views]

    def on_output(self, y: Tensor, x: Tensor, training: bool) -> Tensor:
        """The frozen layer's output `y` for input `x`, updated."""
        if not torch.compiler.is_compiling():
            self.called = True
        if self.merged or not self.enabled:
            return y
        return add_update_to_output(y, F.dropout(x, self.dropout, training), self.pieces(), self.scale)

    def on_weight(self) -> Tensor:
        """The weight as other code should see it: updated."""
        if not torch.compiler.is_compiling():
            self.read = True
        if self.merged or not self.enabled:
            return self.base
        self._refuse_unmergeable()
        return add_update_to_weight(self.base, self.pieces(), self.scale)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the updated weight, computed in float32 and rounded once, in the place of the frozen one.

        The frozen parameter itself is kept aside, so another module that is tied to it does not see the update.
        """
        if self.merged:
            return
        self._refuse_unmergeable()
        pieces = [Piece(A.float(), B.float(), rows) for A, B, rows in self.pieces()]
        merged = add_update_to_weight(self.base.float(), pieces, self.scale).to(self.base.dtype)
        self.base_before_merge = cast(nn.Parameter, self.base)
        self.owner._parameters[self.attribute] = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Put the frozen weight back, bit for bit."""
        if self.base_before_merge is not None:
            self.owner._parameters[self.attribute] = self.base_before_merge
            self.base_before_merge = None

    def keep_merged(self) -> None:
        """Forget the frozen weight: the merged one is the module's own from now on."""
        self.base_before_merge = None

    def _refuse_unmergeable(self) -> None:
        if not self.base.is_floating_point():
            raise RepLoRAError(
                f"The frozen weight of {', '.join(self.names)} is quantised ({self.base.dtype}), and an update cannot "
                "be added to it without rounding. Load the backbone in 16 or 32 bit to merge."
            )
        if self.base.is_meta:
            raise RepLoRAError(
                f"The frozen weight of {', '.join(self.names)} is not in memory (a device map offloads it, or the "
                "model has shapes only), so no update can be added to it. Load the whole backbone on the CPU to merge."
            )


class AdaptedLinear(nn.Module):
    """A frozen `nn.Linear` plus its update: y = W0 x + bias + scale * B A dropout(x), (..., in) to (..., out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.training = linear.training
        self.updates: list[WeightUpdate] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.updates[0].on_output(self.linear(x), x, self.training)

    @property
    def weight(self) -> Tensor:
        return self.updates[0].on_weight()

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    @property
    def in_features(self) -> int:
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        return self.linear.out_features


class AdaptedMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose input projections are updated wherever they are read.

    An existing module becomes one by a change of its class, the one exception to wrapping by composition: other code
    reads the parameters of an attention module by name (`nn.TransformerEncoderLayer` does), and state-dict keys stay.
    """

    updates: list[WeightUpdate]

    def _adapted(self, attribute: str) -> Tensor | None:
        for update in self.updates:
            if update.attribute == attribute:
                return update.on_weight()
        return self._parameters[attribute]

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        return self._adapted("in_proj_weight")

    @property
    def q_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        return self._adapted("q_proj_weight")

    @property
    def k_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        return self._adapted("k_proj_weight")

    @property
    def v_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        return self._adapted("v_proj_weight")
