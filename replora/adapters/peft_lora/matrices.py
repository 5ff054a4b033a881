"""LoRA's matrices inside the layers of `peft`, computed from a bank of generators instead of being parameters.

A layer of `peft` keeps A and B as the weights of small modules, `lora_A["default"]` and `lora_B["default"]`, and an
embedding keeps them in two `ParameterDict`s. They stay where they are, with all that `peft` knows of them; only where
their values come from changes: an existing module becomes a `Generated...` one by a change of its class, whose
`weight` is computed. Other code reads these modules by name and by their class, so they cannot be wrapped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from replora.adapters.low_rank.factors import FactorBank
from replora.adapters.peft_lora.writable import WritableTensor
from replora.adapters.wrappers import is_share
from replora.errors import RepLoRAError


class Matrix:
    """One of the matrices of `peft`, as its bank gives it.

    Attributes:
        bank: What produces the factors.
        groups: The group in the bank; those of all experts, in their order, where one parameter holds several.
        slot: Which target of the group it is.
        side: Which factor it is.
        transposed: Whether `peft` stores it as (columns, rows).
        shape: The shape that `peft` gives it.
        given: Values that were loaded, and that the bank has not been solved for yet.
    """

    def __init__(
        self,
        bank: FactorBank,
        groups: range,
        slot: int,
        side: Literal["A", "B"],
        shape: torch.Size,
        *,
        transposed: bool = False,
    ) -> None:
        self.bank, self.groups, self.slot, self.side = bank, groups, slot, side
        self.shape, self.transposed = shape, transposed
        self.given: Tensor | None = None

    def value(self) -> Tensor:
        """The matrix: that of the running forward pass, or one computed now."""
        if not self.bank.is_running and (first := next(self.parameters())).ndim == 1:
            # FSDP1 keeps its share, flattened. What only asks for the shape or the type gets these.
            return torch.empty(self.shape, dtype=first.dtype, device="meta")
        index = "AB".index(self.side)
        factors = [self.bank.factors_of(group, self.slot)[index] for group in self.groups]
        if len(factors) == 1:
            factor = factors[0].T if self.transposed else factors[0]
            return factor if len(self.shape) == 2 else factor.reshape(self.shape)
        # Of all experts: A (experts * rank, in), and B (out, rank * experts) with the expert as its fastest index.
        return torch.cat(factors) if self.side == "A" else torch.stack(factors, -1).reshape(self.shape)

    def read(self) -> Tensor:
        """The same for other code, which may write into it unless the model is running."""
        if produced := self.bank.running():  # a layer reads each matrix twice in a pass
            if self not in produced.by_reader:
                produced.by_reader[self] = self.value()
            return produced.by_reader[self]
        value = self.value()
        shared_out = value.is_meta or is_share(value)
        return value if shared_out or self.bank.is_running else WritableTensor.of(value, self.write)

    def write(self, value: Tensor) -> None:
        """Let the bank give another value.

        Raises:
            RepLoRAError: The value has another shape, or the bank cannot give it.
        """
        if value.shape != self.shape:
            raise RepLoRAError(
                f"A reparameterized matrix {self.side} of shape {tuple(self.shape)} cannot become one of shape "
                f"{tuple(value.shape)}. Call replora.materialize(model) before its rank changes."
            )
        if torch.equal(value, self.value()):
            return
        self.given = value.detach().clone()
        try:
            solve(self.bank, [self])
        finally:
            self.given = None

    def factors_in(self, matrix: Tensor) -> list[Tensor]:
        """The factors, one a group, that `matrix` of this shape holds: A (rank, in) or B (out, rank)."""
        count = len(self.groups)
        if count == 1:
            flat = matrix.reshape(len(matrix), -1)
            return [flat.T if self.transposed else flat]
        if self.side == "A":
            return list(matrix.chunk(count))
        return list(matrix.reshape(len(matrix), -1, count).unbind(-1))

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that it is computed from."""
        return self.bank.parameters()

    @property
    def requires_grad(self) -> bool:
        return next(self.parameters()).requires_grad

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def take(self, state: dict[str, Any], key: str, errors: list[str]) -> None:
        """Remember a value that is being loaded, if there is one under `key`."""
        if key not in state:
            return
        if state[key].shape != self.shape:
            errors.append(f"size mismatch for {key}: {tuple(state[key].shape)} instead of {tuple(self.shape)}.")
            return
        self.given = state[key].detach().clone()


def solve(bank: FactorBank, matrices: Sequence[Matrix]) -> None:
    """Let the bank give the matrices that were loaded.

    Raises:
        RepLoRAError: No parameters of the bank do, or two layers that are tied were given different values.
    """
    if all(matrix.given is None for matrix in matrices):
        return
    shares: dict[str, Any] = {name: p for name, p in bank.named_parameters() if is_share(p)}
    with torch.no_grad():
        complete = (
            copy.deepcopy(bank, {id(p): nn.Parameter(p.full_tensor()) for p in shares.values()}) if shares else bank
        )
        pairs = [(A.detach().clone(), B.detach().clone()) for A, B in complete()]
        taken: dict[tuple[int, str, int], Tensor] = {}
        for matrix in matrices:
            if matrix.given is not None:
                given: Any = matrix.given
                given = given.full_tensor() if is_share(given) else given
                factors = matrix.factors_in(given)
                for group, factor in zip(matrix.groups, factors, strict=True):
                    first = taken.setdefault((matrix.slot, matrix.side, group), factor)
                    if first is not factor and not torch.equal(first, factor):
                        forget(matrices)
                        raise RepLoRAError(
                            f"Layers that are tied have the same {matrix.side}, but the values to take up differ "
                            f"between two of them of shape {tuple(matrix.shape)}. Choose sharing: group or none."
                        )
                    pairs[matrix.slot]["AB".index(matrix.side)][group].copy_(factor)
        complete.assign(pairs)
        for name, share in shares.items():
            from torch.distributed.tensor import distribute_tensor  # slow, and imported by what made the shares

            share.copy_(distribute_tensor(complete.get_parameter(name), share.device_mesh, share.placements))
    forget(matrices)


def copied(value: Tensor) -> Tensor:
    """A copy of a matrix as files take it: B comes out of its MLP transposed."""
    return value.detach().clone(memory_format=torch.contiguous_format)


def forget(matrices: Sequence[Matrix]) -> None:
    """The values that were loaded are taken up, or of no use."""
    for matrix in matrices:
        matrix.given = None


class HoldsMatrices(nn.Module):
    """A module some of whose tensors are computed: they are saved, loaded and found like the parameters they were.

    Attributes:
        matrices: What is computed, by the names that the parameters had.
    """

    matrices: dict[str, Matrix]

    def named_buffers(self, prefix: str = "", *args: Any, **options: Any) -> Iterator[tuple[str, Tensor]]:
        """With the matrices: torch.distributed.checkpoint finds by these what is loaded and no parameter."""
        yield from super().named_buffers(prefix, *args, **options)
        for name, matrix in self.matrices.items():
            if not (value := matrix.value()).is_meta:
                yield ".".join(filter(None, (prefix, name))), value

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, matrix in self.matrices.items():
            value = matrix.value()
            destination[f"{prefix}{name}"] = value if keep_vars else copied(value)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, matrix in self.matrices.items():
            matrix.take(state_dict, f"{prefix}{name}", error_msgs)
        unexpected: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected, error_msgs)
        unexpected_keys += [key for key in unexpected if key.removeprefix(prefix) not in self.matrices]


class GeneratedWeight(HoldsMatrices):
    """What the modules below have in common: their `weight` is computed."""

    @property
    def weight(self) -> Tensor:
        return self.matrices["weight"].read()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.matrices["weight"].write(value)
        else:
            super().__setattr__(name, value)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those that train when this module is to train: `peft` freezes and releases adapters by them."""
        yield from super().parameters(recurse)
        yield from self.matrices["weight"].parameters()


class GeneratedLinear(GeneratedWeight, nn.Linear):  # type: ignore[override]
    """A or B of a linear layer."""


class GeneratedConv1d(GeneratedWeight, nn.Conv1d):  # type: ignore[override]
    """A or B of a convolution over one dimension."""


class GeneratedConv2d(GeneratedWeight, nn.Conv2d):  # type: ignore[override]
    """A or B of a convolution over two dimensions."""


class GeneratedConv3d(GeneratedWeight, nn.Conv3d):  # type: ignore[override]
    """A or B of a convolution over three dimensions."""


GENERATED: dict[type[nn.Module], type[GeneratedWeight]] = {
    nn.Linear: GeneratedLinear,
    nn.Conv1d: GeneratedConv1d,
    nn.Conv2d: GeneratedConv2d,
    nn.Conv3d: GeneratedConv3d,
}


class GeneratedEntries(HoldsMatrices, nn.ParameterDict):
    """The matrices of an embedding by adapter, some of which are computed."""

    def __getitem__(self, key: str) -> Any:
        return self.matrices[key].read() if key in self.matrices else super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self.matrices:
            self.matrices[key].write(value)
        else:
            super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if self.matrices.pop(key, None) is None:
            super().__delitem__(key)
        else:
            del self._keys[key]

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self.__dict__["matrices"] else super().__getattr__(name)

    def items(self) -> Any:
        """By adapter, the parameter or what lists the parameters that it is computed from."""
        return [(key, self.matrices.get(key) or self[key]) for key in self.keys()]

    def values(self) -> Any:
        return [value for _, value in self.items()]


def generate_weight(module: Any, matrix: Matrix) -> None:
    """Let the weight of a module be computed from now on."""
    del module._parameters["weight"]
    module.__class__ = GENERATED[type(module)]
    module.matrices = {"weight": matrix}
    module.computed = nn.Module()  # so it is no leaf: FSDP's policy of `peft` wraps leaves, to share out parameters


def keep_weight(module: Any) -> None:
    """Let the weight of such a module be a parameter again, with the value that it has."""
    if type(module) not in GENERATED.values():
        return  # other code has replaced it
    matrix = module.matrices["weight"]
    module.__class__ = next(kind for kind, own in GENERATED.items() if type(module) is own)
    del module.matrices, module.computed
    module.weight = nn.Parameter(copied(matrix.value()), requires_grad=matrix.requires_grad)


def generate_entry(entries: Any, adapter: str, matrix: Matrix) -> None:
    """Let the entry of one adapter in the `ParameterDict` of an embedding be computed from now on."""
    if not isinstance(entries, GeneratedEntries):
        entries.__class__ = GeneratedEntries
        entries.matrices = {}
    del entries._parameters[adapter]
    entries.matrices[adapter] = matrix


def keep_entry(entries: Any, adapter: str) -> None:
    """Let such an entry be a parameter again, with the value that it has."""
    if adapter not in getattr(entries, "matrices", {}):
        return
    matrix = entries.matrices.pop(adapter)
    entries[adapter] = nn.Parameter(copied(matrix.value()), requires_grad=matrix.requires_grad)
    if not entries.matrices:
        entries.__class__ = nn.ParameterDict
        del entries.matrices
