"""RepLoRA on the LoRA layers of the `peft` library: A and B are generated instead of being parameters.

    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    replora.reparameterize(model)
    ...                                          # Trainer, TRL, diffusers, accelerate, a loop of your own
    model.save_pretrained("adapter")             # plain LoRA, which needs no replora

RepLoRA says where A and B come from and nothing else, so all that `peft` does with them stays: the layers it knows,
quantized ones among them, its scale, dropout and DoRA, merging, switching, and the files.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from replora.adapters.config import Activation, Sharing
from replora.adapters.peft_lora.client import attach, detach
from replora.adapters.peft_lora.file import agreed_options, find_file, take_up
from replora.adapters.peft_lora.generators import (
    Reparameterized,
    generators_in,
    generators_of,
    host_of,
    reparameterized_in,
)
from replora.adapters.peft_lora.layers import lora_pairs
from replora.errors import check_arguments


@check_arguments
@torch.inference_mode(False)
def reparameterize(
    model: nn.Module,
    adapter_name: str = "default",
    *,
    hidden: int | None = None,
    activation: Activation = "tanh",
    sharing: Sharing = "group",
    scale_exponent: float = 0.5,
    generators: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Let the matrices A and B of a LoRA adapter of `peft` come from RepLoRA's generators, in place.

    The model's outputs stay as they are: an adapter that has not begun to train starts with an update of exactly 0 and
    with A in the scale that it had; for another one the generators are solved for, up to rounding. Call it before an
    optimizer is made.

    Args:
        model: A model with LoRA layers: a `PeftModel`, or one in which `add_adapter` of transformers or diffusers or
            `peft.inject_adapter_in_model` put them.
        adapter_name: Name of the adapter.
        hidden: Width h of the MLP's hidden layer (>= 1). Default: twice the rank of each layer. Below the rank it
            bounds the rank of the update.
        activation: The MLP's non-linearity; `identity` is the linear ablation.
        sharing: `group` shares the diagonals and the first layer among the layers of one attention module (or of one
            MLP) that have one rank; `none` gives each layer its own. `tied` gives those of one shape the same A and B,
            which `peft` goes on storing for every layer; an adapter that has begun to train must have them equal.
        scale_exponent: The generated factors are multiplied by hidden ** -scale_exponent, in [0, 1].
        generators: Folder that `save_pretrained` wrote, or the file of generators in it, to go on training with. By
            default, and where A and B of the adapter are not those of the file, the generators are solved for.

    Returns:
        The same model.

    Raises:
        RepLoRAError: The model has no such adapter, or a layer whose A and B cannot be generated; then nothing is
            changed.
    """
    host = host_of(model)
    present = reparameterized_in(host)
    pairs = lora_pairs(host, adapter_name)
    options: dict[str, Any] = {
        "hidden": hidden,
        "activation": activation,
        "sharing": sharing,
        "scale_exponent": scale_exponent,
    }
    file = find_file(generators) if generators is not None else None
    if file is not None:
        options = agreed_options(file, options)
    made = generators_of(pairs, options)
    if file is not None:
        take_up(made, file)
    made.install()
    if present is None:
        present = host.replora = Reparameterized()
        attach(host, present)
    present[adapter_name] = made
    return model


@check_arguments
def materialize(model: nn.Module, adapter_name: str = "default") -> nn.Module:
    """Let A and B of a reparameterized adapter be parameters again, with the values that they have, in place.

    What remains is the plain LoRA adapter of `peft`, without RepLoRA.

    Args:
        model: A model after `replora.reparameterize`.
        adapter_name: Name of the adapter.

    Returns:
        The same model.

    Raises:
        RepLoRAError: The adapter is not reparameterized.
    """
    host, made = host_of(model), generators_in(model, adapter_name, "materialize")
    made.settle()
    for pair in made.pairs():
        pair.keep()
    del host.replora[adapter_name]  # type: ignore[operator,union-attr]
    if not host.replora:
        detach(host)
    return model
