"""The LoRA layers that `peft` put into a model: which matrices they hold, and which of them share a generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from replora.adapters.config import Sharing
from replora.adapters.low_rank.factors import FactorBank, check_some_are_tied
from replora.adapters.peft_lora.matrices import (
    GENERATED,
    Matrix,
    generate_entry,
    generate_weight,
    keep_entry,
    keep_weight,
)
from replora.adapters.peft_lora.places import LayerPlaces, Place
from replora.adapters.roles import roles_of
from replora.adapters.wrappers import plain_name
from replora.errors import RepLoRAError, listed, nearest

# What a variant of LoRA computes from A and B as matrices. Others train only one of the two, or more than them.
_VARIANTS = ("Dora", "ALora")


@dataclass(frozen=True)
class LoraPair:
    """A and B of one LoRA layer for one adapter.

    Attributes:
        name: The layer's name in the plain model.
        layer: The layer of `peft`.
        adapter: Name of the adapter.
        group: Name of the module with whose other layers it shares a generator.
        role: What the layer is in its group, such as `q`.
        rank: The rank, of each expert if there are several.
        experts: How many experts one parameter holds; 1 otherwise.
        keep_a: Whether A says something before training begins, as that of EVA does.
        place: Where the model holds the layer.
        tied: Layers that have the same A and B: an output layer that is tied to the embedding, or all of one shape in
            a group with `sharing: tied`.
    """

    name: str
    layer: Any
    adapter: str
    group: str
    role: str
    rank: int
    experts: int
    keep_a: bool
    place: Place
    tied: tuple[LoraPair, ...] = ()

    @property
    def is_embedding(self) -> bool:
        return self.adapter in self.layer.lora_embedding_A

    def stored(self) -> tuple[Tensor, Tensor]:
        """A and B as `peft` stores them."""
        if self.is_embedding:
            return self.layer.lora_embedding_A[self.adapter], self.layer.lora_embedding_B[self.adapter]
        return self.layer.lora_A[self.adapter].weight, self.layer.lora_B[self.adapter].weight

    def keys(self) -> tuple[str, str]:
        """Their names in the state of the plain model."""
        if self.is_embedding:
            return f"{self.name}.lora_embedding_A.{self.adapter}", f"{self.name}.lora_embedding_B.{self.adapter}"
        return f"{self.name}.lora_A.{self.adapter}.weight", f"{self.name}.lora_B.{self.adapter}.weight"

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of one factor pair.

        Of an embedding `peft` leaves the factor of the tokens at zero, which RepLoRA has in the place of B: the update
        B A is the transposed table.
        """
        A, B = self.stored()
        if self.is_embedding:
            return len(B), A.shape[1]
        return A[0].numel(), len(B)

    def matrices(self, bank: FactorBank, groups: range, slot: int) -> tuple[Matrix, Matrix]:
        """A and B of the bank, in the form in which `peft` stores them: the factor A first."""
        A, B = self.stored()
        if self.is_embedding:
            of_B = Matrix(bank, groups, slot, "A", B.shape, transposed=True)
            return of_B, Matrix(bank, groups, slot, "B", A.shape, transposed=True)
        return Matrix(bank, groups, slot, "A", A.shape), Matrix(bank, groups, slot, "B", B.shape)

    def generate(self, first: Matrix, second: Matrix) -> None:
        """Let A and B be computed from now on."""
        if self.is_embedding:
            generate_entry(self.layer.lora_embedding_B, self.adapter, first)
            generate_entry(self.layer.lora_embedding_A, self.adapter, second)
        else:
            generate_weight(self.layer.lora_A[self.adapter], first)
            generate_weight(self.layer.lora_B[self.adapter], second)

    def keep(self) -> None:
        """Let A and B be parameters again."""
        if self.is_embedding:
            keep_entry(self.layer.lora_embedding_B, self.adapter)
            keep_entry(self.layer.lora_embedding_A, self.adapter)
        elif self.adapter in self.layer.lora_A:
            keep_weight(self.layer.lora_A[self.adapter])
            keep_weight(self.layer.lora_B[self.adapter])

    def places(self) -> LayerPlaces:
        """Where the layer and its generated matrices stand."""
        layer: Any = self.layer
        if self.is_embedding:
            of_A, of_B = layer.lora_embedding_A.matrices, layer.lora_embedding_B.matrices
        else:
            of_A, of_B = layer.lora_A._modules, layer.lora_B._modules
        matrices = [Place(holder, self.adapter, holder[self.adapter]) for holder in (of_A, of_B)]
        return LayerPlaces(self.name, (self.place, matrices[0], matrices[1]))

    def is_tied_to(self, table: LoraPair) -> bool:
        """Whether `peft` gave this linear layer the matrices of an embedding (`ensure_weight_tying`)."""
        if self.is_embedding or not table.is_embedding or self.shape != table.shape:
            return False
        (A, B), (of_B, of_A) = self.stored(), table.stored()
        return bool(A.any()) and torch.equal(A, of_A.T) and torch.equal(B, of_B.T)


def lora_pairs(model: nn.Module, adapter: str) -> list[LoraPair]:
    """The LoRA layers of `model` that have this adapter, in the model's order.

    Raises:
        RepLoRAError: There are none, or one has no A and B that a generator could produce.
    """
    from peft.tuners.lora import LoraLayer  # slow, and only here

    modules = {plain_name(name): module for name, module in model.named_modules()}
    # What the roles go by: the frozen layers under the names of those around them.
    plain = {name: m.get_base_layer() if isinstance(m, LoraLayer) else m for name, m in modules.items()}
    layers = {name: module for name, module in modules.items() if isinstance(module, LoraLayer)}
    has = {name: layer for name, layer in layers.items() if adapter in (*layer.lora_A, *layer.lora_embedding_A)}
    if not has:
        _nothing_found(modules, layers, adapter)
    for name, layer in has.items():
        _check_layer(name, layer, adapter)
    configs: Any = next((module.peft_config for module in modules.values() if hasattr(module, "peft_config")), {})
    keep_a = getattr(configs.get(adapter), "init_lora_weights", None) == "eva"
    pairs = [_pair(name, layer, adapter, keep_a, modules, plain) for name, layer in has.items()]
    return _with_tied(pairs)


def _with_tied(pairs: list[LoraPair]) -> list[LoraPair]:
    """The layers with matrices of their own, each with those that share them."""
    tied = {pair.name: [other for other in pairs if other.is_tied_to(pair)] for pair in pairs if pair.is_embedding}
    followers = {other.name for others in tied.values() for other in others}
    return [replace(p, tied=tuple(tied.get(p.name, ()))) for p in pairs if p.name not in followers]


def _pair(
    name: str, layer: Any, adapter: str, keep_a: bool, modules: dict[str, nn.Module], plain: dict[str, nn.Module]
) -> LoraPair:
    parent, own = name.rpartition(".")[0], name.rpartition(".")[2]
    is_attention = isinstance(layer.get_base_layer(), nn.MultiheadAttention)
    make = partial(
        LoraPair,
        name,
        layer,
        adapter,
        rank=layer.r[adapter],
        experts=getattr(layer, "num_experts", 1),
        keep_a=keep_a,
        place=_place_of(layer, own, modules[parent]),
    )
    if parameter := getattr(layer, "parameter_name", None):
        # Several parameters of one module are wrapped one inside another, and share a generator.
        while own == "base_layer":
            parent, own = parent.rpartition(".")[0], parent.rpartition(".")[2]
        return make(group=f"{parent}.{own}".strip("."), role=parameter)
    # A quantized layer need be no nn.Linear; that of `peft` around it has its sizes.
    if adapter in layer.lora_A and type(layer.lora_A[adapter]) is nn.Linear and not is_attention:
        roles = roles_of(name, layer, plain)
        if len(roles) == 1:
            return make(group=roles[0].group, role=roles[0].name)
        return make(group=name if roles else parent or name, role=own)
    return make(group=name, role=own)


def _place_of(layer: Any, own: str, parent: nn.Module) -> Place:
    """Where a model holds a layer: nowhere if it is the model itself."""
    holder = parent._modules if own else {"": layer}
    return Place(holder, own, holder[own])


def _check_layer(name: str, layer: Any, adapter: str) -> None:
    """Refuse a layer whose update is not B A, or whose matrices are not parameters of their own."""

    def refuse(found: str, remedy: str) -> None:
        raise RepLoRAError(f"reparameterize: {name} {found}. {remedy}")

    if layer.merged:
        refuse("is merged", "Call unmerge_adapter() of the model first.")
    variant = type(layer.lora_variant[adapter]).__name__ if adapter in layer.lora_variant else ""
    if variant and not variant.startswith(_VARIANTS):
        refuse(f"uses {variant.removesuffix('Variant')}", "RepLoRA produces A and B of plain LoRA, DoRA and aLoRA.")
    if adapter in getattr(layer, "frozen_peft_weight_names", {}):
        refuse("trains only one of A and B", "Choose an `init_lora_weights` of LoraConfig that trains both.")
    if adapter in layer.lora_embedding_A:
        return
    A, B = layer.lora_A[adapter], layer.lora_B[adapter]
    if type(A) in GENERATED.values():
        refuse(f"is reparameterized already (adapter {adapter!r})", "replora.materialize(model) undoes it.")
    if type(A) not in GENERATED or type(B) not in GENERATED:
        refuse(f"holds A as {type(A).__name__}", f"Known: {', '.join(kind.__name__ for kind in GENERATED)}.")
    if getattr(B, "groups", 1) > 1:
        refuse("is a convolution with groups, whose B is not a matrix", "Leave it out of target_modules.")
    if any(weight.is_meta for weight in (A.weight, B.weight)):
        refuse("has no values yet", "Load the adapter first: without low_cpu_mem_usage, or after it.")


def _nothing_found(modules: dict[str, nn.Module], layers: dict[str, Any], adapter: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer  # slow, and only here

    known = sorted({name for layer in layers.values() for name in (*layer.lora_A, *layer.lora_embedding_A)})
    if known:
        raise RepLoRAError(f"reparameterize: the model has no adapter {adapter!r}. {nearest(adapter, known)}")
    others = sorted({type(m).__module__.split(".")[2] for m in modules.values() if isinstance(m, BaseTunerLayer)})
    if others:
        raise RepLoRAError(
            f"reparameterize: the model carries {listed(others)} of peft, but RepLoRA says where LoRA's A and B come "
            "from. Make it with peft.LoraConfig."
        )
    raise RepLoRAError(
        "reparameterize: the model has no LoRA layers. Make them first: model = peft.get_peft_model(model, "
        "peft.LoraConfig(target_modules=[...])). Without peft: replora.inject(model, replora.RepLoRAConfig())."
    )


def grouped(pairs: Sequence[LoraPair], sharing: Sharing) -> Iterator[list[list[LoraPair]]]:
    """Groups that share a generator, those of equal shapes, rank, device and type together: one bank for each list.

    Raises:
        RepLoRAError: `sharing` is `tied`, and there is nothing to tie.
    """
    groups: dict[Any, list[LoraPair]] = {}
    for pair in pairs:
        key = (pair.name if sharing == "none" else pair.group, pair.rank, pair.experts, *_place(pair))
        groups.setdefault(key, []).append(pair)
    if sharing == "tied":
        check_some_are_tied([(pair.name, pair.shape) for pair in members] for members in groups.values())
        groups = {key: _tied_by_shape(members) for key, members in groups.items()}
    alike: dict[Any, list[list[LoraPair]]] = {}
    for members in groups.values():
        first = members[0]
        roles = tuple(("" if sharing == "none" else m.role, *m.shape) for m in members)
        alike.setdefault((first.rank, first.experts, *_place(first), roles), []).append(members)
    yield from alike.values()


def _tied_by_shape(members: list[LoraPair]) -> list[LoraPair]:
    """The first layer of each shape, with the others of that shape tied to it."""
    by_shape: dict[tuple[int, int], list[LoraPair]] = {}
    for pair in members:
        by_shape.setdefault(pair.shape, []).extend([replace(pair, tied=()), *pair.tied])
    return [replace(first, tied=tuple(others)) for first, *others in by_shape.values()]


def _place(pair: LoraPair) -> tuple[torch.device, torch.dtype]:
    A, _ = pair.stored()
    return A.device, A.dtype
