"""Make a model trainable by a method: find the targets, group them, wrap them, freeze the rest, verify that it works.

    model = replora.inject(model, replora.RepLoRAConfig(rank=8), also_train=["head"])

`inject` changes the model in place and registers one child module on it, `model.replora`, which holds the method, its
parameters and the list of what trains. The factors are produced by a hook at the start of the model's forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from replora.adapters.config import (
    AdapterConfig,
    BitFitConfig,
    FullConfig,
    LinearProbeConfig,
    PeftMethodConfig,
    RepLoRAConfig,
)
from replora.adapters.container import (
    Adapters,
    adapters_of,
    carried_by,
    device_of,
    leave_inference_mode,
    train_only,
)
from replora.adapters.fingerprint import describe_base, in_head
from replora.adapters.labels import match_classes
from replora.adapters.low_rank.factors import build_factors, check_some_are_tied
from replora.adapters.low_rank.frozen_layers import check_adaptable, check_trainable, stops_gradients
from replora.adapters.low_rank.layer import (
    AdaptedLinear,
    AdaptedMultiheadAttention,
    FactorView,
    WeightUpdate,
    is_linear,
)
from replora.adapters.peft_methods import inject_peft, remove_peft, unmerge_peft
from replora.adapters.targets import Target, find_targets
from replora.adapters.verify import verify_targets
from replora.adapters.weight_tying import check_not_tied
from replora.adapters.wrappers import aliases_of, is_wrapper, plain_name, unwrap
from replora.errors import RepLoRAError, check_arguments, nearest


@check_arguments
@torch.inference_mode(False)  # a tensor made under inference_mode could never train
def inject(
    model: nn.Module,
    config: AdapterConfig,
    *,
    also_train: Iterable[str] = (),
    modules_to_save: Iterable[str] | None = None,
    example: Any = None,
    check: bool = True,
) -> nn.Module:
    """Adapt `model` in place, freeze the rest and return it. Load pre-trained weights before, not after.

    Args:
        model: Any model with `nn.Linear`, transformers' `Conv1D` or `nn.MultiheadAttention`.
        config: The method: `RepLoRAConfig`, `LoRAConfig`, `FullConfig`, `LinearProbeConfig`, `BitFitConfig` or
            `PeftMethodConfig`.
        also_train: Names of submodules that train as a whole and are saved with the adapter, such as `("head",)`.
        modules_to_save: The same under its name in peft; both are taken together.
        example: Input that verifies that every target affects the output: a tensor, a tuple of arguments or a dict of
            keyword arguments. If None, timm and transformers models get a generated one, and other models are checked
            at their first forward pass.
        check: Whether to verify the targets. Turn it off for models that use only some targets in a forward pass.

    Raises:
        TargetNotFoundError: A target matches nothing.
        DeadTargetError: A target does not affect the output, or is read in a way that its options do not allow.
        RepLoRAError: The model carries an adapter already, or a name of `also_train` does not exist or shares its
            weight with a module that is frozen (an output layer tied to the embedding).
    """
    _inject(unwrap(_checked(model)), config, (*also_train, *(modules_to_save or ())), example, check)
    return model


def _checked(model: nn.Module) -> nn.Module:
    """The model, unless another adapter or a wrapper for distributed training is in the way.

    Raises:
        RepLoRAError: One is.
    """
    if isinstance(present := getattr(unwrap(model), "replora", None), Adapters):
        raise RepLoRAError(f"The model already carries {present.config.name!r}. Call replora.remove(model) first.")
    if isinstance(model, DistributedDataParallel):
        raise RepLoRAError("DistributedDataParallel knows only what it was made with. Inject into model.module first.")
    if lazy := next((name for name, p in model.named_parameters() if is_lazy(p)), None):
        raise RepLoRAError(f"{lazy} has no shape yet: its module is lazy. Run the model once before replora.inject.")
    if of_peft := next((type(m).__name__ for m in model.modules() if type(m).__module__.startswith("peft.")), None):
        raise RepLoRAError(
            f"The model carries an adapter of the peft library already ({of_peft}). Inject into the plain model: "
            "model = model.merge_and_unload() folds that adapter in, model.unload() takes it out. To train its LoRA "
            "layers with RepLoRA: replora.reparameterize(model)."
        )
    return model


def _inject(model: nn.Module, config: AdapterConfig, heads_to_train: Iterable[str], example: Any, check: bool) -> None:
    leave_inference_mode(model)
    also_train = tuple(dict.fromkeys(heads_to_train))
    heads = _submodules(model, also_train)
    also_train = tuple(name for name in also_train if not in_head(name, also_train))  # one inside another is in it
    check_not_tied(model, also_train)
    match_classes(model, also_train)
    head_tensors = {id(tensor) for head in heads for tensor in (*head.parameters(), *head.buffers())}
    adapters = Adapters(config)
    adapters.also_train = also_train
    adapters.base = describe_base(model, also_train)
    adapters.without_gradient = stops_gradients(model)
    adapters.required_grad = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    adapters.backbone_count = sum(p.numel() for p in model.parameters() if id(p) not in head_tensors)
    model.replora = adapters
    try:
        trained = head_tensors | _apply(model, adapters, heads)
        check_trainable(model, trained)
        for parameter in model.parameters():
            parameter.requires_grad = id(parameter) in trained
        tensors = (*model.named_parameters(), *model.named_buffers())
        adapters.trained = [plain_name(name) for name, tensor in tensors if id(tensor) in trained]
        adapters.head = [plain_name(name) for name, p in model.named_parameters() if id(p) in head_tensors]
        if not isinstance(config, FullConfig):
            adapters._frozen_norms = _frozen_batch_norms(model)
        adapters.hook_onto(model)
        adapters.targets_verified = not (check and isinstance(config, RepLoRAConfig | PeftMethodConfig))
        if not adapters.targets_verified and adapters.without_gradient is None:
            verify_targets(model, adapters, example)
    except BaseException:
        remove(model)
        raise


@check_arguments
@torch.inference_mode(False)
def remove(model: nn.Module) -> nn.Module:
    """Take the adapter out of `model` again: the frozen backbone as it was (a trained head stays trained)."""
    adapters, wrapped, model = adapters_of(model), model, unwrap(model)
    check_merged_in_place(model, adapters)
    adapters.unhook(model)
    for update in adapters.updates:
        update.unmerge()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedLinear):
            model.set_submodule(name, module.linear)
        elif type(module) is AdaptedMultiheadAttention:
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
            del module.updates
    if isinstance(adapters.config, PeftMethodConfig):
        if adapters.aside:  # none after `merge_and_unload`, which keeps what is merged
            unmerge_peft(model, adapters.aside)
        remove_peft(model)
    del model.replora
    train_only(model, adapters.required_grad)
    return wrapped


def check_merged_in_place(model: nn.Module, adapters: Adapters) -> None:
    """Refuse to unmerge if a program has replaced a merged layer.

    Raises:
        RepLoRAError: One has.
    """
    for update in adapters.updates:
        if update.aside is not None:
            update.aside.check_in_place(update.owner, ", ".join(update.names))
    for name, aside in adapters.aside.items():
        aside.check_in_place(model.get_submodule(name).get_base_layer(), name)  # type: ignore[operator]


@check_arguments
def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: matrices, and vectors (biases, norms, diagonals) without weight decay."""
    adapters = carried_by(model)
    vectors = {id(p) for bank in adapters.factor_banks() for p in bank.no_weight_decay()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in vectors]
    not_decayed = [p for p in trained if p.ndim <= 1 or id(p) in vectors]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": not_decayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def use_parameter_groups(trainer: Any) -> Any:
    """Let a Trainer of transformers decay what `parameter_groups` decays, and return it.

        trainer = replora.use_parameter_groups(Trainer(model, arguments, train_dataset=train_dataset))
        trainer.train()

    Its own rule goes by the names of parameters, so a `weight_decay` above 0 would pull RepLoRA's diagonals to 0. The
    optimizer, its options and the schedule stay those of the arguments.

    Args:
        trainer: A `transformers.Trainer`, or a subclass such as TRL's, with a model that carries an adapter.

    Raises:
        RepLoRAError: The model carries no adapter, or the trainer has an optimizer already.
    """
    if not isinstance(getattr(trainer, "model", None), nn.Module):
        raise RepLoRAError(
            f"use_parameter_groups takes a transformers.Trainer that has a model; this is a {type(trainer).__name__}. "
            "For a training loop of your own: torch.optim.AdamW(replora.parameter_groups(model))."
        )
    if getattr(trainer, "optimizer", None) is not None:
        raise RepLoRAError(
            "The trainer has an optimizer already, whose groups stay as they are. Create it with "
            "replora.parameter_groups(model), or leave it to the trainer: optimizers=(None, None)."
        )
    groups = parameter_groups(trainer.model)
    decayed = {id(p) for group in groups if "weight_decay" not in group for p in group["params"]}
    names = {plain_name(name) for name, p in unwrap(trainer.model).named_parameters() if id(p) in decayed}

    def get_decay_parameter_names(model: nn.Module) -> list[str]:
        every = [name for name, _ in model.named_parameters()]
        return [name for name in every if plain_name(name).removeprefix("module.") in names]

    trainer.get_decay_parameter_names = get_decay_parameter_names
    return trainer


def _submodules(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    known = {plain_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
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
        _add_low_rank_updates(model, adapters, config, _adaptable_targets(model, config, heads))
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
    if isinstance(config, PeftMethodConfig):
        return inject_peft(model, adapters, config, _adaptable_targets(model, config, heads))
    raise RepLoRAError(f"{type(config).__name__} is not a method that inject knows. {nearest('', _METHODS)}")


_METHODS = ["RepLoRAConfig", "LoRAConfig", "FullConfig", "LinearProbeConfig", "BitFitConfig", "PeftMethodConfig"]


def _adaptable_targets(
    model: nn.Module, config: RepLoRAConfig | PeftMethodConfig, heads: Sequence[nn.Module]
) -> list[Target]:
    targets = find_targets(model, config.targets, config.blocks, skip=heads)
    largest = max(max(target.shape) for target in targets)
    if config.rank > largest:
        raise RepLoRAError(f"rank: {config.rank} is out of range. The largest of the targets has {largest} dimensions.")
    for target in targets:
        module = model.get_submodule(target.module)
        if not is_wrapper(module):
            check_adaptable(module, target.attribute, target.name)
    return targets


def _add_low_rank_updates(model: nn.Module, adapters: Adapters, config: RepLoRAConfig, targets: list[Target]) -> None:
    """Wrap the targets, with one factor bank for all groups of the same shapes.

    Raises:
        RepLoRAError: `sharing: tied` has nothing to tie, or a target cannot be wrapped.
    """
    groups: dict[str, list[Target]] = {}
    for target in targets:
        key = target.name if config.sharing == "none" else target.group
        groups.setdefault(key, []).append(target)
    if tied := config.sharing == "tied":
        check_some_are_tied([(t.name, t.shape) for t in members] for members in groups.values())
    buckets: dict[tuple[Any, ...], list[list[Target]]] = {}
    for members in groups.values():
        kind = tuple(("" if config.sharing == "none" else t.role, *t.shape) for t in members)
        buckets.setdefault(kind, []).append(members)

    views: dict[tuple[str, str], list[tuple[Target, FactorView]]] = {}
    for members_of_groups in buckets.values():
        shapes = [target.shape for target in members_of_groups[0]]
        shapes = list(dict.fromkeys(shapes)) if tied else shapes
        bank = build_factors(config, len(members_of_groups), shapes)
        adapters.banks.append(bank)
        for group, members in enumerate(members_of_groups):
            for slot, target in enumerate(members):
                view = FactorView(bank, group, shapes.index(target.shape) if tied else slot, target.rows)
                views.setdefault((target.module, target.attribute), []).append((target, view))

    aliases = aliases_of(model)  # each of them must lead to what is adapted
    for (name, attribute), pairs in views.items():
        module, names = model.get_submodule(name), [target.name for target, _ in pairs]
        if is_linear(module):
            adapted: nn.Module = AdaptedLinear(module)
            for alias in aliases[id(module)]:
                model.set_submodule(alias, adapted)
        elif type(module) in (nn.MultiheadAttention, AdaptedMultiheadAttention):
            if config.dropout > 0:
                raise RepLoRAError(
                    f"dropout: {config.dropout} is not possible on {', '.join(names)}: nn.MultiheadAttention reads its "
                    "weights instead of calling a layer, so there is no input to drop elements of. Set dropout to 0."
                )
            if type(module) is nn.MultiheadAttention:
                module.__class__ = AdaptedMultiheadAttention
                module.updates = []  # type: ignore[assignment]
            adapted = module
        elif is_wrapper(module):
            raise RepLoRAError(f"{name} is compiled by itself. Call torch.compile after replora.inject.")
        else:
            raise RepLoRAError(
                f"{name} is a {type(module).__name__}, a subclass of nn.MultiheadAttention that is not known."
            )
        own = [view for _, view in pairs]
        update = WeightUpdate(adapted, attribute, names, own, config.scale, config.dropout, adapters.switch)
        adapted.updates.append(update)  # type: ignore[union-attr, operator]
        adapters.updates.append(update)
    # The factors live where the first layer computes; they stay in float32 on a 16-bit backbone.
    adapters.banks.to(device_of(adapters.updates[0]))
    adapters.targets = [target.name for target in targets]


def _frozen_batch_norms(model: nn.Module) -> list[nn.Module]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if not any(p.requires_grad for p in norm.parameters())]
