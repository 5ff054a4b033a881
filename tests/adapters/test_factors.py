"""The mathematics of the factors: equations, initialization, counts, and one generation per pass."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import replora
from replora.adapters.low_rank.factors import FreeFactors, GeneratedFactors, build_factors
from replora.adapters.low_rank.ops import Piece, add_update_to_output, add_update_to_weight
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
    assert counts[0].adapter_trained == 593_472  # as docs/benchmarks.md says
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
def test_factors_are_generated_once_a_pass_for_all_blocks(model_name: str, generations: list[int | None]) -> None:
    model, tiny = adapted(model_name, "replora")
    generations.clear()
    call(model, tiny.inputs())
    assert generations == [None] * len(model.replora.banks)


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """One entry for each generation of factors: None for all groups at once, else the group."""
    calls: list[int | None] = []
    forward = GeneratedFactors.forward
    monkeypatch.setattr(
        GeneratedFactors, "forward", lambda self, group=None: calls.append(group) or forward(self, group)
    )
    return calls


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_generates_factors_once_a_pass(without_gradients, generations: list[int | None]) -> None:
    model, tiny = adapted("timm_vit", "replora")
    generations.clear()
    with without_gradients():
        first = call(model, tiny.inputs())
        torch.testing.assert_close(call(model, tiny.inputs()), first, rtol=0, atol=0)
    assert generations == [None, None]


@pytest.mark.parametrize("model_name", ["hf_llama", "hf_bart"])
def test_generating_text_produces_the_factors_once(model_name: str, generations: list[int | None]) -> None:
    model, tiny = adapted(model_name, "replora")
    ids = tiny.inputs()["input_ids"]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        disturb(twin)
        generations.clear()
        twin.generate(ids, **options)
        assert generations == [None] * len(twin.replora.banks)
        first = call(twin, tiny.inputs())
        for parameter in twin.replora.parameters():
            parameter.data.mul_(0.5)
        generations.clear()
        twin.generate(ids, **options)  # another call, other factors
        assert generations == [None] * len(twin.replora.banks)
        assert not torch.allclose(call(twin, tiny.inputs()), first, atol=1e-4)
    assert next(iter(inspect.signature(model.generate).parameters)) == "inputs"
    replora.remove(model)
    assert "generate" not in vars(model)


def test_a_program_s_own_generate_is_called_and_comes_back() -> None:
    model = MODELS["hf_llama"].build()
    model.generate = own = lambda ids: model(ids).logits.argmax(-1)
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4))
    ids = MODELS["hf_llama"].inputs()["input_ids"]
    assert torch.equal(model.generate(ids), own(ids))
    replora.remove(model)
    assert model.generate is own


def step_of_an_optimizer(model: nn.Module) -> None:
    for parameter in model.replora.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.replora.parameters(), lr=0.1).step()


def other_state(model: nn.Module) -> None:
    replora.load_adapter_state(model, {name: tensor + 0.1 for name, tensor in replora.adapter_state(model).items()})


def assigned_state(model: nn.Module) -> None:
    bank = model.replora.banks[0]
    bank.load_state_dict({name: tensor + 0.1 for name, tensor in bank.state_dict().items()}, assign=True)


def replaced_parameter(model: nn.Module) -> None:
    mlp = model.replora.banks[0].mlp_B
    mlp.diagonal = nn.Parameter(mlp.diagonal.detach() + 0.1)


def data_in_place(model: nn.Module) -> None:
    for parameter in model.replora.parameters():
        parameter.data.add_(0.1)


def data_replaced(model: nn.Module) -> None:
    """As a zeroth-order optimizer takes its steps."""
    for parameter in model.replora.parameters():
        parameter.data = parameter.data + 0.1


def vector(model: nn.Module) -> None:
    parameters = list(model.replora.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters).detach() + 0.1, parameters)


def through_numpy(model: nn.Module) -> None:
    for parameter in model.replora.parameters():
        parameter.detach().numpy()[...] += 0.1


def set_storage(model: nn.Module) -> None:
    for parameter in model.replora.parameters():
        with torch.no_grad():
            parameter.set_(parameter + 0.1)


WRITES = [step_of_an_optimizer, disturb, other_state, assigned_state, replaced_parameter]
UNCOUNTED_WRITES = [data_in_place, data_replaced, vector, through_numpy, set_storage]


@pytest.mark.parametrize("change", [*WRITES, *UNCOUNTED_WRITES])
@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("whole", [True, False])
def test_every_write_to_a_parameter_counts_in_evaluation(change, without_gradients, whole: bool) -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    run = model if whole else model.forward_features
    with without_gradients():
        before = run(tiny.inputs())
    change(model)
    with without_gradients():
        after = run(tiny.inputs())
    assert not torch.allclose(after, before, atol=1e-4)
    torch.testing.assert_close(after, run(tiny.inputs()))


def test_the_steps_of_a_zeroth_order_optimizer_see_three_losses() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    losses = []
    with torch.no_grad():
        for epsilon in (0.1, -0.2, 0.1):
            for parameter in model.replora.parameters():
                parameter.data = parameter.data + epsilon
            losses.append(call(model, tiny.inputs()).square().mean().item())
    assert len({round(loss, 4) for loss in losses}) == 3


def test_parameters_made_in_inference_mode_have_no_count_and_are_never_trusted() -> None:
    with torch.inference_mode():
        model, tiny = MODELS["timm_vit"].build().eval(), MODELS["timm_vit"]
        replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4), check=False)
        disturb(model)
        before = call(model, tiny.inputs())
        disturb(model)
        assert not torch.allclose(call(model, tiny.inputs()), before, atol=1e-4)


def test_parameters_given_from_outside_are_used() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    with torch.no_grad():
        outputs = [
            torch.func.functional_call(
                model, {n: f * p for n, p in model.named_parameters() if "banks" in n}, tiny.inputs()
            )
            for f in (1.0, 0.5, 1.0)
        ]
    torch.testing.assert_close(outputs[0], outputs[2], rtol=0, atol=0)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)


def test_an_evaluation_between_forward_and_backward_changes_nothing() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    model.set_grad_checkpointing(True)
    model.train()
    gradients = []
    for evaluating in (False, True):
        model.zero_grad()
        loss = call(model, tiny.inputs()).square().mean()
        if evaluating:
            with torch.no_grad():
                call(model, tiny.inputs())
        loss.backward()
        gradients.append([p.grad.clone() for p in model.replora.parameters()])
    for plain, between in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, between, rtol=0, atol=0)


def test_a_layer_without_gradients_does_not_take_them_from_the_next() -> None:
    """The first layer of a pass that asks for 16-bit factors makes them for all."""
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    first = model.blocks[0].forward
    model.blocks[0].forward = torch.no_grad()(first)
    with torch.autocast("cpu", torch.bfloat16):
        loss = call(model, tiny.inputs()).float().square().mean()
    loss.backward()
    V = model.replora.banks[0].mlp_B.V[0]
    assert not V.grad[0].any()
    assert V.grad[1].any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_block_that_runs_without_gradients_too_can_be_checkpointed(reentrant: bool) -> None:
    """As the target of self-supervised learning does; fresh factors save nothing that checkpointing would count."""
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    x = tiny.inputs().requires_grad_()
    forward = model.blocks[1].forward
    gradients = []
    for checkpointing in (False, True):

        def both(x: torch.Tensor, checkpointing: bool = checkpointing) -> torch.Tensor:
            with torch.no_grad():
                target = forward(x)
            y = checkpoint(forward, x, use_reentrant=reentrant) if checkpointing else forward(x)
            return y - 0.5 * target

        model.zero_grad()
        model.blocks[1].forward = both
        call(model, x).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.replora.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("reentrant", [False, True])
def test_parts_called_alone_can_be_checkpointed(reentrant: bool) -> None:
    model, tiny = adapted("timm_vit", "replora")
    x = tiny.inputs().requires_grad_()
    call(model, x).sum().backward()  # leaves the factors of this pass behind, which the next one must not see
    disturb(model)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            for block in model.blocks:
                block.forward = lambda x, f=block.forward: checkpoint(f, x, use_reentrant=reentrant)
        model.forward_features(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.replora.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_the_usual_checkpointing_generates_nothing_again(generations: list[int | None]) -> None:
    model, tiny = adapted("timm_vit", "replora")
    for block in model.blocks:
        block.forward = lambda x, f=block.forward: checkpoint(f, x, use_reentrant=False)
    generations.clear()
    call(model, tiny.inputs()).square().mean().backward()
    assert generations == [None]


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
