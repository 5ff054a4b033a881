"""Models that hold adapters without a `PeftModel` around them: transformers, sentence-transformers, diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import replora
from tests.adapters.peft_lora.test_clients import FILE
from tests.adapters.peft_lora.test_reparameterize import build, output, train


@pytest.fixture(autouse=True)
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """`add_adapter` of transformers asks for a peft that is younger than the last one before it."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0")


def steps(model: nn.Module, call: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        call().square().mean().backward()
        optimizer.step()


# --- transformers


def with_adapter(name: str = "default") -> nn.Module:
    model: Any = build()
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), name)
    return replora.reparameterize(model, name)


@pytest.mark.parametrize("name", ["default", "a-b"])
def test_a_transformers_model_with_an_adapter_of_its_own(name: str, tmp_path: Path) -> None:
    model: Any = train(with_adapter(name))
    expected = output(model)
    model.save_pretrained(tmp_path)
    stock: Any = build()
    stock.load_adapter(str(tmp_path))
    assert torch.equal(output(stock.eval()), expected)
    again: Any = build()
    again.load_adapter(str(tmp_path), is_trainable=True)
    replora.reparameterize(again, generators=tmp_path)
    for one, other in zip(model.replora.parameters(), again.replora.parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.requires_grad


def test_layers_that_peft_put_into_a_transformers_model(tmp_path: Path) -> None:
    """By `inject_adapter_in_model`, of which the model itself knows nothing."""
    model: Any = build()
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["q_proj"]), model)
    train(replora.reparameterize(model))
    model.save_pretrained(tmp_path)
    assert (tmp_path / FILE).is_file()


def test_adapters_of_a_transformers_model_come_and_go(tmp_path: Path) -> None:
    model: Any = train(with_adapter())
    expected = output(model)
    model.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), adapter_name="second")
    assert model.active_adapters() == ["second"]
    assert torch.equal(output(model), expected)
    model.disable_adapters()
    assert torch.equal(output(model), output(build()))
    model.enable_adapters()
    model.set_adapter("default")
    assert torch.equal(output(model), expected)
    model.delete_adapter(adapter_names="default")
    assert not [name for name, _ in model.named_parameters() if "default" in name]
    model.set_adapter("second")
    assert torch.equal(output(model), expected)


# --- sentence-transformers


def sentences(folder: Path) -> Any:
    st = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(vocab_size=45, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(40))]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return st.SentenceTransformer(str(folder), device="cpu")


def test_a_sentence_transformer(tmp_path: Path) -> None:
    """It calls and saves all of its own children in turn: the generators are in the transformer inside."""
    model, texts = sentences(tmp_path / "base"), ["1 2", "3 4 5"]
    plain = model.encode(texts)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["query", "value"]))
    replora.reparameterize(model)
    assert (model.encode(texts) == plain).all()
    steps(model.train(), lambda: model(model.preprocess(texts))["sentence_embedding"])
    expected = model.eval().encode(texts)
    assert (expected != plain).any()
    model.save_pretrained(str(tmp_path / "out"))
    assert (tmp_path / "out" / FILE).is_file()
    stock = sentences(tmp_path / "base")
    stock.load_adapter(str(tmp_path / "out"))
    assert (stock.encode(texts) == expected).all()
    assert (replora.materialize(model).encode(texts) == expected).all()
    assert not [name for name, _ in model.named_modules() if "replora" in name]


# --- diffusers

NOISE, PROMPT = torch.arange(256).reshape(1, 4, 8, 8) / 256, torch.arange(80).reshape(1, 5, 16) / 80


def unet() -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return model.eval().requires_grad_(False)


def lora() -> peft.LoraConfig:
    return peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "conv1"])


def noise(model: Any) -> Tensor:
    return model(NOISE, 1, PROMPT).sample


@torch.no_grad()
def now(model: Any) -> Tensor:
    return noise(model)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Tensor, Tensor]:
    model = unet()
    plain = now(model)
    model.add_adapter(lora())
    replora.reparameterize(model)
    assert torch.equal(now(model), plain)
    steps(model, lambda: noise(model))
    return model, plain, now(model)


def test_a_pipeline_of_diffusers_saves_plain_lora(trained: Any, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    model, plain, expected = trained
    assert not torch.equal(expected, plain)
    state = peft.get_peft_model_state_dict(model)
    layers = convert_state_dict_to_diffusers(state)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    replora.save_generators(model, tmp_path)
    stock = unet()
    StableDiffusionPipeline.load_lora_into_unet(*StableDiffusionPipeline.lora_state_dict(tmp_path), stock)
    assert torch.equal(now(stock), expected)
    again = unet()
    again.add_adapter(lora())
    replora.reparameterize(again)
    peft.set_peft_model_state_dict(again, state)
    torch.testing.assert_close(now(again), expected, rtol=0, atol=1e-5)
    replora.load_generators(again, tmp_path)
    for one, other in zip(model.replora.parameters(), again.replora.parameters(), strict=True):
        assert torch.equal(one, other)
    model.save_lora_adapter(tmp_path / "one")
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"pytorch_lora_weights.safetensors", FILE}


def test_adapters_of_diffusers_switch_fuse_and_go(trained: Any) -> None:
    model, plain, expected = trained
    model.add_adapter(lora(), "other")
    model.set_adapters(["default", "other"], [0.5, 1.0])
    assert not torch.equal(now(model), expected)
    model.set_adapters("default")
    assert torch.equal(now(model), expected)
    model.disable_lora()
    assert torch.equal(now(model), plain)
    model.enable_lora()
    model.set_adapters("default")
    model.fuse_lora()
    torch.testing.assert_close(now(model), expected, rtol=0, atol=1e-5)
    model.unfuse_lora()
    model.delete_adapters(adapter_names="other")
    torch.testing.assert_close(now(model), expected, rtol=0, atol=1e-5)
    model.unload_lora()
    torch.testing.assert_close(now(model), plain, rtol=0, atol=1e-5)
    assert not hasattr(model, "replora")
    assert not [key for key in model.state_dict() if "lora" in key]
