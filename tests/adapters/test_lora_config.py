"""`LoRAConfig` is `RepLoRAConfig(factors="none")` under the name people know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import replora
from tests.adapters.tiny_models import MODELS


def test_same_description_tensors_and_file(tmp_path: Path) -> None:
    models = []
    for config in (replora.LoRAConfig(rank=2), replora.RepLoRAConfig(rank=2, factors="none")):
        torch.manual_seed(0)
        models.append(replora.inject(MODELS["timm_vit"].build(), config, also_train=["head"]))
    lora, other = models
    assert json.dumps(replora.describe(lora)) == json.dumps(replora.describe(other))
    assert replora.describe(lora)["method"] == "lora"
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in lora.state_dict().items())
    for source, target in ((lora, other), (other, lora)):
        replora.save_adapter(source, tmp_path / "adapter.safetensors")
        replora.load_adapter(target, tmp_path / "adapter.safetensors")


def test_has_no_options_of_the_generator() -> None:
    with pytest.raises(TypeError, match="hidden"):
        replora.LoRAConfig(hidden=4)  # type: ignore[call-arg]


def test_modules_to_save_is_also_train() -> None:
    model = replora.inject(MODELS["timm_vit"].build(), replora.LoRAConfig(rank=2), modules_to_save=["head"])
    assert model.head.weight.requires_grad
    with pytest.raises(replora.RepLoRAError, match="Give one of the two"):
        replora.inject(
            MODELS["timm_vit"].build(), replora.LoRAConfig(), also_train=["head"], modules_to_save=["patch_embed"]
        )


def test_peft_names_of_options_are_accepted() -> None:
    config = replora.LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["fc1"])  # type: ignore[call-arg]
    assert config == replora.LoRAConfig(rank=4, alpha=8, dropout=0.1, targets=["fc1"])
    with pytest.raises(replora.RepLoRAError, match="Give one of the two"):
        replora.PeftMethodConfig(rank=4, r=8)  # type: ignore[call-arg]
