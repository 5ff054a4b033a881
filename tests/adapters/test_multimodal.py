"""Models with several branches: a generated example that does not run one of them says nothing about it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import replora
from replora.adapters.container import DeadTargetError
from tests.adapters.test_contract import disturb

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


class Pair(nn.Module):
    """A user's own model of two complete ones, for which no example is known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = CLIPVisionModel(CLIPVisionConfig(**SHAPE, image_size=16, patch_size=8))
        self.text = LlamaModel(LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=64))

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        output = self.text(input_ids).last_hidden_state.mean(1)
        return output if pixel_values is None else output + self.vision(pixel_values).pooler_output


@pytest.mark.parametrize("build", [llava, Pair])
@pytest.mark.parametrize("config", METHODS)
def test_a_pass_of_text_alone_trains_and_images_are_verified_later(
    config: replora.AdapterConfig, build: type[nn.Module]
) -> None:
    model = copy.deepcopy(replora.inject(build(), config))
    with pytest.warns(UserWarning, match=r"4 of 8 targets are in .*vision.*, which this forward pass did not run"):
        _sum(model(input_ids=TEXT)).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        model(input_ids=TEXT)
        assert not model.replora.targets_verified
        model(input_ids=WITH_IMAGE, pixel_values=IMAGE)
    assert model.replora.targets_verified


@pytest.mark.parametrize("build", [llava, Pair])
@pytest.mark.parametrize("config", METHODS)
def test_a_dead_target_is_found_by_the_first_pass_that_runs_its_tower(
    config: replora.AdapterConfig, build: type[nn.Module]
) -> None:
    model = build()
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.1.self_attn") and "vision" in n)
    layer.forward = lambda hidden_states, *_, **__: (layer.out_proj(layer.v_proj(hidden_states)), None)
    replora.inject(model, config)
    with pytest.warns(UserWarning, match="did not run"):
        model(input_ids=TEXT)
    with pytest.raises(DeadTargetError, match=r"1 of 8 targets were not used in the forward pass: .*vision.*q_proj"):
        model(input_ids=WITH_IMAGE, pixel_values=IMAGE)


def test_a_target_that_is_dead_where_the_text_runs_is_found_at_once() -> None:
    model = Pair()
    layer = model.text.layers[1].self_attn
    layer.forward = lambda hidden_states, *_, **__: (layer.o_proj(layer.q_proj(hidden_states)), None)
    replora.inject(model, METHODS[0])
    with pytest.raises(DeadTargetError, match=r"1 of 8 targets were not used in the forward pass: text.*v_proj"):
        model(input_ids=TEXT)


def _sum(output: object) -> Tensor:
    return (output if isinstance(output, Tensor) else output.logits).sum()


def test_an_export_asks_for_an_input_that_reaches_all_targets(tmp_path: Path) -> None:
    model = replora.inject(llava(), replora.LoRAConfig(2))
    with pytest.raises(replora.PeftFormatError, match=r"No input so far has reached .*vision.*example="):
        replora.export_peft(model, tmp_path / "peft")
    replora.export_peft(model, tmp_path / "peft", example={"input_ids": WITH_IMAGE, "pixel_values": IMAGE})


def blip() -> nn.Module:
    torch.manual_seed(0)
    vision = SHAPE | {"image_size": 16, "patch_size": 8, "initializer_range": 0.02}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    text = SHAPE | tokens | {"vocab_size": 64, "encoder_hidden_size": 16, "max_position_embeddings": 16}
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text))


@pytest.mark.parametrize("config", METHODS)
@pytest.mark.parametrize("build", [llava, blip])
def test_stock_peft_opens_an_export_by_its_own_class(
    build: type[nn.Module], config: replora.AdapterConfig, tmp_path: Path
) -> None:
    x = {"input_ids": WITH_IMAGE if build is llava else TEXT, "pixel_values": IMAGE}
    model = build().eval()
    model.save_pretrained(tmp_path / "base")
    replora.inject(model, config, example=x)
    disturb(model)
    folder = replora.export_peft(model, tmp_path / "peft", base_model=str(tmp_path / "base"))
    stock = AutoPeftModel.from_pretrained(folder).eval()
    assert type(stock.base_model.model) is type(model)
    torch.testing.assert_close(stock(**x).logits, model(**x).logits, rtol=1e-4, atol=1e-5)


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
