"""The layers that share a generator share one in our own injection too, and get equal factors, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import peft
import pytest
import torch
from torch import nn

import replora
from replora.adapters.container import adapters_of
from tests.adapters.peft_lora.test_layers import mixtral, own_weight, t5
from tests.adapters.peft_zoo import classifier
from tests.adapters.tiny_models import hf_bart, hf_gpt2, hf_llama, timm_vit

EVERY_ROLE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "Llama": (hf_llama, EVERY_ROLE),
    "BERT": (classifier, ("query", "value", "dense")),
    "BART": (hf_bart, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    "T5": (t5, ("q", "k", "v", "o", "wi", "wo")),
    "GPT-2": (hf_gpt2, ("c_proj", "c_fc")),
    "ViT": (timm_vit, ("attn.proj", "fc1", "fc2")),
}


@pytest.mark.parametrize(
    ("family", "sharing"), [*product(FAMILIES, ["group", "none"]), *product(["Llama", "BERT", "BART", "T5"], ["tied"])]
)
def test_equal_to_our_own_injection(family: str, sharing: Any) -> None:
    build, targets = FAMILIES[family]
    plain = build()
    names = [name for name, _ in plain.named_modules() if name.endswith(tuple(f".{target}" for target in targets))]
    own = replora.inject(build(), replora.RepLoRAConfig(rank=4, targets=names, sharing=sharing), check=False)
    options: dict[str, Any] = {"fan_in_fan_out": True} if family == "GPT-2" else {}
    model = peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules=names, **options))
    replora.reparameterize(model, sharing=sharing)
    views = {update.names[0]: update.views[0] for update in adapters_of(own).updates}
    generators = model.replora["default"]
    partners = set()
    with torch.no_grad():
        for parameter in adapters_of(own).banks.parameters():
            parameter.normal_()
        for bank, groups in zip(generators.factor_banks(), generators.members, strict=True):
            for number, members in enumerate(groups):
                for slot, pair in enumerate(members):
                    view = views[pair.name.removeprefix("base_model.model.")]
                    partners.add(((bank, number), (view.bank, view.group)))
                    for mlp, other in ((bank.mlp_A, view.bank.mlp_A), (bank.mlp_B, view.bank.mlp_B)):
                        for own_name in ("diagonal", "U", "c"):
                            getattr(mlp, own_name)[number] = getattr(other, own_name)[view.group]
                        mlp.V[slot][number] = other.V[view.slot][view.group]
    # Each group here is one group there.
    assert len({here for here, _ in partners}) == len({there for _, there in partners}) == len(partners)
    for pair in generators.pairs():
        A, B = views[pair.name.removeprefix("base_model.model.")].factors()
        assert torch.equal(pair.layer.lora_A["default"].weight, A), pair.name
        assert torch.equal(pair.layer.lora_B["default"].weight, B), pair.name
    counts = [
        sum(p.numel() for p in one.parameters()) for one in (adapters_of(own).banks, model.replora["default"].banks)
    ]
    assert counts[0] == counts[1]


def test_experts_get_a_group_each() -> None:
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    model = replora.reparameterize(peft.get_peft_model(mixtral(), config))
    (bank,) = model.replora["default"].factor_banks()
    assert (bank.groups, len(bank.shapes)) == (2 * 3, 2)  # layers times experts, of two parameters each
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_()
    outer = model.base_model.model.model.layers[1].mlp.experts
    delta = outer.get_delta_weight("default")  # (experts, out, in)
    slot = [shape[1] for shape in bank.shapes].index(delta.shape[1])
    A, B = bank()[slot]
    torch.testing.assert_close(delta, 4 * B[3:] @ A[3:])


def test_a_parameter_alone_is_one_group() -> None:
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["first.weight"])
    model = replora.reparameterize(peft.get_peft_model(own_weight(), config))
    assert [bank.groups for bank in model.replora["default"].factor_banks()] == [1]
