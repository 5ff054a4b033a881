"""Other methods through the `peft` library (DoRA, (IA)^3, OFT ...), injected into the model in place."""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from replora.adapters.config import PeftMethodConfig
from replora.adapters.container import Adapters
from replora.adapters.low_rank.frozen_layers import SetAside, check_finite, computes_by_weight, take_base_names
from replora.adapters.low_rank.layer import is_conv1d
from replora.adapters.low_rank.threads import Switch
from replora.adapters.peft_lora.generators import generators_of
from replora.adapters.peft_lora.layers import lora_pairs
from replora.adapters.targets import Target
from replora.adapters.wrappers import aliases_of, is_wrapper, plain_name
from replora.errors import RepLoRAError, nearest

# Method -> (config class in peft, our option -> its argument)
_LORA = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "lora": ("LoraConfig", _LORA),
    "dora": ("LoraConfig", _LORA),
    "ia3": ("IA3Config", {}),
    "oft": ("OFTConfig", {"dropout": "module_dropout"}),
    "boft": ("BOFTConfig", {"dropout": "boft_dropout"}),
    "loha": ("LoHaConfig", {"rank": "r", "alpha": "alpha", "dropout": "module_dropout"}),
    "lokr": ("LoKrConfig", {"rank": "r", "alpha": "alpha", "dropout": "module_dropout"}),
    "hra": ("HRAConfig", {"rank": "r"}),
}


_BY_WEIGHT = ("hra", "boft")  # do not call the frozen layer, but compute with its weight
MULTIPLYING = ("ia3", "oft")  # change the input or the output of the layer, and add nothing to it


def inject_peft(model: nn.Module, adapters: Adapters, config: PeftMethodConfig, targets: list[Target]) -> set[int]:
    """Let `peft` adapt the modules of `targets`, and return the identities of the tensors that it added.

    Raises:
        RepLoRAError: `peft` is missing, an option is unknown to the method, or it cannot adapt such a module.
    """
    try:
        import peft
    except ImportError as error:
        raise RepLoRAError(
            f"{config.method!r} comes from the peft library, which is not installed: pip install peft"
        ) from error
    attention = [t.name for t in targets if isinstance(model.get_submodule(t.module), nn.MultiheadAttention)]
    if attention:
        raise RepLoRAError(
            f"{config.method}: peft cannot adapt the projections of nn.MultiheadAttention one by one ({attention[0]}, "
            "...). RepLoRAConfig can, with factors mlp, linear or none."
        )
    layers = {target.module: model.get_submodule(target.module) for target in targets}
    offloaded = [n for n, m in layers.items() if cast(Tensor, m.weight).is_meta and hasattr(m, "_hf_hook")]
    if offloaded:
        raise RepLoRAError(
            f"{config.method}: peft cannot train on {offloaded[0]}, which a device map offloads: its matrices would "
            "have no values there. Load the backbone without offloading; RepLoRAConfig trains on offloaded layers too."
        )
    odd = [name for name, layer in layers.items() if config.method in _BY_WEIGHT and not computes_by_weight(layer)]
    if odd:
        raise RepLoRAError(
            f"{config.method}: peft takes {odd[0]} for an nn.Linear, but it is a {type(layers[odd[0]]).__name__}, "
            "which computes something else. Choose a method that calls the layer as it is, such as dora."
        )
    before = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    aliases = aliases_of(model)
    modules = list(layers)
    real = {plain_name(name): name for name, module in model.named_modules() if not is_wrapper(module)}
    own = peft_config(config, [real[name] for name in modules], transposed=any(map(is_conv1d, layers.values())))
    try:
        peft.inject_adapter_in_model(own, model)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RepLoRAError(f"{config.method}: peft refuses: {error}") from error
    del model.peft_config  # that of this adapter, and of no later one
    added = [p for p in model.parameters() if id(p) not in before]
    for parameter in added:
        if parameter.requires_grad and parameter.is_floating_point() and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()
    if config.reparameterize:
        adapters.generators = generators_of(lora_pairs(model, "default"), config.generator_options)
        adapters.generators.install()
        added = [p for p in model.parameters() if id(p) not in before]
    found = peft_layers(model)
    names = [plain_name(name) for name in found]
    adapters.targets = [name for name in modules if name in names]  # `options` may leave some out, or name others
    adapters.targets += [name for name in names if name not in modules]
    for name, layer in found.items():
        for alias in aliases[id(layer.get_base_layer())]:  # peft knows only the first name of a layer
            model.set_submodule(alias, layer)
        adapters.peft_called[name] = False
        layer.train(layer.get_base_layer().training)
        layer.forward = partial(_forward, layer, adapters.switch)
        layer._replicate_for_data_parallel = partial(_replicate, layer, adapters.switch)
        layer.register_load_state_dict_pre_hook(_take_base_names)
        layer.register_forward_pre_hook(partial(_note_call, adapters.peft_called, name))
    kept = [p for p in added if p.requires_grad] + [b for b in model.buffers() if id(b) not in before]
    return {id(tensor) for tensor in kept}


def _forward(layer: Any, switch: Switch, *args: Any, **options: Any) -> Any:
    """What a layer of `peft` computes while none is merged or unmerged; the frozen layer alone where it is disabled."""
    if not switch.on:
        return layer.get_base_layer()(*args, **options)
    return switch.steadily(partial(type(layer).forward, layer, *args, **options))


def _replicate(layer: Any, switch: Switch) -> Any:
    """The copy that `nn.DataParallel` makes for a device, which computes with its own tensors."""
    replica = type(layer)._replicate_for_data_parallel(layer)
    replica.forward = partial(_forward, replica, switch)
    return replica


def _take_base_names(_layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    take_base_names(state, prefix, "base_layer")


def _note_call(called: dict[str, bool], name: str, _layer: nn.Module, _inputs: Any) -> None:
    called[name] = True


def peft_layers(model: nn.Module, *, aliases: bool = False) -> dict[str, Any]:
    """The layers that `peft` put into the model, by name; with `aliases`, by each of the names that one may have."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = model.named_modules(remove_duplicate=not aliases)
    return {name: module for name, module in modules if isinstance(module, BaseTunerLayer)}


def peft_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each of those layers."""
    layers = peft_layers(model)
    return {name: [p for p in layer.parameters() if p.requires_grad] for name, layer in layers.items()}


def merge_peft(model: nn.Module, aside: dict[str, SetAside], force: bool = False) -> None:
    """Let the layers of `peft` fold their updates in.

    `peft` changes the frozen parameters themselves. The layer gets copies of them first, and the frozen ones are kept
    in `aside`, by the layer's name: to be put back bit for bit, and because another module may share them.
    """
    for name, layer in peft_layers(model).items():
        if layer.merged:
            continue
        base = layer.get_base_layer()
        frozen = {key: p for key, p in base._parameters.items() if p is not None}
        aside[name] = SetAside(base, frozen)
        for key, parameter in frozen.items():
            base._parameters[key] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        try:
            layer.merge()
        except (RuntimeError, ValueError) as error:
            raise RepLoRAError(f"{name}: peft cannot merge it: {error}") from error
        if not force:
            check_finite(base.weight, frozen["weight"], name)


def unmerge_peft(model: nn.Module, aside: dict[str, SetAside]) -> None:
    """Take the updates out again: what `merge_peft` kept is put back."""
    for name, layer in peft_layers(model).items():
        if layer.merged:
            layer.unmerge()
        if name in aside:
            aside.pop(name).put_back()


def remove_peft(model: nn.Module) -> None:
    """Put the frozen layers back where `peft` wrapped them."""
    for name, layer in peft_layers(model, aliases=True).items():
        model.set_submodule(name, layer.get_base_layer())


def peft_config(config: PeftMethodConfig, modules: list[str], *, transposed: bool) -> Any:
    """The configuration of `config` in `peft`, for exactly the modules of these names.

    Args:
        config: The method.
        modules: Names of the modules.
        transposed: Whether there is a `Conv1D` of transformers among them, whose weight is (in, out).
    """
    import peft

    class_name, argument = _CLASSES[config.method]
    cls = getattr(peft, class_name)
    values = {"rank": config.rank, "alpha": config.alpha or config.rank, "dropout": config.dropout}
    arguments: dict[str, Any] = {argument[option]: value for option, value in values.items() if option in argument}
    if config.method == "dora":
        arguments["use_dora"] = True
    if config.method == "ia3":
        arguments["feedforward_modules"] = []
    known = inspect.signature(cls).parameters
    for option in config.options:
        if option not in known:
            raise RepLoRAError(f"options: {class_name} of peft has no {option!r}. {nearest(option, known)}")
    if transposed and "fan_in_fan_out" in known:
        arguments["fan_in_fan_out"] = True
    # One regular expression that matches these full names and nothing else.
    arguments["target_modules"] = "|".join(re.escape(name) for name in modules)
    try:
        return cls(**arguments | config.options)
    except (TypeError, ValueError) as error:
        raise RepLoRAError(f"options: {class_name} of peft refuses {config.options}: {error}") from error
