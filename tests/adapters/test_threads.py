"""Several threads use one model at the same time: each sees what it would see alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Barrier

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import replora
from tests.adapters.test_contract import METHODS, adapted, build, disturb
from tests.adapters.tiny_models import call

FAMILIES = ["timm_vit", "timm_beit", "torch_encoder", "hf_llama"]


PEFT = {
    name: replora.PeftMethodConfig(name, rank=2)
    for name in ("dora", "lora", "ia3", "oft", "boft", "loha", "lokr", "hra")
}
PAIRS = [(name, method) for name in FAMILIES for method in ("replora", "lora")]
PAIRS += [("timm_vit", "dora"), ("hf_llama", "dora")]  # peft adapts layers that are called


def in_threads(work: Callable[[int], list[torch.Tensor]], threads: int = 4) -> list[torch.Tensor]:
    with ThreadPoolExecutor(threads) as pool:
        return [result for results in pool.map(work, range(threads)) for result in results]


@pytest.mark.parametrize("method", ["replora", "lora", "dora"])
@pytest.mark.parametrize("model_name", ["timm_vit", "hf_llama"])
def test_each_may_merge(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    inputs = tiny.inputs()
    with torch.no_grad():
        want, before = call(model, inputs), {n: p.clone() for n, p in model.named_parameters()}

    def work(_: int) -> list[torch.Tensor]:
        outputs = []
        for _ in range(8):
            with torch.no_grad(), replora.merged(model):
                outputs.append(call(model, inputs))
        return outputs

    for output in in_threads(work):
        torch.testing.assert_close(output, want, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_one_may_merge_while_another_runs(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    inputs = tiny.inputs()
    with torch.no_grad():
        want = call(model, inputs)

    def work(number: int) -> list[torch.Tensor]:
        outputs = []
        for _ in range(20):
            with torch.no_grad(), nullcontext() if number % 2 else replora.merged(model):
                outputs.append(call(model, inputs))
        return outputs

    for output in in_threads(work):
        torch.testing.assert_close(output, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [replora.merge, replora.unmerge])
@pytest.mark.parametrize("method", ["replora", "lora"])
@pytest.mark.parametrize("model_name", ["timm_vit", "hf_llama"])
def test_a_layer_that_runs_while_another_thread_merges_runs_again(model_name: str, method: str, change) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    owners = [update.owner for update in model.replora.updates]
    pending = iter(owners[::2])

    def between(*_: object) -> None:
        """After the layer has seen whether it is merged, and before it reads its weight."""
        if next(pending, None) is not None:
            in_threads(lambda _: [change(model) and torch.zeros(1)], 1)

    with torch.no_grad():
        want = call(model, tiny.inputs())
        if change is replora.unmerge:
            replora.merge(model)
        for owner in owners:
            owner.register_forward_pre_hook(between)
        torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_each_may_switch_the_adapter_off(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    inputs = tiny.inputs()
    contexts: list[Callable[[], AbstractContextManager]] = [nullcontext, lambda: replora.disabled(model)]
    with torch.no_grad():
        want = []
        for context in contexts:
            with context():
                want.append(call(model, inputs))
    assert not torch.allclose(*want, atol=1e-3)

    def work(number: int) -> list[torch.Tensor]:
        outputs = []
        for _ in range(8):
            with torch.no_grad(), contexts[number % 2]():
                outputs.append(call(model, inputs) - want[number % 2])
        return outputs

    for difference in in_threads(work):
        torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [None, False, True])  # without, the usual, the reentrant kind
@pytest.mark.parametrize("model_name", FAMILIES)
def test_one_that_evaluates_leaves_the_gradients_of_another_alone(model_name: str, checkpointing: bool | None) -> None:
    model, tiny = adapted(model_name, "replora")
    disturb(model)
    model.eval()
    inputs = tiny.inputs()
    if checkpointing is not None:
        for block in [m for m in model.modules() if type(m).__name__ in ("Block", "BeitBlock", "LlamaDecoderLayer")]:
            plain = block.forward
            block.forward = lambda *a, f=plain, **k: checkpoint(partial(f, **k), *a, use_reentrant=checkpointing)
    if checkpointing and isinstance(inputs, dict):
        model.enable_input_require_grads()
    elif checkpointing:
        inputs.requires_grad_()
    parameters = list(model.replora.parameters())

    def gradients() -> list[torch.Tensor]:
        for parameter in parameters:
            parameter.grad = None
        call(model, inputs).square().mean().backward()
        return [p.grad.clone() for p in parameters if p.grad is not None]

    want = gradients()

    def work(number: int) -> list[torch.Tensor]:
        differences = []
        for _ in range(5):
            if number == 0:
                differences += [(g - w).abs().max() for g, w in zip(gradients(), want, strict=True)]
            else:
                with torch.no_grad():
                    call(model, inputs)
        return differences

    assert max(in_threads(work)) < 1e-4


def test_a_model_in_a_block_of_another_thread_can_be_copied() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    want = call(model, tiny.inputs())

    def work(_: int) -> list[torch.Tensor]:
        twin: nn.Module = torch.load(_saved(model), weights_only=False)
        replora.unmerge(twin)
        return [call(twin, tiny.inputs())]

    with replora.merged(model):
        torch.testing.assert_close(in_threads(work, 1)[0], want)


def _saved(model: nn.Module):
    from io import BytesIO

    file = BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_one_may_fold_the_adapter_in_for_good_while_others_run(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    inputs = tiny.inputs()
    started = Barrier(4)

    def work(number: int) -> list[torch.Tensor]:
        outputs = []
        started.wait()
        for step in range(12):
            with torch.no_grad():
                outputs.append(call(model, inputs))
            if (number, step) == (0, 3):
                replora.merge_and_unload(model)
        return outputs

    with torch.no_grad():
        want = call(model, inputs)
    for output in in_threads(work):
        torch.testing.assert_close(output, want, rtol=1e-4, atol=1e-5)
    assert not any("replora" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("fold", [replora.merge, replora.unmerge, replora.merge_and_unload])
@pytest.mark.parametrize("method", ["replora", "lora", *PEFT])
@pytest.mark.parametrize("model_name", ["timm_vit", "torch_encoder"])
def test_a_pass_that_has_begun_ends_as_it_would_have(model_name: str, method: str, fold: Callable) -> None:
    """Another thread changes the model while this one is between its layers."""
    if model_name == "torch_encoder" and method in PEFT and method != "lora":
        pytest.skip("peft adapts layers that are called")
    model, tiny = build(model_name)
    config = METHODS[method] if method in ("replora", "lora") else PEFT[method]
    replora.inject(model, config, example=tiny.inputs())
    disturb(model)
    with torch.no_grad():
        want = call(model, tiny.inputs())
        if fold is replora.unmerge:
            replora.merge(model)

        def between(*_: object) -> None:
            hook.remove()
            in_threads(lambda _: [fold(model) and torch.zeros(1)], 1)

        inside = [module for name, module in model.named_modules() if name.endswith((".norm2", ".self_attn"))]
        hook = inside[0].register_forward_pre_hook(between)
        torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", PEFT)
def test_a_layer_of_peft_that_runs_while_another_thread_merges_runs_again(method: str) -> None:
    model, tiny = build("timm_vit")
    replora.inject(model, PEFT[method], example=tiny.inputs())
    disturb(model)
    with torch.no_grad():
        want = call(model, tiny.inputs())
        for change in (replora.merge, replora.unmerge):
            frozen = [block.attn.qkv.base_layer for block in model.blocks]
            pending = iter(frozen[::2])

            def between(*_: object, pending=pending, change=change) -> None:
                if next(pending, None) is not None:
                    in_threads(lambda _: [change(model) and torch.zeros(1)], 1)

            hooks = [layer.register_forward_pre_hook(between) for layer in frozen]
            torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-3, atol=1e-4)
            for hook in hooks:
                hook.remove()
