"""What stands around a model that carries an adapter, or around its layers: compilation and distribution.

`unwrap` leads to the model that `replora.inject` was given, `plain_name` to the names that it had then.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from replora.errors import RepLoRAError

# Wrapper class -> its attribute that holds the model. By name, so that none of these libraries is imported here.
_BY_NAME = {"OptimizedModule": "_orig_mod", "FullyShardedDataParallel": "module", "DeepSpeedEngine": "module"}
_INSIDE = re.compile(r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTSIDE = re.compile(r"^(module\.)+")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of torch.compile, DistributedDataParallel, AveragedModel, FSDP or DeepSpeed."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel | AveragedModel):
            model = model.module
        elif attribute := _BY_NAME.get(type(model).__name__):
            model = getattr(model, attribute)
        else:
            return model


def plain_name(name: str) -> str:
    """The name of a module or tensor without the parts that wrappers of layers put into it."""
    return _INSIDE.sub("", f"{name}.").removesuffix(".")


def aliases_of(model: nn.Module) -> dict[int, list[str]]:
    """All names of each module, by its identity: a model may use one module in several places."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def plain_keys(state: Mapping[str, Tensor], known: Container[str]) -> dict[str, Tensor]:
    """A state without the parts of its keys that wrappers put there; `known` are the names of the model itself."""
    plain = {plain_name(key): tensor for key, tensor in state.items()}
    return {key if key in known else _OUTSIDE.sub("", key): tensor for key, tensor in plain.items()}


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is that of torch.compile around another one."""
    return type(module).__name__ == "OptimizedModule"


def check_not_replica(model: nn.Module) -> None:
    """Refuse the copies that `nn.DataParallel` makes of a model with generated factors.

    Raises:
        RepLoRAError: The model is one.
    """
    if getattr(model, "_is_replica", False):
        raise RepLoRAError(
            "nn.DataParallel runs copies of the model, which would all read the factors of the first device. Start one "
            "process for each GPU, with DistributedDataParallel (torchrun, accelerate launch, or Lightning's strategy: "
            "ddp), or let this one see a single GPU: CUDA_VISIBLE_DEVICES=0."
        )


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is one process's share of another one, a DTensor of torch, whose module takes long to import."""
    return type(tensor).__name__ == "DTensor"


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP or DeepSpeed's ZeRO-3 shares out the weights, so that one process alone cannot read them."""
    return any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()) or any(
        hasattr(p, "ds_id") or is_share(p) for p in model.parameters()
    )


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a layer of it runs compiled, so that its Python code does not run in each pass."""
    return any(is_wrapper(m) or m._compiled_call_impl is not None for m in model.modules())
