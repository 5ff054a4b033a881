"""Models with several branches: a generated example that does not run one of them says nothing about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import replora
from replora.adapters.container import DeadTargetError

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = torch.tensor([[1, 7, 9, 3]])
WITH_IMAGE = torch.tensor([[1, 50, 50, 50, 50, 7]])  # 50 stands for a patch, and is in no generated text
IMAGE = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
METHODS = [replora.RepLoRAConfig(2), replora.LoRAConfig(2), replora.PeftMethodConfig("dora", 2)]


def llava() -> nn.Module:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SHAPE, image_size=16, patch_size=8)
    text = LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=64)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=50))


@pytest.mark.parametrize("config", METHODS)
def test_a_branch_that_the_generated_example_does_not_run_is_left_to_the_first_pass(
    config: replora.AdapterConfig,
) -> None:
    model = replora.inject(llava(), config)
    assert len(replora.describe(model)["targets"]) == 8
    model(input_ids=WITH_IMAGE, pixel_values=IMAGE).logits.sum().backward()


@pytest.mark.parametrize("config", METHODS)
def test_an_example_of_the_user_must_reach_all_targets(config: replora.AdapterConfig) -> None:
    example = {"input_ids": WITH_IMAGE, "pixel_values": IMAGE}
    replora.inject(llava(), config, example=example)
    with pytest.raises(DeadTargetError, match="4 of 8 targets were not used"):
        replora.inject(llava(), config, example={"input_ids": TEXT})
    model = replora.inject(llava(), config)
    with pytest.raises(DeadTargetError, match="pass check=False"):
        model(input_ids=TEXT)


def test_an_export_asks_for_an_input_that_reaches_all_targets(tmp_path: Path) -> None:
    model = replora.inject(llava(), replora.LoRAConfig(2))
    with pytest.raises(replora.PeftFormatError, match=r"No input so far has reached .*vision.*example="):
        replora.export_peft(model, tmp_path / "peft")
    replora.export_peft(model, tmp_path / "peft", example={"input_ids": WITH_IMAGE, "pixel_values": IMAGE})


class Unused(nn.Module):
    """Runs, and never uses its `q_proj`."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.q_proj, self.attn.v_proj = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attn.forward = lambda x: self.attn.v_proj(x)

    def example_input(self) -> Tensor:
        return torch.ones(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


def test_a_dead_target_in_a_branch_that_runs_is_refused_with_a_generated_example_too() -> None:
    with pytest.raises(DeadTargetError, match=r"1 of 2 targets were not used in the forward pass: attn\.q_proj"):
        replora.inject(Unused(), replora.LoRAConfig(2))
