"""What is to train must be able to: a quantized weight has no gradient, and no optimizer can change it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import replora
from tests.adapters.tiny_models import timm_vit

CONFIGS = {
    "replora": replora.RepLoRAConfig(rank=2),
    "linear_probe": replora.LinearProbeConfig(),
    "full": replora.FullConfig(),
    "bitfit": replora.BitFitConfig(),
}


def quantized(kind: str) -> nn.Module:
    model = timm_vit()
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        if kind == "float8":
            module.weight = nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
        if kind == "int8":
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    if kind == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize("kind", ["float8", "int8", "torchao"])
@pytest.mark.parametrize("method", CONFIGS)
def test_a_quantized_weight_that_is_to_train_is_refused(method: str, kind: str) -> None:
    model = quantized(kind)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(replora.RepLoRAError, match=r"weight is quantized \(.*so it cannot train"):
        replora.inject(model, CONFIGS[method], also_train=["head"], check=False)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_an_adapter_with_a_head_is_not_loaded_into_a_quantized_head(tmp_path: Path) -> None:
    trained = replora.inject(timm_vit(), CONFIGS["replora"], also_train=["head"])
    file = replora.save_adapter(trained, tmp_path / "adapter.safetensors")
    model = quantized("torchao")
    names = list(model.state_dict())
    with pytest.raises(replora.RepLoRAError, match=r"head.weight is quantized \(.*so it cannot train"):
        replora.load_adapter(model, file)
    assert list(model.state_dict()) == names


def test_a_head_beside_a_quantized_backbone_trains() -> None:
    model = timm_vit()
    head = copy.deepcopy(model.head)
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model.blocks, quantization.Int8WeightOnlyConfig())
    replora.inject(model, CONFIGS["replora"], also_train=["head"])
    optimizer = torch.optim.SGD(replora.parameter_groups(model), lr=1.0)
    model(torch.ones(1, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, head.weight)
