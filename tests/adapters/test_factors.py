"""The maths of the factors: the equations, the initialisation, the counts, the one generation a pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import replora
from replora.adapters.factors import FreeFactors, GeneratedFactors, build_factors
from replora.adapters.ops import Piece, add_update_to_output, add_update_to_weight
from tests.adapters.test_contract import adapted, disturb
from tests.adapters.tiny_models import MODELS, call

SHAPES = [(12, 20), (12, 6)]


@pytest.mark.parametrize(
    ("activation", "function"), [("gelu", F.gelu), ("tanh", torch.tanh), ("identity", lambda x: x)]
)
def test_generated_factors_follow_the_equations(activation, function) -> None:
    bank = GeneratedFactors(3, SHAPES, rank=4, hidden=5, activation=activation, scale_exponent=0.5)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_()
    pairs = bank()
    for group, (slot, (n_in, n_out)) in [(g, s) for g in range(3) for s in enumerate(SHAPES)]:
        a, b = (torch.diag(mlp.diagonal[group]) for mlp in (bank.mlp_A, bank.mlp_B))
        H_A = function(a @ bank.mlp_A.U[group] + bank.mlp_A.c[group])
        H_B = function(b @ bank.mlp_B.U[group] + bank.mlp_B.c[group])
        A, B = (H_A @ bank.mlp_A.V[slot][group]) / math.sqrt(5), (H_B @ bank.mlp_B.V[slot][group]).T / math.sqrt(5)
        assert (A.shape, B.shape) == ((4, n_in), (n_out, 4))
        torch.testing.assert_close(pairs[slot][0][group], A)
        torch.testing.assert_close(pairs[slot][1][group], B)
        for whole, alone in zip(pairs[slot], bank(group)[slot], strict=True):
            torch.testing.assert_close(alone[0], whole[group])


@pytest.mark.parametrize("factors", ["mlp", "linear", "none"])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_update_starts_at_zero_and_a_has_lora_s_variance(factors: str, exponent: float) -> None:
    config = replora.RepLoRAConfig(rank=16, hidden=64, factors=factors, scale_exponent=exponent)
    for A, B in build_factors(config, 8, [(300, 200), (300, 100)])():
        assert not B.any()
        assert A.var().item() == pytest.approx(1 / (3 * 300), rel=0.1)


def test_parameter_counts_follow_the_formula() -> None:
    rank, hidden, groups = 4, 5, 3
    bank = GeneratedFactors(groups, SHAPES, rank, hidden, "gelu", 0.5)
    widths = [n for shape in SHAPES for n in shape]
    one_side = rank + rank * hidden + hidden  # diagonal, U, c
    assert sum(p.numel() for p in bank.parameters()) == groups * (2 * one_side + hidden * sum(widths))
    assert bank.deployed_count() == groups * rank * sum(widths)
    free = FreeFactors(groups, SHAPES, rank)
    assert sum(p.numel() for p in free.parameters()) == free.deployed_count() == bank.deployed_count()


def test_vit_b_with_rank_8_deploys_what_lora_trains() -> None:
    """294,912 numbers: 12 blocks, query and value, 8 x (768 + 768) each."""
    with torch.device("meta"):
        from timm.models.vision_transformer import VisionTransformer

        vits = [VisionTransformer(num_classes=0) for _ in range(2)]
    counts = [
        replora.parameter_counts(replora.inject(vit, replora.RepLoRAConfig(rank=8, factors=factors)))
        for vit, factors in zip(vits, ("mlp", "none"), strict=True)
    ]
    assert counts[0].adapter_deployed == counts[1].adapter_trained == counts[1].adapter_deployed == 294_912
    assert counts[0].backbone == 85_798_656


def test_first_layer_is_shared_by_query_and_value_only_in_a_group() -> None:
    shared = replora.inject(MODELS["timm_vit"].build(), replora.RepLoRAConfig(rank=2, hidden=4))
    (bank,) = shared.replora.banks
    assert bank.mlp_A.U.shape == (3, 2, 4)
    assert [tuple(V.shape) for V in bank.mlp_A.V] == [(3, 4, 24)] * 2
    alone = replora.inject(MODELS["timm_vit"].build(), replora.RepLoRAConfig(rank=2, hidden=4, sharing="none"))
    (bank,) = alone.replora.banks
    assert bank.mlp_A.U.shape == (6, 2, 4)


@pytest.mark.parametrize("model_name", ["timm_vit", "timm_swin", "torchvision_swin", "hf_bart"])
def test_factors_are_generated_once_a_pass_for_all_blocks(model_name: str, monkeypatch) -> None:
    model, tiny = adapted(model_name, "replora")
    calls = []
    forward = GeneratedFactors.forward
    monkeypatch.setattr(
        GeneratedFactors, "forward", lambda self, group=None: calls.append(group) or forward(self, group)
    )
    call(model, tiny.inputs())
    assert calls == [None] * len(model.replora.banks)


def test_parts_of_a_model_can_be_called_alone() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    whole = call(model, tiny.inputs())
    torch.testing.assert_close(model.forward_head(model.forward_features(tiny.inputs())), whole)
    whole.sum().backward()  # and factors of a past pass are not used again
    with torch.no_grad():
        for parameter in model.replora.parameters():
            parameter.mul_(0.5)
    fresh = model.forward_head(model.forward_features(tiny.inputs()))
    torch.testing.assert_close(fresh, call(model, tiny.inputs()))
    assert not torch.allclose(fresh, whole, atol=1e-4)


def test_gradients_accumulate_over_passes() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    gradients = []
    for passes in (1, 2):
        model.zero_grad()
        for _ in range(passes):
            call(model, tiny.inputs()).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.replora.parameters()])
    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("rows", [None, (2, 5)])
def test_the_reference_operators_agree_and_pass_gradcheck(rows) -> None:
    torch.manual_seed(0)
    W, x = torch.randn(6, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    height = 6 if rows is None else rows[1] - rows[0]
    A = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    B = torch.randn(height, 2, dtype=torch.float64, requires_grad=True)

    def on_output(x, A, B):
        return add_update_to_output(F.linear(x, W), x, [Piece(A, B, rows)], 1.5)

    def on_weight(x, A, B):
        return F.linear(x, add_update_to_weight(W, [Piece(A, B, rows)], 1.5))

    torch.testing.assert_close(on_output(x, A, B), on_weight(x, A, B))
    assert torch.autograd.gradcheck(on_output, (x, A, B))
    assert torch.autograd.gradcheck(on_weight, (x, A, B))
