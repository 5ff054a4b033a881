"""Make a model trainable by a method: find the targets, group them, wrap them, freeze the rest, prove that it works.

    model = replora.inject(model, replora.RepLoRAConfig(rank=8), also_train=["head"])

`inject` changes the model in place and registers one child module on it, `model.replora`, which holds the method, its
parameters and the list of what trains. The factors are produced by a hook at the start of the model's forward pass.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from replora.adapters.base_model import describe_base
from replora.adapters.config import (
    AdapterConfig,
    BitFitConfig,
    FullConfig,
    LinearProbeConfig,
    PeftConfig,
    RepLoRAConfig,
)
from replora.adapters.factors import FactorBank, build_factors
from replora.adapters.layer import AdaptedLinear, AdaptedMultiheadAttention, FactorView, WeightUpdate
from replora.adapters.tied import refuse_tied_heads
from replora.backbones.backbone import in_head
from replora.backbones.targets import Target, find_targets
from replora.errors import RepLoRAError, nearest


class Adapters(nn.Module):
    """What `inject` adds to a model, as its child `replora`.

    Attributes:
        config: The method and its options.
        banks: The factor banks, one for each shape of group; empty for methods without generated factors.
        updates: The updated weights, in the model's order.
        targets: Names of what is adapted.
        trained: Names, in the model, of every parameter and buffer that training changes.
        head: Names among `trained` that belong to the modules of `also_train`.
        also_train: Names of the modules that train as a whole.
        required_grad: Names of the parameters that required gradients before the injection.
        base: The frozen model: its class, name and a fingerprint of its weights.
        backbone_count: Parameters of the backbone, without head and adapter.
        trained_as: For an adapter read from a deployed file: method, options and parameters of its training.
        peft_called: For each layer of the `peft` library, whether it has been called.
        untied: While a layer of the `peft` library is merged, by its name: the frozen weight that others share.
        proved: Whether every target is known to act on the output.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.banks = nn.ModuleList()
        self.updates: list[WeightUpdate] = []
        self.targets: list[str] = []
        self.trained: list[str] = []
        self.head: list[str] = []
        self.also_train: tuple[str, ...] = ()
        self.required_grad: set[str] = set()
        self.base: dict[str, Any] = {}
        self.backbone_count = 0
        self.trained_as: dict[str, Any] | None = None
        self.peft_called: dict[str, bool] = {}
        self.untied: dict[str, nn.Parameter] = {}
        self.proved = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._frozen_norms: list[nn.Module] = []

    def forward(self, x: Any) -> Any:
        """The identity: a model that calls all of its children in turn, like `nn.Sequential`, calls this one too."""
        return x

    def factor_banks(self) -> list[FactorBank]:
        return [bank for bank in self.banks if isinstance(bank, FactorBank)]

    def hook_onto(self, model: nn.Module) -> None:
        self._hooks.append(model.register_forward_pre_hook(self._before_forward))
        self._hooks.append(model.register_forward_hook(self._after_forward, always_call=True))

    def unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _before_forward(self, model: nn.Module, _inputs: Any) -> None:
        if self.updates and getattr(model, "_is_replica", False):
            raise RepLoRAError(
                "nn.DataParallel runs copies of the model, which would all read the factors of the first device. "
                "Start one process for each GPU, with DistributedDataParallel (torchrun, or the Trainer's strategy: "
                "ddp), or let this one see a single GPU: CUDA_VISIBLE_DEVICES=0."
            )
        for norm in self._frozen_norms:
            norm.training = False  # a frozen batch norm keeps the statistics it was trained with
        if any(update.merged for update in self.updates):
            if model.training and torch.is_grad_enabled():
                raise RepLoRAError(
                    "The adapter is merged into the backbone, so it cannot train. Call replora.unmerge first."
                )
            return
        for bank in self.factor_banks():
            bank.open()

    def _after_forward(self, _model: nn.Module, _inputs: Any, output: Any) -> None:
        for bank in self.factor_banks():
            bank.close()
        if not self.proved and output is not None and not torch.compiler.is_compiling():
            from replora.adapters.check import refuse_dead_targets

            refuse_dead_targets(self)
            self.proved = True


@dataclass(frozen=True)
class ParameterCounts:
    """How many numbers there are, and how many a method trains and ships.

    Attributes:
        backbone: Parameters of the backbone, without head and adapter.
        adapter_trained: Parameters of the adapter during training (with RepLoRA's MLPs), or of the backbone where the
            method trains those. Without the head.
        adapter_deployed: What remains of them after training: A and B alone.
        head: Parameters of the modules that train as a whole, such as the classifier.
    """

    backbone: int
    adapter_trained: int
    adapter_deployed: int
    head: int


def inject(
    model: nn.Module,
    config: AdapterConfig,
    *,
    also_train: Iterable[str] = (),
    example: Any = None,
    check: bool = True,
) -> nn.Module:
    """Adapt `model` in place, freeze the rest and return it. Load pre-trained weights before, not after.

    Args:
        model: Any model with `nn.Linear` or `nn.MultiheadAttention`.
        config: The method: `RepLoRAConfig`, `FullConfig`, `LinearProbeConfig`, `BitFitConfig` or `PeftConfig`.
        also_train: Names of submodules that train as a whole and are saved with the adapter, such as `("head",)`.
        example: An input to prove with that every target acts on the output: a tensor, a tuple of arguments or a dict
            of keyword arguments. For timm and transformers models one is made where it is None; for others the proof
            is made with the first forward pass.
        check: Whether to prove that at all. Turn it off for models that use only some targets in a pass.

    Raises:
        TargetNotFoundError: A target matches nothing.
        DeadTargetError: A target does not act on the output, or is read in a way that its options do not allow.
        RepLoRAError: The model carries an adapter already, or a name of `also_train` does not exist or shares its
            weight with a module that is frozen (an output layer tied to the embedding).
    """
    from replora.adapters.check import prove_targets

    if isinstance(present := getattr(model, "replora", None), Adapters):
        raise RepLoRAError(f"The model already carries {present.config.name!r}. Call replora.remove(model) first.")
    also_train = tuple(dict.fromkeys(also_train))
    heads = _submodules(model, also_train)
    also_train = tuple(name for name in also_train if not in_head(name, also_train))  # one inside another is in it
    refuse_tied_heads(model, also_train)
    head_tensors = {id(tensor) for head in heads for tensor in (*head.parameters(), *head.buffers())}
    adapters = Adapters(config)
    adapters.also_train = also_train
    adapters.base = describe_base(model, also_train)
    adapters.required_grad = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters.backbone_count = sum(p.numel() for p in model.parameters() if id(p) not in head_tensors)
    model.replora = adapters
    try:
        trained = head_tensors | _apply(model, adapters, heads)
        for parameter in model.parameters():
            parameter.requires_grad = id(parameter) in trained
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        adapters.trained = [name for name, tensor in tensors.items() if id(tensor) in trained]
        adapters.head = [name for name, p in model.named_parameters() if id(p) in head_tensors]
        if not isinstance(config, FullConfig):
            adapters._frozen_norms = _frozen_batch_norms(model)
        adapters.hook_onto(model)
        adapters.proved = not (check and isinstance(config, RepLoRAConfig | PeftConfig))
        if not adapters.proved:
            prove_targets(model, adapters, example)
    except BaseException:
        remove(model)
        raise
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take the adapter out of `model` again: the frozen backbone as it was (a trained head stays trained)."""
    adapters = adapters_of(model)
    adapters.unhook()
    for update in adapters.updates:
        update.unmerge()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedLinear):
            model.set_submodule(name, module.linear)
        elif type(module) is AdaptedMultiheadAttention:
            del module.updates
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
    if isinstance(adapters.config, PeftConfig):
        from replora.adapters.baselines import remove_peft

        remove_peft(model)
    del model.replora
    train_only(model, adapters.required_grad)
    return model


def train_only(model: nn.Module, names: Container[str]) -> None:
    """Let the parameters of these names train and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in names


def adapters_of(model: nn.Module) -> Adapters:
    """What `inject` added to `model`.

    Raises:
        RepLoRAError: Nothing was injected.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    adapters = getattr(model, "replora", None)
    if not isinstance(adapters, Adapters):
        raise RepLoRAError(f"This {type(model).__name__} carries no adapter. Call replora.inject(model, config) first.")
    return adapters


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Trained and deployed numbers of the method that `model` carries."""
    model = getattr(model, "_orig_mod", model)
    adapters = adapters_of(model)
    parameters = dict(model.named_parameters())
    head = sum(parameters[name].numel() for name in adapters.head)
    trained = sum(parameters[name].numel() for name in adapters.trained if name in parameters) - head
    banks = adapters.factor_banks()
    deployed = sum(bank.deployed_count() for bank in banks) if banks else trained
    return ParameterCounts(adapters.backbone_count, trained, deployed, head)


def describe(model: nn.Module) -> dict[str, Any]:
    """The method, its options, its targets and the parameter counts, as plain JSON data.

    For an adapter read from a deployed file also `trained_as`: method, options and parameter counts of its training.
    """
    adapters = adapters_of(model)
    trained_as = {"trained_as": adapters.trained_as} if adapters.trained_as else {}
    return {
        "method": adapters.config.name,
        "options": options_of(adapters.config),
        "targets": list(adapters.targets),
        "parameters": asdict(parameter_counts(model)),
        **trained_as,
    }


def options_of(config: AdapterConfig) -> dict[str, Any]:
    """The options of a method as plain JSON data. Defaults that follow from other options are given as numbers."""
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    if isinstance(config, RepLoRAConfig) and config.factors != "none":
        options["hidden"] = config.width
    return options


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """What an optimiser should get: the matrices that train; the vectors (biases, norms, diagonals), not decayed."""
    adapters = adapters_of(model)
    vectors = {id(p) for bank in adapters.factor_banks() for p in bank.undecayed()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in vectors]
    undecayed = [p for p in trained if p.ndim <= 1 or id(p) in vectors]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _submodules(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    known = dict(model.named_modules())
    for name in names:
        if not name or name not in known:
            raise RepLoRAError(
                f"also_train: {type(model).__name__} has no submodule {name!r}. {nearest(name, filter(None, known))}"
            )
    return [known[name] for name in names]


def _apply(model: nn.Module, adapters: Adapters, heads: Sequence[nn.Module]) -> set[int]:
    """Change the model as the method asks, and return the identities of the tensors that train, heads aside."""
    config = adapters.config
    if isinstance(config, RepLoRAConfig):
        _add_low_rank_updates(model, adapters, config, find_targets(model, config.targets, config.blocks, skip=heads))
        return {id(p) for p in adapters.banks.parameters()}
    if isinstance(config, FullConfig):
        adapters.targets = ["all parameters"]
        return {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    if isinstance(config, BitFitConfig):
        biases = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2].endswith("bias") and p.ndim == 1}
        if not biases:
            raise RepLoRAError(f"bitfit: {type(model).__name__} has no bias vectors, so there is nothing to train.")
        adapters.targets = ["all biases"]
        return {id(p) for p in biases.values()}
    if isinstance(config, LinearProbeConfig):
        if not heads:
            raise RepLoRAError("linear_probe trains the head alone: name it, as in also_train=['head'].")
        return set()
    if isinstance(config, PeftConfig):
        from replora.adapters.baselines import inject_peft

        return inject_peft(model, adapters, config, find_targets(model, config.targets, config.blocks, skip=heads))
    raise RepLoRAError(f"{type(config).__name__} is not a method that inject knows. {nearest('', _METHODS)}")


_METHODS = ["RepLoRAConfig", "FullConfig", "LinearProbeConfig", "BitFitConfig", "PeftConfig"]


def _add_low_rank_updates(model: nn.Module, adapters: Adapters, config: RepLoRAConfig, targets: list[Target]) -> None:
    """Wrap the targets, with one factor bank for all groups of the same shapes."""
    groups: dict[str, list[Target]] = {}
    for target in targets:
        key = target.group if config.sharing == "group" else target.name
        groups.setdefault(key, []).append(target)
    buckets: dict[tuple[Any, ...], list[list[Target]]] = {}
    for members in groups.values():
        kind = tuple((t.role if config.sharing == "group" else "", *t.shape) for t in members)
        buckets.setdefault(kind, []).append(members)

    views: dict[tuple[str, str], list[tuple[Target, FactorView]]] = {}
    for members_of_groups in buckets.values():
        bank = build_factors(config, len(members_of_groups), [target.shape for target in members_of_groups[0]])
        adapters.banks.append(bank)
        for group, members in enumerate(members_of_groups):
            for slot, target in enumerate(members):
                view = FactorView(bank, group, slot, target.rows)
                views.setdefault((target.module, target.attribute), []).append((target, view))

    # A module may have several names in a model; each of them must lead to what is adapted.
    aliases: dict[int, list[str]] = {}
    for alias, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(alias)
    for (name, attribute), pairs in views.items():
        module, names = model.get_submodule(name), [target.name for target, _ in pairs]
        if isinstance(module, nn.Linear):
            adapted: nn.Module = AdaptedLinear(module)
            for alias in aliases[id(module)]:
                model.set_submodule(alias, adapted)
            owner: nn.Module = module
        elif type(module) in (nn.MultiheadAttention, AdaptedMultiheadAttention):
            if config.dropout > 0:
                raise RepLoRAError(
                    f"dropout: {config.dropout} is not possible on {', '.join(names)}: nn.MultiheadAttention reads its "
                    "weights instead of calling a layer, so there is no input to drop elements of. Set dropout to 0."
                )
            if type(module) is nn.MultiheadAttention:
                module.__class__ = AdaptedMultiheadAttention
                module.updates = []  # type: ignore[assignment]
            adapted = owner = module
        else:
            raise RepLoRAError(
                f"{name} is a {type(module).__name__}, a subclass of nn.MultiheadAttention that is not known."
            )
        update = WeightUpdate(owner, attribute, names, [view for _, view in pairs], config.scale, config.dropout)
        adapted.updates.append(update)  # type: ignore[union-attr, operator]
        adapters.updates.append(update)
    # The factors live where the first layer computes; they stay in float32 on a 16-bit backbone.
    adapters.banks.to(device_of(adapters.updates[0]))
    adapters.targets = [target.name for target in targets]


def device_of(update: WeightUpdate) -> torch.device:
    """Where a layer computes: the place of its weight, or the one to which accelerate's device map fetches it."""
    execution = getattr(getattr(update.owner, "_hf_hook", None), "execution_device", None)
    if update.base.is_meta and execution is not None:
        return torch.device(execution)
    return update.base.device


def _frozen_batch_norms(model: nn.Module) -> list[nn.Module]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if not any(p.requires_grad for p in norm.parameters())]
