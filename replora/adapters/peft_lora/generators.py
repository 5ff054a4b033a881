"""What `reparameterize` adds to a model: the generators of each adapter, and when they produce the factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from replora.adapters.config import RepLoRAConfig
from replora.adapters.low_rank.factors import DiagonalMLP, FactorBank, GeneratedFactors
from replora.adapters.peft_lora.layers import LoraPair, grouped
from replora.adapters.peft_lora.matrices import Matrix, forget, solve
from replora.adapters.peft_lora.places import LayerPlaces, all_removed, check_kept
from replora.adapters.wrappers import check_not_replica, unwrap
from replora.errors import RepLoRAError, nearest


class NamedDiagonalMLP(DiagonalMLP):
    """The same under names by which programs know what weight decay leaves alone: those with "bias" in them.

    The Trainer of transformers, and what derives from it, decides by the name.
    """

    def rename(self) -> None:
        for name in ("diagonal", "c"):
            self.register_parameter(f"bias_{name}", self._parameters.pop(name))

    @property
    def diagonal(self) -> nn.Parameter:  # type: ignore[override]
        return self.bias_diagonal  # type: ignore[return-value]

    @property
    def c(self) -> nn.Parameter:  # type: ignore[override]
        return self.bias_c  # type: ignore[return-value]


class Generators(nn.Module):
    """The generators of one adapter.

    Attributes:
        options: Arguments of `replora.reparameterize` that made it.
        banks: One for each shape of group.
        members: For each bank, the LoRA layers of each of its groups.
        matrices: For each bank, the matrices that it produces.
        places: Where the layers and their matrices stand.
        awaits_file: Whether the generators of the A and B that are being loaded may come from a file.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options
        self.banks = nn.ModuleList()
        self.members: list[list[list[LoraPair]]] = []
        self.matrices: list[list[Matrix]] = []
        self.places: list[LayerPlaces] = []
        hooked: Any = self
        hooked.register_load_state_dict_pre_hook(_before_load)
        hooked.register_load_state_dict_post_hook(_after_load)
        hooked.register_state_dict_pre_hook(_settle)
        self._loads_own = False
        self.awaits_file = False

    def add(self, config: RepLoRAConfig, groups: list[list[LoraPair]]) -> None:
        """Add the bank of these groups, which are alike, and remember the A and B that they have."""
        experts = groups[0][0].experts
        shapes = [pair.shape for pair in groups[0]]
        bank = GeneratedFactors(
            len(groups) * experts, shapes, config.rank, config.width, config.nonlinearity, config.scale_exponent
        )
        for mlp in (bank.mlp_A, bank.mlp_B):
            mlp.__class__ = NamedDiagonalMLP
            mlp.rename()  # type: ignore[operator]
        present = groups[0][0].stored()[0]
        bank.to(present.device, present.dtype)
        matrices = []
        for number, members in enumerate(groups):
            numbers = range(number * experts, (number + 1) * experts)
            for slot, pair in enumerate(members):
                for each in (pair, *pair.tied):
                    first, second = each.matrices(bank, numbers, slot)
                    A, B = reversed(each.stored()) if each.is_embedding else each.stored()
                    first.given, second.given = A.detach(), B.detach()
                    matrices += [first, second]
        bank.requires_grad_(any(tensor.requires_grad for pair in flat(groups) for tensor in pair.stored()))
        self.banks.append(bank)
        self.members.append(groups)
        self.matrices.append(matrices)

    def install(self) -> None:
        """Let the layers compute with what the generators give, which is what they computed with before."""
        for bank, matrices, groups in zip(self.factor_banks(), self.matrices, self.members, strict=True):
            start(bank, matrices, keep_a=groups[0][0].keep_a)
        for matrices, groups in zip(self.matrices, self.members, strict=True):
            for pair, first, second in zip(flat(groups), matrices[::2], matrices[1::2], strict=True):
                pair.generate(first, second)
        self.places = [pair.places() for pair in self.pairs()]

    def factor_banks(self) -> list[GeneratedFactors]:
        return [bank for bank in self.banks if isinstance(bank, GeneratedFactors)]

    def pairs(self) -> Iterator[LoraPair]:
        """The LoRA layers, bank by bank."""
        for groups in self.members:
            yield from flat(groups)

    def seconds(self) -> Iterator[Matrix]:
        """Of each of those layers, the matrix that is zero at the start."""
        for matrices in self.matrices:
            yield from matrices[1::2]

    def tied(self) -> list[list[str]]:
        """Names of the layers that have one A and B, each time; a layer with its own alone."""
        leading = [pair for groups in self.members for pair in chain.from_iterable(groups)]
        return [[one.name.removeprefix("base_model.model.") for one in (pair, *pair.tied)] for pair in leading]

    def deployed_count(self) -> int:
        """Numbers in A and B of all layers, as `peft` stores them: also where layers are tied, each has its own."""
        return sum(matrix.shape.numel() for matrices in self.matrices for matrix in matrices)

    def deployed(self) -> dict[str, Tensor]:
        """A and B of all layers, by the names that they have in the state of the model."""
        return {key: t for pair in self.pairs() for key, t in zip(pair.keys(), pair.stored(), strict=True)}

    def follow_layers(self) -> None:
        """Move each bank to where its layers are: a model may have moved while it had other adapters."""
        for bank, groups in zip(self.banks, self.members, strict=True):
            bank.to(next(groups[0][0].layer.get_base_layer().parameters()).device)

    def settle(self) -> None:
        """Solve for the matrices that were loaded without the generators that produce them."""
        if self.awaits_file:
            return
        for bank, matrices in zip(self.factor_banks(), self.matrices, strict=True):
            solve(bank, matrices)


def generators_of(pairs: Sequence[LoraPair], options: dict[str, Any]) -> Generators:
    """The generators of these LoRA layers, which compute with their own A and B until `install`.

    Args:
        pairs: A and B of the layers of one adapter.
        options: Arguments of `replora.reparameterize`.
    """
    configs = {pair.rank: RepLoRAConfig(rank=pair.rank, **options) for pair in pairs}
    made = Generators(options)
    for groups in grouped(pairs, options["sharing"]):
        made.add(configs[groups[0][0].rank], groups)
    return made


def flat(groups: list[list[LoraPair]]) -> Iterator[LoraPair]:
    """The LoRA layers of all groups, each followed by those that are tied to it."""
    for pair in chain.from_iterable(groups):
        yield pair
        yield from pair.tied


def _before_load(generators: Generators, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Prefer generators to the A and B that they produce, where both are loaded."""
    generators._loads_own = any(key.startswith(prefix) for key in state)
    if generators._loads_own:
        for matrices in generators.matrices:
            forget(matrices)


def _after_load(generators: Generators, incompatible: Any) -> None:
    """Solve where only A and B were loaded: then the generators are not missing."""
    if not generators._loads_own:
        names = {name for name, _ in generators.named_parameters()}
        missing = incompatible.missing_keys
        missing[:] = [key for key in missing if not any(key.endswith(name) for name in names)]
        generators.settle()


def _settle(generators: Generators, *_: Any) -> None:
    generators.settle()


def start(bank: GeneratedFactors, matrices: Sequence[Matrix], *, keep_a: bool) -> None:
    """Take up the factors that the layers had: of an adapter that has not begun, the scale; else the values.

    Args:
        bank: What is to produce the factors.
        matrices: What it produces.
        keep_a: Whether A is taken up in either case.
    """
    if all(matrix.given is None for matrix in matrices):
        return
    fresh = all(matrix.given is None or not matrix.given.any() for matrix in matrices if matrix.side == "B")
    if keep_a or not fresh:
        solve(bank, matrices)
        return
    with torch.no_grad():
        drawn = bank()
        for slot, (A, _) in enumerate(drawn):
            wanted = [m.given for m in matrices if (m.side, m.slot) == ("A", slot) and m.given is not None]
            scale = torch.stack([A_given.float().square().mean() for A_given in wanted]).mean().sqrt()
            if scale > 0:
                bank.mlp_A.V[slot].mul_(scale.to(A.device) / A.float().square().mean().sqrt())
    forget(matrices)


class Reparameterized(nn.ModuleDict):
    """The generators of all adapters of a model, by the adapter's name; its child `replora`.

    Attributes:
        host: The model, in a list, as it is no child of its child.
        hooks: Those on the model that runs.
    """

    host: list[nn.Module]
    hooks: list[torch.utils.hooks.RemovableHandle]

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Take every name that `peft` takes, also that of an attribute here."""
        self._modules[name] = module  # type: ignore[assignment]

    def generators(self) -> dict[str, Generators]:
        known = {name: child for name, child in self.items() if isinstance(child, Generators)}
        for name in [name for name, child in known.items() if child.places and all_removed(child.places)]:
            del self[name], known[name]
        return known

    def factor_banks(self) -> list[FactorBank]:
        """Those of adapters that take part in the next forward pass."""
        return [bank for one in self.generators().values() if _is_active(one) for bank in one.factor_banks()]

    def before_forward(self, model: nn.Module, *_inputs: Any) -> None:
        check_not_replica(model)
        for name, generators in self.generators().items():
            if not torch.compiler.is_compiling():
                check_kept(name, generators.places)
            generators.settle()
        for bank in self.factor_banks():
            bank.open()

    def after_forward(self, *_: Any) -> None:
        for generators in self.generators().values():
            for bank in generators.factor_banks():
                bank.close()


def _is_active(generators: Generators) -> bool:
    """Whether the adapter is in use: by its first layer."""
    pair = generators.members[0][0][0]
    layer = pair.layer
    return pair.adapter in layer.active_adapters and not layer.disable_adapters and not layer.merged


def host_of(model: nn.Module) -> nn.Module:
    """The model that holds the adapters: the given one, or one inside that `peft` or transformers put all of them into.

    Such a one is the transformer in a `SentenceTransformer`, which calls and saves all of its own children in turn.
    """
    from peft.tuners.lora import LoraLayer  # slow, and only here

    model = unwrap(model)
    inside = next((module for module in model.modules() if hasattr(module, "peft_config")), model)
    counts = [sum(isinstance(module, LoraLayer) for module in one.modules()) for one in (model, inside)]
    return inside if counts[0] == counts[1] else model


def reparameterized_in(host: nn.Module) -> Reparameterized | None:
    """What `reparameterize` added to the model before.

    Raises:
        RepLoRAError: It carries something else.
    """
    present = getattr(host, "replora", None)
    if present is not None and not isinstance(present, Reparameterized):
        raise RepLoRAError(
            "The model carries an adapter of replora.inject, not one that peft made. There the generators are an "
            "option: PeftMethodConfig(method='lora', reparameterize=True); replora.save_adapter(deploy=True) writes A "
            "and B alone. replora.remove(model) takes the adapter out."
        )
    return present


def generators_in(model: nn.Module, adapter_name: str, asked: str) -> Generators:
    """The generators of one adapter of a model.

    Raises:
        RepLoRAError: The adapter is not reparameterized; `asked` is the function that needs it to be.
    """
    present = reparameterized_in(host_of(model))
    known = {} if present is None else present.generators()
    if adapter_name not in known:
        raise RepLoRAError(f"{asked}: {adapter_name!r} is not reparameterized. {nearest(adapter_name, known)}")
    return known[adapter_name]
