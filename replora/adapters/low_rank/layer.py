"""The modules that stand where a frozen projection stood.

`AdaptedLinear` wraps an `nn.Linear`, or the `Conv1D` of transformers, which stores its weight transposed. Called, it
adds the low-rank update to the output. Some attention modules never call their projection but read its `weight`
(torchvision's Swin, timm's SwinV2, BEiT and EVA02, `nn.MultiheadAttention.out_proj`): therefore its `weight` *is* the
updated weight, and such modules are adapted exactly, at the cost of a call (`read_weight.py`).
`nn.MultiheadAttention` keeps q, k and v in parameters of its own; `AdaptedMultiheadAttention` updates those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook

from replora.adapters.low_rank.factors import FactorBank
from replora.adapters.low_rank.frozen_layers import (
    SetAside,
    check_finite,
    check_is_parameter,
    check_mergeable,
    take_base_names,
)
from replora.adapters.low_rank.ops import (
    Piece,
    add_update_to_output,
    add_update_to_weight,
    autocast_dtype,
    compute_dtype,
    updated_linear,
)
from replora.adapters.low_rank.read_weight import is_transformed, read_weight
from replora.adapters.low_rank.threads import Switch


class Interleaved(NamedTuple):
    """Of every `period` rows those from `first` to `last` - 1: the queries of each head in a fused projection."""

    first: int
    last: int
    period: int


Rows = tuple[int, int] | Interleaved


def row_count(rows: Rows, outputs: int) -> int:
    """How many of `outputs` rows they are."""
    first, last, period = _repeated(rows, outputs)
    return outputs // period * (last - first)


def rows_of(weight: Tensor, rows: Rows | None) -> Tensor:
    """A view of those rows (out, ...), as (periods, rows in each, ...)."""
    first, last, period = _repeated(rows, len(weight))
    return weight.view(-1, period, *weight.shape[1:])[:, first:last]


def stacked(pieces: Sequence[tuple[Tensor, Tensor, Rows | None]], outputs: int) -> tuple[Tensor, Tensor]:
    """One A (sum of ranks, in) and B (out, sum of ranks) that are the same update as all pieces together."""
    spread = []
    for _, B, rows in pieces:
        first, last, period = _repeated(rows, outputs)
        spread.append(F.pad(B.view(-1, last - first, B.shape[1]), (0, 0, first, period - last)).flatten(0, 1))
    return torch.cat([A for A, _, _ in pieces]), torch.cat(spread, 1)


def _repeated(rows: Rows | None, outputs: int) -> Interleaved:
    return rows if isinstance(rows, Interleaved) else Interleaved(*(rows or (0, outputs)), outputs)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the linear layer of GPT-2 in transformers, whose weight is (in, out)."""
    # By name: transformers is not imported for it.
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """Whether `AdaptedLinear` can wrap a module."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def features(linear: Any) -> tuple[int, int]:
    """(in, out) of a linear layer."""
    return (linear.nx, linear.nf) if is_conv1d(linear) else (linear.in_features, linear.out_features)


class FactorView:
    """Where one target finds its A and B: a slot of one group in a bank, acting on some rows of a weight."""

    def __init__(self, bank: FactorBank, group: int, slot: int, rows: Rows | None) -> None:
        self.bank, self.group, self.slot, self.rows = bank, group, slot, rows

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """A and B in `dtype`, or in that of the bank."""
        A, B = self.bank.factors_of(self.group, self.slot, dtype)
        return A, B


class WeightUpdate:
    """The low-rank update of one frozen weight matrix of one module.

    Attributes:
        holder: What stands in the model: an `AdaptedLinear` or an `AdaptedMultiheadAttention`.
        transposed: Whether the weight is stored as (in, out).
        interleaved: Whether the rows of an update repeat for each head.
        enabled: Whether the update is added; False in a thread that is inside `disabled()`.
        aside: While the update is merged, what holds the frozen weight.
        called, read: Whether the module was called, or its weight read by other code, since injection.
    """

    def __init__(
        self,
        holder: nn.Module,
        attribute: str,
        names: list[str],
        views: list[FactorView],
        scale: float,
        dropout: float,
        switch: Switch,
    ) -> None:
        self.holder, self.attribute, self.names = holder, attribute, names
        self.views, self.scale, self.dropout = views, scale, dropout
        self.switch = switch
        self.transposed = is_conv1d(self.owner)
        self.interleaved = any(isinstance(view.rows, Interleaved) for view in views)
        self.called = self.read = False
        self.aside: SetAside | None = None

    @property
    def owner(self) -> nn.Module:
        """The frozen module that stands there now: a program may have replaced it, as quantization does."""
        return self.holder._modules.get("linear") or self.holder

    @property
    def enabled(self) -> bool:
        return self.switch.on

    @property
    def base(self) -> Tensor:
        """The frozen weight as it is stored, which holds the update while it is merged.

        Raises:
            RepLoRAError: The module has been replaced by one without such a parameter.
        """
        weight = self.owner._parameters.get(self.attribute)
        if weight is None:
            check_is_parameter(weight, self.owner, ", ".join(self.names))
        return cast(Tensor, weight)

    @property
    def base_before_merge(self) -> nn.Parameter | None:
        """The frozen weight while the update is merged, else None."""
        return self.aside.frozen[self.attribute] if self.aside is not None else None

    @property
    def merged(self) -> bool:
        return self.aside is not None

    def pieces(self, dtype: torch.dtype | None = None) -> list[Piece]:
        """The updates of the weight's rows; a single one of all rows where some are interleaved."""
        pieces = [(*view.factors(dtype), view.rows) for view in self.views]
        if self.interleaved:
            return [Piece(*stacked(pieces, self.shape[0]), None)]
        return [Piece(A, B, cast(tuple[int, int] | None, rows)) for A, B, rows in pieces]

    def turned(self, weight: Tensor) -> Tensor:
        """A view of the frozen weight as (out, in), or of such a one as it is stored."""
        return weight.T if self.transposed else weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the frozen weight."""
        inputs, outputs = features(self.owner) if is_linear(self.owner) else self.base.shape[::-1]
        return outputs, inputs

    def on_call(self, linear: nn.Module, x: Tensor, training: bool) -> Tensor:
        """The output of the frozen `linear` for input `x`, updated."""
        if not torch.compiler.is_compiling():
            self.called = True
        output: Tensor = self.switch.steadily(lambda: self._call(linear, x, training))
        return output

    def _call(self, linear: nn.Module, x: Tensor, training: bool) -> Tensor:
        if self.merged or not self.enabled:
            return linear(x)  # type: ignore[no-any-return]
        pieces = self.pieces(compute_dtype(x))
        dropping = training and self.dropout > 0
        if not dropping and acts_by_weight_and_bias(linear, x):
            return updated_linear(x, self.turned(self.base), cast(Tensor | None, linear.bias), pieces, self.scale)
        return add_update_to_output(linear(x), F.dropout(x, self.dropout, training), pieces, self.scale)

    def on_weight(self) -> Tensor:
        """The weight as other code should see it: updated."""
        if not torch.compiler.is_compiling():
            self.read = True
        weight: Tensor = self.switch.steadily(self._weight)
        return weight

    def _weight(self) -> Tensor:
        if self.merged or not self.enabled:
            return self.base
        self.check_mergeable()
        frozen = self.turned(self.base)
        if self._may_stand_in():
            return read_weight(frozen, self.pieces, self.scale)
        return self.turned(add_update_to_weight(frozen, self.pieces(), self.scale))

    def _may_stand_in(self) -> bool:
        """Whether the weight is read to train, and by the model itself: other code may keep what it reads."""
        return (
            torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not is_transformed()
            and not self.transposed
            and not self.base.requires_grad
            and type(self.base) in (nn.Parameter, Tensor)
            and all(view.bank.is_running for view in self.views)
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Put the updated weight, computed in float32 and rounded once, in the place of the frozen one.

        The frozen parameter itself is kept aside, so another module that is tied to it does not see the update.
        """
        if self.merged:
            return
        self.check_mergeable()
        pieces = [Piece(A.float(), B.float(), rows) for A, B, rows in self.pieces()]
        merged = self.turned(add_update_to_weight(self.turned(self.base.float()), pieces, self.scale)).to(
            self.base.dtype
        )
        self.aside = SetAside(self.owner, {self.attribute: cast(nn.Parameter, self.base)})
        self.owner._parameters[self.attribute] = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Put the frozen weight back, bit for bit."""
        if self.aside is not None:
            self.aside.put_back()
        self.aside = None

    def keep_merged(self) -> None:
        """Let the merged weight be the module's own from now on. A pass that is still in this layer adds nothing."""
        if self.aside is not None:
            self.aside.drop()

    def check_finite(self) -> None:
        """Refuse a merged weight with NaN or infinity, where the frozen one has none.

        Raises:
            RepLoRAError: It has.
        """
        if self.base_before_merge is not None:
            check_finite(self.base, self.base_before_merge, ", ".join(self.names))

    def check_mergeable(self) -> None:
        """As the function of this name, for the frozen weight."""
        check_mergeable(self.base, ", ".join(self.names))


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus its update: y = W0 x + bias + scale * B A dropout(x), (..., in) to (..., out)."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.training = linear.training
        self.updates: list[WeightUpdate] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.updates[0].on_call(self.linear, x, self.training)

    @property
    def weight(self) -> Tensor:
        return self.updates[0].on_weight()

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.linear.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        take_base_names(state_dict, prefix, "linear")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def in_features(self) -> int:
        return features(self.linear)[0]

    @property
    def out_features(self) -> int:
        return features(self.linear)[1]


def acts_by_weight_and_bias(linear: nn.Module, x: Tensor) -> bool:
    """Whether calling the frozen `linear` is no more than x W0^T + bias, so that a faster operator may do it instead.

    Not so for subclasses (quantized layers), for hooks (a user's, or those that bring offloaded weights), for weights
    that are shared out among processes, where weight or bias train, and under tracing, the transforms of `torch.func`
    or differentiation in forward mode.
    """
    weight, bias = cast(Tensor, linear.weight), cast(Tensor | None, linear.bias)
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return (
        (type(linear) is nn.Linear or is_conv1d(linear))
        and "forward" not in linear.__dict__
        and not any(hooks)
        and not has_any_global_hook()  # type: ignore[no-untyped-call]
        and type(weight) in (nn.Parameter, Tensor)
        and (weight.dtype == compute_dtype(x) or autocast_dtype(x.device.type) is not None)
        and not (weight.requires_grad or (bias is not None and bias.requires_grad))
        and not is_transformed()
    )


class AdaptedMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose input projections are updated wherever they are read.

    An existing module becomes one by a change of its class, the one exception to wrapping by composition: other code
    reads the parameters of an attention module by name (`nn.TransformerEncoderLayer` does), and state-dict keys stay.
    """

    updates: list[WeightUpdate]

    def _adapted(self, attribute: str) -> Tensor | None:
        updates: Sequence[WeightUpdate] = self.__dict__.get("updates", ())  # none if it was just taken out
        for update in updates:
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
