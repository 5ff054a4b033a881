"""A program may replace frozen layers after the injection, as quantization does: the old ones are out of use then."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import replora
from replora.adapters.low_rank.layer import AdaptedLinear
from tests.adapters.test_contract import disturb
from tests.adapters.tiny_models import timm_vit

CONFIGS = {
    "replora": replora.RepLoRAConfig(rank=2),
    "lora": replora.LoRAConfig(rank=2),
    "ia3": replora.PeftMethodConfig(method="ia3"),
}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    if isinstance(CONFIGS[request.param], replora.PeftMethodConfig):
        pytest.importorskip("peft")
    model = replora.inject(timm_vit(), CONFIGS[request.param]).eval()
    disturb(model)
    return model


def replace_frozen_layers(model: nn.Module, factor: float = 1.0) -> None:
    """Put an equal layer, or one of another weight, in the place of each frozen one."""
    for module in list(model.modules()):
        inside = "linear" if isinstance(module, AdaptedLinear) else "base_layer"
        if inside in module._modules:
            new = copy.deepcopy(module._modules[inside])
            assert new is not None
            new._parameters["weight"] = nn.Parameter(new.weight.detach() * factor, requires_grad=False)
            module._modules[inside] = new


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    return model(IMAGES)


def test_the_replaced_layer_is_merged_and_unmerged(model: nn.Module) -> None:
    replace_frozen_layers(model, 1.5)
    want = outputs(model)
    with replora.disabled(model):
        base = outputs(model)
    assert not torch.allclose(want, base, atol=1e-4)
    with replora.merged(model):
        torch.testing.assert_close(outputs(model), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(model), want, rtol=0, atol=0)
    torch.testing.assert_close(outputs(replora.merge_and_unload(model)), want, rtol=1e-4, atol=1e-5)


def test_another_adapter_finds_the_replaced_layer(model: nn.Module, tmp_path: Path) -> None:
    file = replora.save_adapter(model, tmp_path / "adapter.safetensors")
    replora.load_adapter(model, file, name="second")
    replace_frozen_layers(model, 1.5)
    want = outputs(model)
    replora.set_adapter(model, "default")
    torch.testing.assert_close(outputs(model), want, rtol=0, atol=0)


def test_it_is_removed_to(model: nn.Module) -> None:
    replace_frozen_layers(model, 1.5)
    with replora.disabled(model):
        want = outputs(model)
    torch.testing.assert_close(outputs(replora.remove(model)), want, rtol=0, atol=0)


def test_a_layer_that_is_replaced_while_merged_is_kept_or_refused(model: nn.Module) -> None:
    replora.merge(model)
    replace_frozen_layers(model)
    want = outputs(model)
    for back in (replora.unmerge, replora.remove):
        with pytest.raises(replora.RepLoRAError, match="was replaced by a Linear while the adapter was merged"):
            back(model)
        torch.testing.assert_close(outputs(model), want, rtol=0, atol=0)
    torch.testing.assert_close(outputs(replora.merge_and_unload(model)), want, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_layer_without_a_weight_is_refused(model: nn.Module) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    want = outputs(quantized)
    for fold in (replora.merge, replora.merge_and_unload):
        with pytest.raises(replora.RepLoRAError, match=r"has become a torch.*quantized.*Linear since replora.inject"):
            fold(quantized)
        torch.testing.assert_close(outputs(quantized), want, rtol=0, atol=0)
