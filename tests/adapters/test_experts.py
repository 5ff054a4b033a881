"""Mixtures of experts: what stays frozen is named, and a block is a layer, not an expert."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5Model

import replora
from replora.adapters.targets import TargetNotFoundError

SHAPE = {
    **dict.fromkeys(["num_attention_heads", "num_key_value_heads", "num_experts_per_tok"], 2),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 24),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "vocab_size": 60,
}


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(8, 12), nn.Linear(12, 8)


class Layer(nn.Module):
    """Attention, and experts in a ModuleList as transformers had them before version 5."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.q_proj = nn.Linear(8, 8)
        self.mlp = nn.Module()
        self.mlp.experts = nn.ModuleList(Expert() for _ in range(3))


def test_experts_that_stay_frozen_are_named_beside_other_targets() -> None:
    model = model_of("qwen2_moe")  # has a shared expert of linear layers beside the routed ones
    with pytest.warns(UserWarning, match=r"experts\.gate_up_proj.* frozen"):
        found = replora.find_targets(model, ["q", "k", "v", "up", "down"])
    assert {target.role for target in found} == {"q", "k", "v", "up", "down"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replora.find_targets(model, ["q", "v"])


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("entry", ["up", "down", "*.experts.gate_up_proj", "experts.down_proj"])
def test_targets_that_only_experts_would_be_are_refused_by_name(kind: str, entry: str) -> None:
    with pytest.raises(TargetNotFoundError, match="each of these parameters holds all experts of a layer"):
        replora.find_targets(model_of(kind), ["q", entry])


def test_a_block_is_a_layer_and_not_an_expert() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(Layer() for _ in range(2))
    found = replora.find_targets(model, ["q", "up"], blocks=[1])
    experts = [f"layers.1.mlp.experts.{i}.up_proj" for i in range(3)]
    assert sorted(target.name for target in found) == sorted(["layers.1.self_attn.q_proj", *experts])
    # Each expert shares within itself.
    assert len({target.group for target in found}) == 4


def test_a_block_of_t5_is_its_block_and_not_a_sublayer() -> None:
    config = T5Config(
        d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, vocab_size=50, feed_forward_proj="gated-gelu"
    )
    model = T5Model(config)
    found = replora.find_targets(model, ["q", "out", "gate", "up", "fc2"], blocks=[1, 2])
    assert list(dict.fromkeys(t.module.partition(".layer.")[0] for t in found)) == [
        "encoder.block.1",
        "decoder.block.0",
    ]
    tokens = torch.tensor([[3, 4, 5]])
    roles = ["q", "k", "v", "out", "gate", "up", "fc2"]
    example = {"input_ids": tokens, "decoder_input_ids": tokens}
    replora.inject(model, replora.RepLoRAConfig(rank=2, targets=roles), example=example)
