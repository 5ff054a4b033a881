"""Permanent merging, and tied, offloaded and quantized weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import replora
from tests.adapters.test_contract import UPDATING, adapted, build, disturb, train
from tests.adapters.tiny_models import call, tied_llama, tokens


@pytest.mark.parametrize(("model_name", "method"), UPDATING)
def test_unloaded_model_is_plain_and_computes_the_same(model_name: str, method: str) -> None:
    keys = set(build(model_name)[0].state_dict())
    model, tiny = adapted(model_name, method)
    disturb(model)
    train(model, tiny, steps=1)
    want = call(model, tiny.inputs())
    plain = replora.merge_and_unload(model)
    assert plain is model
    assert set(plain.state_dict()) == keys
    torch.testing.assert_close(call(plain, tiny.inputs()), want, rtol=1e-4, atol=1e-5)
    fresh, _ = build(model_name, seed=3)
    fresh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(call(fresh, tiny.inputs()), call(plain, tiny.inputs()), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["bitfit", "full", "linear_probe"])
def test_methods_without_an_update_unload_too(method: str) -> None:
    model, tiny = adapted("timm_vit", method)
    train(model, tiny, steps=1)
    want = call(model, tiny.inputs())
    torch.testing.assert_close(call(replora.merge_and_unload(model), tiny.inputs()), want, rtol=0, atol=0)


def test_an_update_of_tied_weights_does_not_reach_the_embedding(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = tied_llama().eval()
    embedding = model.get_input_embeddings().weight
    before = embedding.detach().clone()
    assert model.lm_head.weight is embedding
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4, targets=("lm_head", "q")))
    disturb(model)
    want = call(model, tokens())
    with replora.merged(model):
        torch.testing.assert_close(call(model, tokens()), want, rtol=1e-4, atol=1e-5)
        assert torch.equal(embedding, before)
    assert model.lm_head.linear.weight is embedding
    replora.merge_and_unload(model)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert model.lm_head.weight is not embedding
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(call(opened, tokens()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_nor_does_it_through_peft(method: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = tied_llama().eval()
    embedding = model.get_input_embeddings().weight
    before = embedding.detach().clone()
    replora.inject(model, replora.PeftMethodConfig(method, rank=2, targets=("lm_head", "q")))
    disturb(model)
    want = call(model, tokens())
    with replora.merged(model):
        torch.testing.assert_close(call(model, tokens()), want, rtol=1e-4, atol=1e-5)
        assert torch.equal(embedding, before)
    assert model.lm_head.get_base_layer().weight is embedding
    assert torch.equal(embedding, before)
    replora.merge_and_unload(model).save_pretrained(tmp_path)
    assert model.lm_head.weight is not embedding
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(call(opened, tokens()), want, rtol=1e-4, atol=1e-5)


def test_weights_stay_tied_where_they_are_not_adapted(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = replora.inject(tied_llama().eval(), replora.RepLoRAConfig(rank=2, hidden=4))
    disturb(model)
    want = call(model, tokens())
    replora.merge_and_unload(model).save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.config.tie_word_embeddings
    assert opened.lm_head.weight is opened.get_input_embeddings().weight
    torch.testing.assert_close(call(opened, tokens()), want, rtol=1e-4, atol=1e-5)


class OneLayerTwice(nn.Module):
    """The same layer under two names, called under both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_a_layer_of_two_names_is_adapted_under_both() -> None:
    model, x = OneLayerTwice().eval(), torch.randn(3, 4)
    layer, before = model.first, model(x)
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4, targets=("first",)), example=x)
    disturb(model)
    assert model.first is model.second
    want = model(x)
    assert not torch.allclose(want, before, atol=1e-3)
    with replora.merged(model):
        torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    replora.remove(model)
    assert model.first is model.second is layer
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_offloaded_by_a_device_map_trains_but_does_not_merge(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    plain, tiny = build("hf_llama")
    replora.inject(plain, replora.RepLoRAConfig(rank=2, hidden=4))
    disturb(plain)
    want = call(plain, tiny.inputs()).detach()
    state = replora.adapter_state(plain)

    model, _ = build("hf_llama")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert model.model.layers[0].self_attn.q_proj.weight.is_meta
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4))
    assert {p.device.type for p in model.replora.parameters()} == {"cpu"}
    replora.load_adapter_state(model, state)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-5, atol=1e-6)
    call(model, tiny.inputs()).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(replora.RepLoRAError, match=r"q_proj is not in memory .* Load the whole backbone"):
        replora.merge(model)
    with pytest.raises(replora.RepLoRAError, match="not in memory"):
        replora.merge_and_unload(model)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-5, atol=1e-6)


class Int8Linear(nn.Linear):
    """A quantized layer as libraries make them: a subclass whose weight is of integers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.step = float(linear.weight.detach().abs().max()) / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.step).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.step, self.bias)


class Float8Linear(nn.Linear):
    """Another kind: its weight is of floating point, scaled to a range of 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.step = float(linear.weight.detach().abs().max()) / 448
        self.weight = nn.Parameter((linear.weight.detach() / self.step).to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.step, self.bias)


LOW_RANK_OR_PEFT = [
    replora.RepLoRAConfig(rank=2, hidden=4),
    replora.RepLoRAConfig(rank=2, hidden=4, sharing="tied", targets=("q", "out")),
    replora.PeftMethodConfig("lora", rank=2),
]


@pytest.mark.parametrize("config", LOW_RANK_OR_PEFT, ids=lambda config: config.name)
@pytest.mark.parametrize(("kind", "dtype"), [(Int8Linear, "int8"), (Float8Linear, "float8_e4m3fn")])
def test_a_quantized_backbone_trains_but_does_not_merge(config: replora.AdapterConfig, kind: type, dtype: str) -> None:
    model, tiny = build("hf_llama")
    attention = model.model.layers[1].self_attn  # the first layer is not merged either
    attention.q_proj = kind(attention.q_proj)
    replora.inject(model, config)
    disturb(model)
    want = call(model, tiny.inputs())
    with pytest.raises(replora.RepLoRAError, match=rf"q_proj is quantized \(torch.{dtype}\)"):
        replora.merge(model)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)


def test_offloaded_weights_do_not_merge_through_peft(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    model, tiny = build("hf_llama")
    replora.inject(model, replora.PeftMethodConfig("lora", rank=2))
    disturb(model)
    want = call(model, tiny.inputs())
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    with pytest.raises(replora.RepLoRAError, match=r"layers\.1\..*q_proj is not in memory"):
        replora.merge_and_unload(model)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)
    with pytest.raises(replora.RepLoRAError, match="RepLoRAConfig trains on offloaded layers"):
        replora.inject(replora.remove(model), replora.PeftMethodConfig("lora", rank=2))
