"""What `inject` adds to a model: the method, its parameters, the list of what trains, and what is asked of them."""

from __future__ import annotations

import warnings
from collections.abc import Container
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from replora.adapters.config import (
    AdapterConfig,
    PeftMethodConfig,
    RepLoRAConfig,
)
from replora.adapters.low_rank.factors import FactorBank
from replora.adapters.low_rank.frozen_layers import SetAside, check_not_merged
from replora.adapters.low_rank.layer import WeightUpdate
from replora.adapters.low_rank.threads import Lock, MergedBlocks, Switch
from replora.adapters.model_methods import replace_methods, restore_methods
from replora.adapters.peft_lora import summary
from replora.adapters.peft_lora.generators import Generators, Reparameterized
from replora.adapters.wrappers import check_not_replica, is_compiled, plain_name, unwrap
from replora.errors import RepLoRAError, check_arguments, listed


class Adapters(nn.Module):
    """What `inject` adds to a model, as its child `replora`.

    Attributes:
        config: The method and its options.
        banks: The factor banks, one for each shape of group; empty for methods without generated factors.
        generators: Those of the LoRA layers of `peft`, where the method reparameterizes them.
        updates: The updated weights, in the model's order.
        targets: Names of what is adapted.
        trained: Names, in the model, of every parameter and buffer that training changes.
        head: Names among `trained` that belong to the modules of `also_train`.
        also_train: Names of the modules that train as a whole.
        required_grad: Names of the parameters that required gradients before the injection.
        base: The frozen model: its class, name and a fingerprint of its weights.
        backbone_count: Parameters of the backbone, without head and adapter.
        trained_as: Method, options and parameter counts of the training, if the adapter was read from a deployed file.
        peft_called: Name of each layer of the `peft` library -> whether it has been called.
        aside: While a layer of the `peft` library is merged, by its name: its frozen parameters.
        blocks: The open `replora.merged`.
        targets_verified: Whether every target is known to affect the output.
        branches: Target -> name of the part of the model around it that a pass may leave out, as a tower of images.
        ran: Name of such a part -> whether a pass has run it.
        without_gradient: Name of a quantized layer that gives no gradient to its input, so the model cannot train.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.banks = nn.ModuleList()
        self.generators: Generators | None = None
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
        self.aside: dict[str, SetAside] = {}
        self.targets_verified = False
        self.branches: dict[str, str] = {}
        self.ran: dict[str, bool] = {}
        self._warned = False
        self.without_gradient: str | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._frozen_norms: list[nn.Module] = []
        self.switch = Switch()
        self.blocks = MergedBlocks()

    def forward(self, x: Any) -> Any:
        """The identity: a model that calls all of its children in turn, like `nn.Sequential`, calls this one too."""
        return x

    @property
    def lock(self) -> Lock:
        """Of merging and of switching off."""
        return self.switch.lock

    @property
    def merged(self) -> bool:
        """Whether the adapter is folded into the frozen weights."""
        return bool(self.aside) or any(update.merged for update in self.updates)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        if self.merged:
            check_not_merged()
        super()._load_from_state_dict(*arguments)

    def factor_banks(self) -> list[FactorBank]:
        of_peft = () if self.generators is None else self.generators.banks
        return [bank for bank in (*self.banks, *of_peft) if isinstance(bank, FactorBank)]

    def hook_onto(self, model: nn.Module) -> None:
        self._hooks.append(model.register_forward_pre_hook(self._before_forward))
        self._hooks.append(model.register_forward_hook(self._after_forward, always_call=True))
        replace_methods(model, self)

    def unhook(self, model: nn.Module) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        restore_methods(model)

    def _before_forward(self, model: nn.Module, _inputs: Any) -> None:
        if self.factor_banks():
            check_not_replica(model)
        if self.without_gradient and model.training and torch.is_grad_enabled():
            raise RepLoRAError(
                f"{self.without_gradient} is quantized such that it gives no gradient to its input, so nothing before "
                "it can train. Quantize the weights alone, as torchao's Int8WeightOnlyConfig does, or load the "
                "backbone in 16 or 32 bit; model.eval() uses the adapter as it is."
            )
        for norm in self._frozen_norms:
            norm.training = False  # a frozen batch norm keeps the statistics it was trained with
        if self.merged:
            if model.training and torch.is_grad_enabled():
                raise RepLoRAError(
                    "The adapter is merged into the backbone, so it cannot train. Call replora.unmerge first."
                )
            return
        if self.generators is not None:
            self.generators.settle()
        for bank in self.factor_banks():
            bank.open()

    def _after_forward(self, model: nn.Module, _inputs: Any, output: Any) -> None:
        for bank in self.factor_banks():
            bank.close()
        if (
            not self.targets_verified
            and output is not None
            and not torch.compiler.is_compiling()
            and not is_compiled(model)
        ):
            left_out = [name for name, branch in self.branches.items() if not self.ran[branch]]
            check_targets_used(self, left_out)
            self.targets_verified = not left_out
            if left_out and not self._warned:
                self._warned = True
                parts = sorted({self.branches[name] for name in left_out})
                warnings.warn(
                    f"{len(left_out)} of {len(self.targets)} targets are in {listed(parts)}, which this forward pass "
                    f"did not run: {listed(left_out)}. The first pass that does will verify them; if none does, they "
                    "do not train, so choose other targets then.",
                    stacklevel=2,
                )

    def watch(self, model: nn.Module, branches: dict[str, str]) -> None:
        """Note which of these parts of the model run, by the names of the targets inside of each."""
        self.branches, self.ran = branches, dict.fromkeys(branches.values(), False)
        for name, module in model.named_modules():
            if (plain := plain_name(name)) in self.ran:
                self._hooks.append(module.register_forward_hook(partial(_note_run, self.ran, plain)))


def _note_run(ran: dict[str, bool], name: str, *_: Any) -> None:
    ran[name] = True


@dataclass(frozen=True)
class ParameterCounts:
    """How many numbers there are, and how many a method trains and ships.

    Attributes:
        backbone: Parameters of the backbone, without head and adapter.
        adapter_trained: Parameters of the adapter during training (with RepLoRA's MLPs), or of the backbone where the
            method trains those. Without the head.
        adapter_deployed: What remains of them after training: A and B alone. Those that several targets have in
            common (`sharing: tied`) count once, as an adapter file stores them; layers of `peft` store and count their
            own.
        head: Parameters of the modules that train as a whole, such as the classifier.
    """

    backbone: int
    adapter_trained: int
    adapter_deployed: int
    head: int


def leave_inference_mode(model: nn.Module) -> None:
    """Let the tensors of a model that was built under inference_mode be ordinary ones."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_inference():
            copy = tensor.detach().clone()
            ordinary = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
            torch.utils.swap_tensors(tensor, ordinary)  # type: ignore[no-untyped-call]  # in all places that have it


def train_only(model: nn.Module, names: Container[str]) -> None:
    """Let the parameters of these names train and freeze all others."""
    leave_inference_mode(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = plain_name(name) in names


def adapters_of(model: nn.Module) -> Adapters:
    """What `inject` added to `model`.

    Raises:
        RepLoRAError: Nothing was injected.
    """
    adapters = carried_by(model)
    if isinstance(adapters, Reparameterized):
        raise RepLoRAError(summary.say_whose(adapters))
    return adapters


def carried_by(model: nn.Module) -> Adapters | Reparameterized:
    """What `inject` or `reparameterize` added to `model`.

    Raises:
        RepLoRAError: Neither added anything.
    """
    model = unwrap(model)
    carried = getattr(model, "replora", None)
    if isinstance(carried, Adapters | Reparameterized):
        return carried
    named = ((name, getattr(module, "replora", None)) for name, module in model.named_modules())
    inside = next((name for name, found in named if isinstance(found, Adapters | Reparameterized)), None)
    call = f"Its module {inside!r} does: pass that one." if inside else "Call replora.inject(model, config) first."
    raise RepLoRAError(f"This {type(model).__name__} carries no adapter. {call}")


@check_arguments
def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Trained and deployed numbers of the method that `model` carries, or of the adapter of `peft` that is in use."""
    adapters = carried_by(model)
    if isinstance(adapters, Reparameterized):
        return ParameterCounts(*summary.counts(adapters))
    parameters = {plain_name(name): p for name, p in unwrap(model).named_parameters()}
    head = sum(parameters[name].numel() for name in adapters.head)
    trained = sum(parameters[name].numel() for name in adapters.trained if name in parameters) - head
    banks = adapters.factor_banks()
    # What has no bank is deployed as it trains: free matrices of peft, DoRA's magnitudes.
    free = trained - sum(p.numel() for bank in banks for p in bank.parameters())
    made = 0 if adapters.generators is None else adapters.generators.deployed_count()
    deployed = free + made + sum(bank.deployed_count() for bank in adapters.banks if isinstance(bank, FactorBank))
    return ParameterCounts(adapters.backbone_count, trained, deployed, head)


class Description(TypedDict):
    """What `describe` returns: plain JSON data."""

    method: str  # short name, such as `replora`
    options: dict[str, Any]  # of the method's configuration
    targets: list[str]  # names of what is adapted; `targets` of a configuration takes them
    parameters: dict[str, int]  # `ParameterCounts`
    tied: NotRequired[list[list[str]]]  # of `sharing: tied`: the targets that have one A and B, each time
    trained_as: NotRequired[dict[str, Any]]  # of an adapter read from a deployed file: what trained


@check_arguments
def describe(model: nn.Module) -> Description:
    """The method, its options, its targets and the parameter counts, as plain JSON data.

    With `sharing: tied` also `tied`: which targets have the same A and B. For an adapter read from a deployed file also
    `trained_as`: method, options and parameter counts of its training.
    """
    adapters = carried_by(model)
    config: AdapterConfig
    if isinstance(adapters, Reparameterized):
        config = summary.config_of(adapters)
        targets = list(config.targets)
    else:
        config, targets = adapters.config, list(adapters.targets)
    description: Description = {
        "method": config.name,
        "options": options_of(config),
        "targets": targets,
        "parameters": asdict(parameter_counts(model)),
    }
    if description["options"].get("sharing") == "tied":
        description["tied"] = _tied_targets(adapters)
    if isinstance(adapters, Adapters) and adapters.trained_as:
        description["trained_as"] = adapters.trained_as
    return description


def _tied_targets(adapters: Adapters | Reparameterized) -> list[list[str]]:
    """The names of the targets that have one A and B, for each such pair of factors."""
    by_factors: dict[tuple[int, int, int], list[str]] = {}
    if isinstance(adapters, Reparameterized):
        generators: Generators | None = adapters.generators()[summary.active_adapter(adapters)]
    else:
        generators = adapters.generators
        for update in adapters.updates:
            for name, view in zip(update.names, update.views, strict=True):
                by_factors.setdefault((id(view.bank), view.group, view.slot), []).append(name)
    return [names for names in (*by_factors.values(), *(generators.tied() if generators else ())) if names[1:]]


def options_of(config: AdapterConfig) -> dict[str, Any]:
    """The options of a method as plain JSON data. Defaults that follow from other options are given as numbers."""
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    if isinstance(config, RepLoRAConfig) and config.factors != "none":
        options["hidden"] = config.width
    if isinstance(config, PeftMethodConfig):
        if not config.reparameterize:
            unused = {"reparameterize", *config.generator_options}
            return {name: value for name, value in options.items() if name not in unused}
        if not {"r", "rank_pattern"} & config.options.keys():
            options["hidden"] = config.hidden or 2 * config.rank
    return options


def device_of(update: WeightUpdate) -> torch.device:
    """Where a layer computes: the place of its weight, or the one to which accelerate's device map fetches it."""
    execution = getattr(getattr(update.owner, "_hf_hook", None), "execution_device", None)
    if update.base.is_meta and execution is not None:
        return torch.device(execution)
    return update.base.device


class DeadTargetError(RepLoRAError):
    """A target that does not affect the model's output, or not in the way its options require."""


def check_targets_used(adapters: Adapters, unreached: Container[str] = ()) -> None:
    """Refuse updates that a forward pass neither called nor read, and dropout where the weight is only read.

    Args:
        adapters: What `inject` added.
        unreached: Names of targets in parts of the model that the pass did not run; nothing is known of them.

    Raises:
        DeadTargetError: There is such a target.
    """
    unused = [name for update in adapters.updates if not (update.called or update.read) for name in update.names]
    unused += [name for name, called in adapters.peft_called.items() if not called]
    if unused := [name for name in unused if name not in unreached]:
        raise DeadTargetError(
            f"{len(unused)} of {len(adapters.targets)} targets were not used in the forward pass: {listed(unused)}. "
            "The model neither calls these layers nor reads their weight, so training would change nothing. Choose "
            "other targets, or pass check=False to replora.inject if the model uses only some layers in each pass."
        )
    read_only = [u for u in adapters.updates if u.dropout > 0 and u.read and not u.called]
    if read_only:
        names = [name for update in read_only for name in update.names]
        raise DeadTargetError(
            f"dropout: {read_only[0].dropout} is not possible on {listed(names)}: the model reads the weight of these "
            "layers instead of calling them, so there is no input to drop elements of. Set dropout to 0."
        )
