"""Verify that every target affects the output, so that no adapter is silently without effect.

Some modules hold a projection that their code does not call. With an example input the check is exact: the
derivative of a random combination of the outputs with respect to B of each target must not be 0. Without one, the first
forward pass of the model must at least call each adapted module or read its weight.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from replora.adapters.config import PeftMethodConfig
from replora.adapters.container import Adapters, DeadTargetError, check_targets_used
from replora.adapters.low_rank.frozen_layers import is_tensor_subclass
from replora.adapters.low_rank.layer import FactorView
from replora.adapters.peft_lora.matrices import Matrix
from replora.adapters.peft_methods import peft_parameters
from replora.adapters.wrappers import plain_name
from replora.errors import listed


def verify_targets(model: nn.Module, adapters: Adapters, example: Any = None) -> None:
    """Verify with `example`, or with an input generated for a timm or transformers model, else at the first pass.

    Raises:
        DeadTargetError: A target does not affect the output.
    """
    given = example is not None
    towers = _towers(model, adapters)
    if not given:
        example = example_input(model)
    if example is None or any(p.is_meta for p in model.parameters()):
        adapters.watch(model, towers)
        return
    adapters.targets_verified = True  # this pass is the exact check: the one at the first forward pass would say less
    with _evaluating(model), _without_zeros(model, adapters), torch.enable_grad(), _uncompiled():
        try:
            names = {*map(_parent_of, adapters.targets), *towers.values()}
            with _called(model, names) as called, _factors_apart(adapters) as factors:
                outputs = list(_float_tensors(_call(model, _to_device_of(model, example))))
        except Exception as error:
            adapters.targets_verified = False
            if given:
                raise DeadTargetError(
                    f"The model fails on the example input, so the targets cannot be verified: {error}"
                ) from error
            adapters.watch(model, towers)
            return  # a generated input that the model does not accept verifies nothing
        # A generated text does not run the vision tower of a multimodal model: a real pass tells about that.
        unreached = set() if given else {name for name in adapters.targets if _parent_of(name) not in called}
        adapters.targets_verified = not unreached
        left_out = {name: towers.get(name, "") for name in unreached}
        adapters.watch(model, {n: _parent_of(n) if tower in {"", *called} else tower for n, tower in left_out.items()})
        check_targets_used(adapters, unreached)
        generator = torch.Generator().manual_seed(0)
        # 64 times the derivative: small ones would be lost in float16.
        total = 64 * sum((o.float() * torch.randn(o.shape, generator=generator).to(o.device)).sum() for o in outputs)
        dead = (
            _without_gradient(model, adapters, factors, total)
            if isinstance(total, Tensor) and total.requires_grad
            else adapters.targets
        )
    if dead := [name for name in dead if name not in unreached]:
        raise DeadTargetError(
            f"{len(dead)} of {len(adapters.targets)} targets do not affect the output of {type(model).__name__}: "
            f"{listed(dead)}. Its code does not use these layers as given, so training would change nothing. "
            "Choose other targets."
        )


def _parent_of(target: str) -> str:
    """Name of the module that holds the layer of a target such as `blocks.0.attn.qkv[q]`."""
    return target.partition("[")[0].rpartition(".")[0]


def _towers(model: nn.Module, adapters: Adapters) -> dict[str, str]:
    """Target -> name of the innermost model of transformers or timm around it, if it is a part of `model`."""
    whole = {
        plain_name(name)
        for name, module in model.named_modules()
        if name and (hasattr(module, "main_input_name") or hasattr(module, "pretrained_cfg"))
    }
    towers = {}
    for target in adapters.targets:
        place = _parent_of(target)
        while place and place not in whole:
            place = place.rpartition(".")[0]
        if place:
            towers[target] = place
    return towers


@contextmanager
def _called(model: nn.Module, names: Container[str]) -> Iterator[set[str]]:
    """Collects which of the modules of these names are called inside."""
    called: set[str] = set()
    hooks = []
    for name, module in model.named_modules():
        if (plain := plain_name(name)) in names:
            hooks.append(module.register_forward_hook(lambda *_, plain=plain: called.add(plain)))
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def outputs_on_example(model: nn.Module, example: Any = None) -> list[Tensor] | None:
    """The model's outputs in evaluation mode, on `example` or an input made for it; None if there is none it takes."""
    given = example is not None
    example = example if given else example_input(model)
    if example is None:
        return None
    with _evaluating(model), _uncompiled(), nullcontext() if given else _unchecked(model):
        try:
            return list(_float_tensors(_call(model, _to_device_of(model, example))))
        except Exception:
            if given:
                raise
            return None


def example_input(model: nn.Module) -> Any:
    """A small input for a model of a known library, or None.

    `dummy_inputs` of transformers, an image for timm, a clip for torchvision's Video Swin; a model may also say itself,
    by a method `example_input`.
    """
    if callable(own := getattr(model, "example_input", None)):
        return own()
    generator = torch.Generator().manual_seed(0)
    if patch := getattr(getattr(model, "patch_embed", None), "tuple_patch_size", None):
        # Two tokens in each direction are left in the last stage; with one, queries would not matter.
        side = 2 * 2 ** sum(hasattr(module, "reduction") for module in model.modules())
        return torch.randn((1, 3, 2 * patch[0], side * patch[1], side * patch[2]), generator=generator)
    wants = getattr(model, "main_input_name", "")
    config = getattr(model, "config", None)
    if wants == "pixel_values" and (size := getattr(config, "image_size", None)) is not None:
        assert config is not None
        frames = [config.num_frames] if hasattr(config, "num_frames") else []
        shape = (1, *frames, config.num_channels, *((size, size) if isinstance(size, int) else size))
        return {"pixel_values": torch.randn(shape, generator=generator)}
    if wants == "input_ids":
        return getattr(model, "dummy_inputs", None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None:
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[1:]
    if size:
        stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        return torch.randn((1, stem.in_channels if stem else 3, *size), generator=generator)
    return None


@contextmanager
def _factors_apart(adapters: Adapters) -> Iterator[dict[str, list[Tensor]]]:
    """Collects every B that a target computes with inside, by the target's name.

    Each is a tensor of its own also where targets have one B in common: the derivative of that is a sum over them.
    """
    found: dict[str, list[Tensor]] = {}

    def apart(name: str, B: Tensor) -> Tensor:
        B = B.view_as(B)
        found.setdefault(name, []).append(B)
        return B

    def factors(name: str, view: FactorView, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        A, B = FactorView.factors(view, dtype)
        return A, apart(name, B)

    def value(name: str, matrix: Matrix) -> Tensor:
        return apart(name, Matrix.value(matrix))

    with ExitStack() as stack:
        for update in adapters.updates:
            for name, view in zip(update.names, update.views, strict=True):
                view.factors = partial(factors, name, view)  # type: ignore[method-assign]
                stack.callback(delattr, view, "factors")
        if adapters.generators is not None:
            for pair, matrix in zip(adapters.generators.pairs(), adapters.generators.seconds(), strict=True):
                matrix.value = partial(value, pair.name, matrix)  # type: ignore[method-assign]
                stack.callback(delattr, matrix, "value")
        yield found


def _without_gradient(
    model: nn.Module, adapters: Adapters, factors: Mapping[str, Sequence[Tensor]], total: Tensor
) -> list[str]:
    """Names of the targets for which d total / d B is 0."""
    if not adapters.factor_banks():
        owned = peft_parameters(model)
        flat = [p for parameters in owned.values() for p in parameters]
        moved = {id(p) for p, g in zip(flat, _gradients(total, flat), strict=True) if g is not None and bool(g.any())}
        return [name for name, parameters in owned.items() if not any(id(p) in moved for p in parameters)]
    used = [(name, B) for name, tensors in factors.items() for B in tensors if B.requires_grad]
    gradients = _gradients(total, [B for _, B in used])
    alive = {name for (name, _), g in zip(used, gradients, strict=True) if g is not None and bool(g.any())}
    return [name for name in adapters.targets if name not in alive]


def _gradients(total: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(total, tensors, allow_unused=True)


@contextmanager
def _unchecked(model: nn.Module) -> Iterator[None]:
    """Inside, a pass need not use all targets: a generated input may not reach them."""
    adapters = getattr(model, "replora", None)
    if not isinstance(adapters, Adapters):
        yield
        return
    verified, adapters.targets_verified = adapters.targets_verified, True
    try:
        yield
    finally:
        adapters.targets_verified = verified


def _uncompiled() -> AbstractContextManager[Any]:
    """Layers that are compiled run their Python code, which notes what is called and read."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train()  # attentions of timm forget what they have computed in evaluation mode from other values
        for module, mode in modes:
            module.training = mode


@contextmanager
def _without_zeros(model: nn.Module, adapters: Adapters) -> Iterator[None]:
    """Random numbers inside, in place of frozen tensors that are all 0: they would hide what lies behind them.

    Heads, and the last norm of a residual branch, often start at 0 in a model that is not trained yet.
    """
    own = {id(p) for p in adapters.parameters()}
    if isinstance(adapters.config, PeftMethodConfig):
        own |= {id(p) for parameters in peft_parameters(model).values() for p in parameters}
    plain = [p for p in model.parameters() if p.is_floating_point() and not is_tensor_subclass(p)]
    zeros = [p for p in plain if id(p) not in own and not bool(p.any())]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in zeros:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple):
        return model(*example)
    return model(example)


def _to_device_of(model: nn.Module, example: Any) -> Any:
    """The example on the model's device, its floating tensors in the dtype of the model's first floating parameter."""
    reference = next(p for p in model.parameters() if p.is_floating_point())

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(reference.device, reference.dtype if value.is_floating_point() else None)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        return tuple(map(move, value)) if isinstance(value, tuple) else value

    return move(example)


def _float_tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _float_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _float_tensors(value)
