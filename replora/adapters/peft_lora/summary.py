"""What a model after `replora.reparameterize` carries, in the words that describe an injected adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from replora.adapters.config import PeftMethodConfig
from replora.adapters.peft_lora.client import is_peft_model
from replora.adapters.peft_lora.generators import Reparameterized
from replora.errors import RepLoRAError, listed

# Entries of a configuration of `peft` that are other options of `PeftMethodConfig`, or no options of the method.
_SAID = {"r", "lora_alpha", "lora_dropout", "use_dora", "target_modules", "exclude_modules", "modules_to_save"}
_SAID |= {"fan_in_fan_out", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
_SAID |= {"inference_mode"}


def active_adapter(present: Reparameterized) -> str:
    """Name of the reparameterized adapter that is in use.

    Raises:
        RepLoRAError: None is, or more than one.
    """
    known = present.generators()
    active = [name for name, one in known.items() if name in next(one.pairs()).layer.active_adapters]
    if len(active) != 1:
        found = f"{' and '.join(active)} are in use at once" if active else "none of them is in use"
        raise RepLoRAError(
            f"The model has reparameterized adapters ({listed(list(known))}), and {found}. Choose one: "
            f"model.set_adapter({(active or list(known))[0]!r})."
        )
    return active[0]


def say_whose(present: Reparameterized) -> str:
    """To whom such a model's adapter belongs, and what to call instead of a function that knows injected ones alone."""
    own = "disable_adapters, set_adapter, delete_adapter, and in diffusers fuse_lora"
    if is_peft_model(present.host[0]):
        own = "merge_adapter, unmerge_adapter, merge_and_unload, disable_adapter, set_adapter, delete_adapter"
    return (
        "The adapter of this model is one of peft, whose A and B replora.reparameterize generates. Use the model's own "
        f"methods: save_pretrained, {own}. replora.materialize makes A and B parameters again. Of this package also "
        "describe, parameter_counts and parameter_groups know it."
    )


def config_of(present: Reparameterized) -> PeftMethodConfig:
    """The method by which `replora.inject` would make the adapter in use."""
    name = active_adapter(present)
    host: Any = present.host[0]
    generators, own = present.generators()[name], host.peft_config[name]
    plain = type(own)().to_dict()
    changed = {key: value for key, value in own.to_dict().items() if value != plain.get(key)}
    options = {key: _plain(value) for key, value in changed.items() if key not in _SAID}
    return PeftMethodConfig(
        method="dora" if own.use_dora else "lora",
        rank=own.r,
        alpha=own.lora_alpha,
        dropout=own.lora_dropout,
        targets=[pair.name.removeprefix("base_model.model.") for pair in generators.pairs()],
        options=options,
        reparameterize=True,
        **generators.options,
    )


def counts(present: Reparameterized) -> tuple[int, int, int, int]:
    """Parameters of the backbone; of the adapter in use while it trains, and after; of the modules that it saves."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # slow, and only here
    from peft.utils.other import ModulesToSaveWrapper

    name, host = active_adapter(present), present.host[0]
    generators = present.generators()[name]
    added, head, kept = ["replora."], set[nn.Parameter](), set[nn.Parameter]()
    for place, module in host.named_modules(remove_duplicate=False):
        if isinstance(module, ModulesToSaveWrapper):
            added.append(f"{place}.")
            head |= set(module.modules_to_save[name].parameters()) if name in module.modules_to_save else set()
        elif isinstance(module, BaseTunerLayer):
            own = {n: p for n, p in module.named_parameters() if not n.startswith("base_layer.")}
            added += [f"{place}.{n}" for n in own]
            kept |= {p for n, p in own.items() if name in n.split(".")}  # biases of B, DoRA's magnitudes
    named = host.named_parameters(remove_duplicate=False)
    backbone = {p for n, p in named if not n.startswith(tuple(added))}
    kept |= {p for p in backbone if p.requires_grad}  # biases of the backbone, where the configuration trains them
    beside = _size(kept)
    trained = _size(set(generators.parameters())) + beside
    return _size(backbone), trained, generators.deployed_count() + beside, _size(head)


def _size(parameters: set[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
