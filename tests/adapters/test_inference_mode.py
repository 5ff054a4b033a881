"""What is done under `torch.inference_mode` leaves nothing behind that could not train afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import replora
from tests.adapters.test_contract import METHODS, adapted, build, disturb, train
from tests.adapters.tiny_models import MODELS, call

FAMILIES = ["timm_vit", "hf_llama", "hf_gpt2", "torch_encoder"]
PAIRS = [
    (model_name, method)
    for model_name in FAMILIES
    for method in METHODS
    if (model_name, method)
    not in (("torch_encoder", "dora"), ("torch_encoder", "replora_peft"), ("hf_llama", "bitfit"))
]
UPDATING = [pair for pair in PAIRS if pair[1] in ("replora", "lora", "dora")]


def ordinary(model: nn.Module) -> bool:
    return not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_a_model_that_was_built_there_trains_and_is_given_back(model_name: str, method: str) -> None:
    tiny = MODELS[model_name]
    with torch.inference_mode():
        model, _ = build(model_name)
    replora.inject(model, METHODS[method], also_train=[tiny.head], example=tiny.inputs())
    train(model, tiny)
    assert ordinary(replora.remove(model))
    call(model, tiny.inputs())


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_an_adapter_that_was_loaded_there_trains_on(model_name: str, method: str, tmp_path: Path) -> None:
    model, tiny = adapted(model_name, method)
    train(model, tiny)
    want = call(model, tiny.inputs()).detach()
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    with torch.inference_mode():
        there, _ = build(model_name)
        replora.load_adapter(there, file)
        torch.testing.assert_close(call(there, tiny.inputs()), want, rtol=1e-5, atol=1e-6)
    train(there, tiny)


@pytest.mark.parametrize(("model_name", "method"), UPDATING)
def test_several_adapters_are_switched_there(model_name: str, method: str, tmp_path: Path) -> None:
    model, tiny = adapted(model_name, method)
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    with torch.inference_mode():
        there, _ = build(model_name)
        for name in ("one", "two"):
            replora.load_adapter(there, file, name=name)
        replora.set_adapter(there.double(), "one")
    assert ordinary(there)
    train(there.float(), tiny)
    with torch.inference_mode():
        replora.remove(there)
    assert ordinary(there)


@pytest.mark.parametrize("last", [replora.remove, replora.merge_and_unload])
@pytest.mark.parametrize(("model_name", "method"), UPDATING)
def test_merging_there_leaves_ordinary_weights(
    model_name: str, method: str, last: Callable[[nn.Module], nn.Module]
) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    want = call(model, tiny.inputs()).detach()
    with torch.inference_mode():
        replora.merge(model)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        replora.unmerge(model)
        with replora.merged(model):
            pass
    train(model, tiny)
    with torch.inference_mode():
        last(model)
    assert ordinary(model)
    model.requires_grad_(True)
    call(model, tiny.inputs()).sum().backward()
