"""The base that an adapter file names is the one that the adapter stands on, whenever its weights were loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import replora
from replora.adapters.container import adapters_of
from replora.adapters.fingerprint import base_of
from tests.adapters.test_contract import disturb
from tests.adapters.tiny_models import MODELS, call

METHODS = {
    "replora": replora.RepLoRAConfig(rank=2),
    "lora": replora.LoRAConfig(rank=2),
    "linear_probe": replora.LinearProbeConfig(),
    "dora": replora.PeftMethodConfig(method="dora", rank=2),
    "hra": replora.PeftMethodConfig(method="hra", rank=2),
}
PAIRS = [(model, method) for model in ("timm_vit", "hf_gpt2", "hf_llama") for method in METHODS]
PAIRS.remove(("hf_gpt2", "hra"))  # peft adapts no Conv1D with it


def outputs(model: nn.Module, model_name: str) -> Tensor:
    with torch.no_grad():
        return call(model.eval(), MODELS[model_name].inputs())


def adapted(base: nn.Module, model_name: str, method: str) -> nn.Module:
    if "dora" in method or "hra" in method:
        pytest.importorskip("peft")
    tiny = MODELS[model_name]
    return replora.inject(copy.deepcopy(base), METHODS[method], also_train=[tiny.head], example=tiny.inputs())


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_weights_loaded_after_the_injection_are_those_of_the_file(model_name: str, method: str, tmp_path: Path) -> None:
    former, base = MODELS[model_name].build(), MODELS[model_name].build()
    model = adapted(former, model_name, method)
    model.load_state_dict(base.state_dict(), strict=False)
    disturb(model)
    want = outputs(model, model_name)
    file = replora.save_adapter(model, tmp_path / "adapter.safetensors")
    with pytest.raises(replora.RepLoRAError, match="with other weights"):
        replora.load_adapter(copy.deepcopy(former), file)
    with pytest.raises(replora.RepLoRAError, match="with other weights"):
        replora.load_adapter(adapted(former, model_name, method), file)
    replora.load_adapter(model, file)
    replora.load_adapter(base, file)
    torch.testing.assert_close(outputs(base, model_name), want, rtol=0, atol=0)


@pytest.mark.parametrize("model_name", [name for name in MODELS if name not in ("torchvision_swin3d", "hf_videomae")])
@pytest.mark.parametrize("method", ["replora", "linear_probe"])
def test_an_adapter_does_not_change_what_the_base_is(model_name: str, method: str) -> None:
    model = adapted(MODELS[model_name].build(), model_name, method)
    disturb(model)
    adapters = adapters_of(model)
    assert base_of(model, adapters) == adapters.base
    with replora.merged(model):
        assert base_of(model, adapters) == adapters.base


@pytest.mark.parametrize("config", [replora.FullConfig(), replora.BitFitConfig()])
def test_a_base_that_trains_is_the_one_of_the_start(config: replora.AdapterConfig, tmp_path: Path) -> None:
    base = MODELS["timm_vit"].build()
    model = replora.inject(copy.deepcopy(base), config, also_train=["head"])
    disturb(model)
    file = replora.save_adapter(model, tmp_path / "adapter.safetensors")
    replora.load_adapter(base, file)
    torch.testing.assert_close(outputs(base, "timm_vit"), outputs(model, "timm_vit"), rtol=0, atol=0)
