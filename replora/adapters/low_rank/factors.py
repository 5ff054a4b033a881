r"""Where the low-rank factors A and B come from: pure maths, batched over all groups of one shape.

The update of a frozen weight W0 (out x in) is (alpha / r) B A with A (r x in) and B (out x r). A *group* is the set of
targets that share their structure, by default the query and the value projection of one attention module.

RepLoRA (paper Figure 1; symbols as in the project's method notes), for a group with diagonals a, b in R^r:

    H_A = s(diag(a) U_A + c_A)    (r x h)        A_t = H_A V_A,t        (r x in_t)     for each target t of the group
    H_B = s(diag(b) U_B + c_B)    (r x h)        B_t = (H_B V_B,t)^T    (out_t x r)

        diag(a) --[ U_A, c_A ]-- s --+--[ V_A,q ]--> A_q        diag(b) --[ U_B, c_B ]-- s --+--[ V_B,q ]--> B_q
                                     +--[ V_A,v ]--> A_v                                     +--[ V_B,v ]--> B_v

with s the activation (identity in the linear ablation). The MLP acts row by row on a diagonal matrix, so diag(a) U is
row i of U times a_i and costs nothing. Both factors are multiplied by h ** -scale_exponent.
V_B is 0 at the start, so the update is exactly 0; V_A is drawn such that A has the variance of LoRA's initialization
(kaiming_uniform with a = sqrt(5): 1 / (3 in)). The factors depend on parameters only, never on the input.

A bank makes one pair of factors for each of its *slots*. Each target of a group has a slot of its own, except under
`sharing: tied`: there the targets of equal shape have one slot in common, so A_q = A_v and B_q = B_v, and the gradient
of these factors is the sum over the targets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from replora.adapters.config import Activation, RepLoRAConfig
from replora.adapters.low_rank.ops import without_autocast
from replora.adapters.low_rank.threads import PerThread, in_autograd_thread, in_backward
from replora.errors import RepLoRAError

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "identity": lambda x: x,
}

# For each slot of the group, A (groups, rank, in) and B (groups, out, rank).
FactorPairs = list[tuple[Tensor, Tensor]]


class Produced:
    """The factors of every group, by group and in the dtypes that layers ask for: one conversion for all groups."""

    def __init__(self, pairs: FactorPairs) -> None:
        self.pairs = pairs
        self.with_gradients = torch.is_grad_enabled()
        self.by_group: dict[torch.dtype, list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]] = {}
        self.by_reader: dict[Any, Tensor] = {}  # what others made of them, for as long as they are valid

    def factors_of(self, group: int, slot: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) of one slot, in `dtype` or in their own."""
        dtype = dtype or self.pairs[0][0].dtype
        if dtype not in self.by_group:
            with torch.set_grad_enabled(self.with_gradients):  # the layer that asks first may want none
                self.by_group[dtype] = [(A.to(dtype).unbind(0), B.to(dtype).unbind(0)) for A, B in self.pairs]
        A_of, B_of = self.by_group[dtype][slot]
        return A_of[group], B_of[group]


class Pass(PerThread):
    """The factors that one thread has at hand.

    Attributes:
        running: Those of the forward pass that runs.
        last: Those of the last pass with gradients, for what runs its layers again.
        generating: How many calls of `generate` are open, one inside another.
        kept: Inside of `generate`, the factors of all its passes: no parameter changes between them.
    """

    running: Produced | None = None
    last: Produced | None = None
    generating = 0
    kept: Produced | None = None


class CompiledPass:
    """The same for passes that `torch.compile` reads as a whole: it cannot change what belongs to a thread."""

    running: Produced | None = None
    last: Produced | None = None

    def __reduce__(self) -> Any:
        return type(self), ()


class FactorBank(nn.Module, ABC):
    """The factors of all `groups` groups whose slots have the same `shapes`, one (in, out) pair per slot."""

    def __init__(self, groups: int, shapes: Sequence[tuple[int, int]], rank: int) -> None:
        super().__init__()
        self.groups, self.shapes, self.rank = groups, tuple(shapes), rank
        self._of_thread = Pass()
        self._compiled = CompiledPass()
        self._latest: Produced | None = None  # of the last pass with gradients in any thread
        self._reentrant = False  # whether a layer ran without gradients in a pass with them

    @abstractmethod
    def forward(self, group: int | None = None) -> FactorPairs:
        """The factors of every group, or of one `group` alone (then the first dimension is 1)."""

    @abstractmethod
    def last_matrices(self) -> list[nn.Parameter]:
        """For each slot the parameter (groups, ...) that B is linear in: B is 0 where it is."""

    @abstractmethod
    def assign(self, pairs: FactorPairs) -> None:
        """Change the parameters such that `forward()` gives `pairs`, up to rounding.

        Raises:
            RepLoRAError: No parameters of this bank give them.
        """

    def open(self) -> None:
        """Produce all factors for the forward pass that begins."""
        here = self._here
        if torch.is_grad_enabled():
            here.running = self._produce()
            here.last = self._latest = None if self._reentrant else here.running
        else:
            here.running = self._kept() or self._produce()

    def close(self) -> None:
        """The forward pass is over. Those with gradients stay for what a backward pass computes again."""
        self._here.running = None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Produce the factors once for all passes without gradients that this thread runs inside.

        Nowhere else do factors outlive a pass: parameters can be written to in ways that PyTorch does not count.
        """
        here = self._of_thread
        here.generating += 1
        try:
            yield
        finally:
            here.generating -= 1
            if not here.generating:
                here.kept = None

    def _kept(self) -> Produced | None:
        """The factors of the `generate` that this thread runs, if it runs one."""
        if _transformed() or not self._of_thread.generating:
            return None
        here = self._of_thread
        here.kept = here.kept or self._produce()
        return here.kept

    def running(self) -> Produced | None:
        """The factors of the forward pass that runs, where its layers may keep them: not for reentrant checkpointing.

        Of a pass that `torch.compile` reads there are none.
        """
        produced = None if torch.compiler.is_compiling() else self._of_thread.running
        return None if produced is None or (produced.with_gradients and not torch.is_grad_enabled()) else produced

    @property
    def is_running(self) -> bool:
        """Whether the code that asks belongs to a forward pass, or to what a backward pass computes again."""
        return _transformed() or self._of_thread.running is not None or in_backward()

    @property
    def _here(self) -> Pass | CompiledPass:
        return self._compiled if torch.compiler.is_compiling() else self._of_thread

    def factors_of(self, group: int, slot: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) of one slot, in `dtype`: those of the running pass if there is one.

        Gradient checkpointing runs layers again inside the backward pass. The usual kind does so for the tensors that
        they save, and they see the factors of the last pass. The reentrant kind runs a backward pass a block, and
        the graph that made all factors is good for only one: its layers get factors produced for the call. It shows by
        running layers without gradients in a pass with gradients; where a model does that for reasons of its own, it
        costs time and nothing else. A layer called outside of its model's forward pass gets factors of its own, too.

        Raises:
            RepLoRAError: Reentrant checkpointing in `DistributedDataParallel`, unless its graph is static.
        """
        here, with_gradients = self._here, torch.is_grad_enabled()
        produced = here.running
        if produced is None and here is self._compiled:
            produced = self._of_thread.running  # the pass is not compiled as a whole
        if produced is not None:
            if produced.with_gradients and not with_gradients:
                _check_no_reentrant_checkpoint_in_ddp()
                self._reentrant, here.last, self._latest = True, None, None
        elif in_backward():
            produced = self._latest if in_autograd_thread() else here.last
        else:
            here.last = self._latest = None  # what runs this layer again must not see the factors of an earlier pass
        if produced is None and not with_gradients:
            produced = self._kept()
        if produced is not None:
            return produced.factors_of(group, slot, dtype)
        with _unseen_by_checkpointing():
            return self._produce(group).factors_of(0, slot, dtype)

    def _produce(self, group: int | None = None) -> Produced:
        with without_autocast(next(self.parameters()).device.type):  # a small product: exact
            return Produced(self(group))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_latest": None}  # copies begin without a pass

    def deployed_count(self) -> int:
        """Numbers in A and B, once for each slot: what remains when training is over."""
        return self.groups * sum(self.rank * (n_in + n_out) for n_in, n_out in self.shapes)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Parameters that weight decay should leave alone, as it leaves biases alone."""
        return []


class FreeFactors(FactorBank):
    """Vanilla LoRA: A and B are parameters themselves."""

    def __init__(self, groups: int, shapes: Sequence[tuple[int, int]], rank: int, init: str = "zero") -> None:
        super().__init__(groups, shapes, rank)
        self.A = nn.ParameterList(torch.empty(groups, rank, n_in) for n_in, _ in shapes)
        self.B = nn.ParameterList(torch.zeros(groups, n_out, rank) for _, n_out in shapes)
        for matrix, (n_in, _) in zip(self.A, shapes, strict=True):
            nn.init.uniform_(matrix, -1 / math.sqrt(n_in), 1 / math.sqrt(n_in))  # kaiming_uniform with a = sqrt(5)
        if init == "normal002":
            for matrix in (*self.A, *self.B):
                nn.init.normal_(matrix, std=0.02)

    def forward(self, group: int | None = None) -> FactorPairs:
        pick = slice(None) if group is None else slice(group, group + 1)
        return [(A[pick], B[pick]) for A, B in zip(self.A, self.B, strict=True)]

    def last_matrices(self) -> list[nn.Parameter]:
        return list(self.B)

    @torch.no_grad()
    def assign(self, pairs: FactorPairs) -> None:
        for (A, B), own_A, own_B in zip(pairs, self.A, self.B, strict=True):
            own_A.copy_(A)
            own_B.copy_(B)


class DiagonalMLP(nn.Module):
    """diag(d) -> s(diag(d) U + c) V_t for every slot t: one side (A or B) of RepLoRA, for `groups` groups at once."""

    def __init__(self, groups: int, rank: int, hidden: int, widths: Sequence[int], activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.diagonal = nn.Parameter(torch.ones(groups, rank))
        self.U = nn.Parameter(torch.randn(groups, rank, hidden))
        self.c = nn.Parameter(torch.zeros(groups, 1, hidden))
        self.V = nn.ParameterList(torch.zeros(groups, hidden, width) for width in widths)

    def hidden_layer(self, pick: slice = slice(None)) -> Tensor:
        """H (groups, rank, hidden)."""
        preactivation = self.diagonal[pick].unsqueeze(-1) * self.U[pick] + self.c[pick]  # diag(d) U + c
        return ACTIVATIONS[self.activation](preactivation)

    def forward(self, group: int | None = None) -> list[Tensor]:
        """One (groups, rank, width_t) per slot."""
        pick = slice(None) if group is None else slice(group, group + 1)
        H = self.hidden_layer(pick)
        return [torch.matmul(H, V[pick]) for V in self.V]

    @torch.no_grad()
    def assign(self, outputs: Sequence[Tensor]) -> None:
        """Solve H V = output for each V with the least change of V; diagonals and first layer stay as they are.

        An output of zero gets a V of zero, which gives exactly that and not up to rounding.
        """
        H = self.hidden_layer().double()
        inverse = torch.linalg.pinv(H)
        for V, output in zip(self.V, outputs, strict=True):
            missing = output.double() - H @ V.double()
            solved = V.double() + inverse @ missing
            solved[(output == 0).all(dim=(1, 2))] = 0
            if not torch.allclose(H @ solved, output.double(), rtol=1e-4, atol=1e-6):
                raise RepLoRAError(
                    f"hidden: an MLP of width {H.shape[-1]} cannot produce the given factors of rank {H.shape[-2]}. "
                    "It can where the width is at least the rank and the activation does not silence it (tanh, gelu)."
                )
            V.copy_(solved)


class GeneratedFactors(FactorBank):
    """RepLoRA, or its linear ablation when the activation is `identity`."""

    def __init__(
        self,
        groups: int,
        shapes: Sequence[tuple[int, int]],
        rank: int,
        hidden: int,
        activation: Activation,
        scale_exponent: float,
    ) -> None:
        super().__init__(groups, shapes, rank)
        self.output_scale = hidden**-scale_exponent
        self.mlp_A = DiagonalMLP(groups, rank, hidden, [n_in for n_in, _ in shapes], activation)
        self.mlp_B = DiagonalMLP(groups, rank, hidden, [n_out for _, n_out in shapes], activation)
        with torch.no_grad():
            energy = self.mlp_A.hidden_layer().square().mean(dim=(1, 2), keepdim=True)  # E[H^2] of each group
            for V, (n_in, _) in zip(self.mlp_A.V, shapes, strict=True):
                # Var(A) = output_scale^2 * h * E[H^2] * Var(V), wanted: 1 / (3 in)
                V.normal_().mul_((3 * n_in * hidden * energy).rsqrt() / self.output_scale)

    def forward(self, group: int | None = None) -> FactorPairs:
        pairs = zip(self.mlp_A(group), self.mlp_B(group), strict=True)
        return [(A * self.output_scale, B.transpose(1, 2) * self.output_scale) for A, B in pairs]

    def last_matrices(self) -> list[nn.Parameter]:
        return list(self.mlp_B.V)

    def assign(self, pairs: FactorPairs) -> None:
        self.mlp_A.assign([A / self.output_scale for A, _ in pairs])
        self.mlp_B.assign([B.transpose(1, 2) / self.output_scale for _, B in pairs])

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [self.mlp_A.diagonal, self.mlp_A.c, self.mlp_B.diagonal, self.mlp_B.c]


def check_some_are_tied(groups: Iterable[Sequence[tuple[str, tuple[int, int]]]]) -> None:
    """Refuse `sharing: tied` where no group has two targets of one shape.

    Args:
        groups: For each group the name and the shape (in, out) of every target.

    Raises:
        RepLoRAError: None has.
    """
    largest: Sequence[tuple[str, tuple[int, int]]] = ()
    for members in groups:
        if len({shape for _, shape in members}) < len(members):
            return
        largest = max(largest, members, key=len)
    found = ", ".join(f"{name} ({n_in} -> {n_out})" for name, (n_in, n_out) in largest)
    raise RepLoRAError(
        "sharing: 'tied' gives the targets of one attention module (or of one MLP) that have the same shape one A and "
        f"one B, but no two of one module have it here, as in: {found}. Choose targets of equal shapes, such as [k, v] "
        "under grouped-query attention, or sharing: group."
    )


def _transformed() -> bool:
    """Whether `torch.compile` or a transform of `torch.func` reads the code that runs."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _check_no_reentrant_checkpoint_in_ddp() -> None:
    """Raise where gradients would be averaged over processes when the first of several blocks has given its own.

    Raises:
        RepLoRAError: The pass runs in `DistributedDataParallel`, whose graph is not static.
    """
    ddp = DistributedDataParallel._active_ddp_module
    if ddp is not None and not ddp.static_graph:
        raise RepLoRAError(
            "A layer runs without gradients in a training pass of DistributedDataParallel, as reentrant gradient "
            "checkpointing makes it. The blocks share parameters, and only the gradients of the first to be done would "
            "be averaged over the processes. Checkpoint with use_reentrant=False, or set static_graph=True in "
            "DistributedDataParallel."
        )


def _unseen_by_checkpointing() -> AbstractContextManager[Any]:
    """Checkpointing counts what is saved in both runs of a layer, of which one may have had the factors given."""
    if _transformed():  # they allow no hooks
        return nullcontext()
    # Detached, as an output that is kept with its graph would keep itself alive.
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, Tensor.detach)


def build_factors(config: RepLoRAConfig, groups: int, shapes: Sequence[tuple[int, int]]) -> FactorBank:
    """The bank of `config` for `groups` groups, each with slots of the given (in, out) shapes."""
    if config.factors == "none":
        return FreeFactors(groups, shapes, config.rank, config.init)
    return GeneratedFactors(groups, shapes, config.rank, config.width, config.nonlinearity, config.scale_exponent)
