"""The fast operator against the plain reference: values, gradients, saved tensors, and when it is not used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import replora
from replora.adapters.low_rank import layer, ops
from replora.adapters.low_rank.ops import Piece, add_update_to_output, updated_linear
from tests.adapters.test_contract import adapted, disturb
from tests.adapters.tiny_models import MODELS, call

IN, OUT, RANK = 5, 12, 2
ROWS: dict[str, list[tuple[int, int] | None]] = {
    "whole": [None],
    "query": [(0, 4)],
    "query and value": [(0, 4), (8, 12)],
    "all of q, k, v": [(0, 4), (4, 8), (8, 12)],
}
# Both orders of both passes: these numbers of tokens lie on either side of the ties for a 5 x 12 matrix.
FEW, MANY = 3, 40


def operands(rows: list[tuple[int, int] | None], bias: bool, **kind: Any) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(**kind)

    factors: list[Tensor] = []
    for piece_rows in rows:
        first, last = piece_rows or (0, OUT)
        factors += [draw(RANK, IN).requires_grad_(), draw(last - first, RANK).requires_grad_()]
    return draw(OUT, IN), draw(OUT) if bias else None, factors


def pieces_of(factors: tuple[Tensor, ...], rows: list[tuple[int, int] | None]) -> list[Piece]:
    return [Piece(A, B, r) for A, B, r in zip(factors[::2], factors[1::2], rows, strict=True)]


def functions(weight: Tensor, bias: Tensor | None, rows: Any, scale: float) -> list[Callable[..., Tensor]]:
    """The operator and the reference, both of x and the factors."""

    def fast(x: Tensor, *factors: Tensor) -> Tensor:
        return updated_linear(x, weight, bias, pieces_of(factors, rows), scale)

    def reference(x: Tensor, *factors: Tensor) -> Tensor:
        return add_update_to_output(F.linear(x, weight, bias), x, pieces_of(factors, rows), scale)

    return [fast, reference]


def test_the_sizes_here_take_both_orders() -> None:
    weight = torch.empty(OUT, IN)
    for rows in ([(0, 4)], [(0, 4), (8, 12)], [(0, OUT)]):
        for backward in (False, True):
            assert not ops._forming_moves_less(FEW, weight, rows, backward=backward)
            assert ops._forming_moves_less(MANY, weight, rows, backward=backward)
    assert not ops._forming_moves_less(10**9, weight.bfloat16(), [(0, OUT)], backward=False)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_values_and_gradients_are_those_of_the_reference(rows, bias: bool, scale: float, tokens: int) -> None:
    weight, bias_vector, factors = operands(rows, bias, dtype=torch.float64)
    fast, reference = functions(weight, bias_vector, rows, scale)
    x = torch.randn(tokens, IN, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fast(x, *factors), reference(x, *factors))
    assert torch.autograd.gradcheck(fast, (x, *factors), fast_mode=True)
    toward = torch.randn(tokens, OUT, dtype=torch.float64)
    for got, want in zip(
        *(torch.autograd.grad(f(x, *factors), (x, *factors), toward) for f in (fast, reference)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_second_derivatives_exist() -> None:
    rows = ROWS["query and value"]
    weight, bias, factors = operands(rows, True, dtype=torch.float64)
    x = torch.randn(MANY, IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(functions(weight, bias, rows, 0.7)[0], (x, *factors), fast_mode=True)


SHAPES: dict[str, Callable[[], Tensor]] = {
    "one token": lambda: torch.randn(IN),
    "(n, in)": lambda: torch.randn(7, IN),
    "(b, n, in)": lambda: torch.randn(4, 10, IN),
    "(b, h, w, in)": lambda: torch.randn(2, 5, 4, IN),
    "no token": lambda: torch.randn(0, 3, IN),
    "transposed": lambda: torch.randn(IN, 8, 5).permute(2, 1, 0),
    "strided": lambda: torch.randn(4, 20, 2 * IN)[:, ::2, ::2],
    "expanded": lambda: torch.randn(1, 6, IN).expand(3, 6, IN),
}


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
def test_inputs_of_any_shape_and_layout(make: Callable[[], Tensor]) -> None:
    rows = ROWS["query and value"]
    weight, bias, factors = operands(rows, True, dtype=torch.float32)
    x = make().requires_grad_()
    # A gradient that is not contiguous either, as it comes out of attention.
    results = [f(x, *factors) for f in functions(weight, bias, rows, 1.5)]
    assert results[0].shape == (*x.shape[:-1], OUT)
    torch.testing.assert_close(*results)
    toward = torch.randn(OUT, *x.shape[:-1]).movedim(0, -1)
    gradients = [torch.autograd.grad(y, (x, *factors), toward) for y in results]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_nothing_large_is_kept_but_the_input(tokens: int) -> None:
    rows = ROWS["query and value"]
    weight, bias, factors = operands(rows, True, dtype=torch.float32)
    x = torch.randn(tokens, IN, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        updated_linear(x, weight, bias, pieces_of(tuple(factors), rows), 0.7)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, weight, *factors)}
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        updated_linear(x, weight, bias, pieces_of(tuple(f.detach() for f in factors), rows), 0.7)
    assert x.data_ptr() not in {t.data_ptr() for t in kept}  # frozen factors: not even the input


def test_gradients_that_nobody_needs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS["query"]
    weight, bias, factors = operands(rows, True, dtype=torch.float32)

    def refuse(*_args: Any, **_options: Any) -> None:
        raise AssertionError("the gradient of the input was computed")

    y = updated_linear(torch.randn(MANY, IN), weight, bias, pieces_of(tuple(factors), rows), 1.0)
    monkeypatch.setattr(ops, "_forming_moves_less", refuse)
    torch.autograd.grad(y.sum(), factors)
    monkeypatch.undo()
    x = torch.randn(MANY, IN, requires_grad=True)
    frozen = tuple(factor.detach() for factor in factors)
    (dx,) = torch.autograd.grad(updated_linear(x, weight, bias, pieces_of(frozen, rows), 1.0).sum(), x)
    (want,) = torch.autograd.grad(functions(weight, bias, rows, 1.0)[1](x, *frozen).sum(), x)
    torch.testing.assert_close(dx, want)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast(tokens: int, backward_inside: bool) -> None:
    rows = ROWS["query and value"]
    weight, bias, factors = operands(rows, True, dtype=torch.float32)
    x = torch.randn(tokens, IN, requires_grad=True)
    want = functions(weight, bias, rows, 0.7)[1](x, *factors)
    wanted = torch.autograd.grad(want.square().sum(), (x, *factors))
    with torch.autocast("cpu", torch.bfloat16):
        half = tuple(factor.to(torch.bfloat16) for factor in factors)
        y = updated_linear(x, weight, bias, pieces_of(half, rows), 0.7)
        loss = y.float().square().sum()
        got = torch.autograd.grad(loss, (x, *factors)) if backward_inside else ()
    got = got or torch.autograd.grad(loss, (x, *factors))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), want, rtol=0.03, atol=0.1)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_backward_under_autocast_of_a_forward_without_it() -> None:
    rows = ROWS["query"]
    weight, bias, factors = operands(rows, True, dtype=torch.float32)
    x = torch.randn(MANY, IN, requires_grad=True)
    fast, reference = functions(weight, bias, rows, 1.0)
    want = torch.autograd.grad(reference(x, *factors).sum(), (x, *factors))
    y = fast(x, *factors).sum()
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(y, (x, *factors))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_small_updates_survive_sixteen_bits(weights: torch.dtype, bias: bool) -> None:
    """An update of a thousandth of the weight, with bfloat16 weights or under autocast, arrives whole on average.

    Each output is off by rounding; along the direction of the update those errors cancel, unless they are systematic.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator).to(weights)
    offset = torch.randn(64, generator=generator).to(weights) if bias else None
    A, B = (torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 256), (64, 1)))
    x = torch.randn(4096, 256, generator=generator).bfloat16()
    scale = 1e-3
    want = scale * (x.double() @ A.double().T) @ B.double().T
    unmoved = F.linear(x.double(), weight.double(), None if offset is None else offset.double())

    def share_that_arrives(y: Tensor) -> float:
        return (((y.double() - unmoved) * want).sum() / want.square().sum()).item()

    pieces = [Piece(A, B, None)]
    with torch.autocast("cpu", torch.bfloat16, enabled=weights != torch.bfloat16):
        fast = updated_linear(x, weight, offset, pieces, scale)
        rounded_before = add_update_to_output(F.linear(x, weight, offset), x, pieces, scale)
    assert fast.dtype == torch.bfloat16
    assert share_that_arrives(fast) == pytest.approx(1, abs=0.1)
    assert share_that_arrives(rounded_before) < 0.8


# --- in a model


def gradients(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    call(model, inputs).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def without_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "acts_by_weight_and_bias", lambda *_: False)


def counting_operator(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs that the operator is called with."""
    calls: list[Tensor] = []

    def counted(x: Tensor, *rest: Any) -> Tensor:
        calls.append(x)
        return updated_linear(x, *rest)

    monkeypatch.setattr(layer, "updated_linear", counted)
    return calls


@pytest.mark.parametrize("method", ["replora", "lora"])
@pytest.mark.parametrize("model_name", ["timm_vit", "timm_swin", "hf_llama", "hf_bart"])
def test_training_curves_are_those_of_the_reference(model_name: str, method: str, monkeypatch) -> None:
    curves = []
    for fast in (True, False):
        if not fast:
            without_operator(monkeypatch)
        model, tiny = adapted(model_name, method)
        model = model.double().train()
        inputs = tiny.inputs()
        inputs = inputs.double() if isinstance(inputs, Tensor) else inputs
        optimizer = torch.optim.AdamW(replora.parameter_groups(model), lr=3e-3)
        losses = []
        for _ in range(20):
            loss = (call(model, inputs) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.99 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "autocast"])
@pytest.mark.parametrize("method", ["replora", "linear", "lora"])
def test_gradient_checkpointing(method: str, precision: str, reentrant: bool) -> None:
    model, tiny = adapted("timm_vit", method)
    disturb(model)
    inputs = tiny.inputs().requires_grad_()  # the reentrant kind starts at an input with a gradient
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        want = gradients(model, inputs)
        for block in model.blocks:
            block.forward = lambda x, f=block.forward: checkpoint(f, x, use_reentrant=reentrant)
        found = [gradients(model, inputs) for _ in range(2)]
    for got in found:
        assert got.keys() == want.keys()
        for name, gradient in want.items():
            tolerance = {"rtol": 0.02, "atol": 0.02} if precision == "autocast" else {"rtol": 1e-4, "atol": 1e-6}
            torch.testing.assert_close(got[name], gradient, **tolerance)


@pytest.mark.parametrize("method", ["replora", "lora"])
def test_reentrant_checkpointing_is_refused_where_processes_would_average_too_early(method: str, monkeypatch) -> None:
    model, tiny = adapted("timm_vit", method)
    for block in model.blocks:
        block.forward = lambda x, f=block.forward: checkpoint(f, x, use_reentrant=True)
    inputs = tiny.inputs().requires_grad_()
    running = SimpleNamespace(static_graph=False)  # what DistributedDataParallel says of itself during its forward pass
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", running)
    with pytest.raises(replora.RepLoRAError, match="use_reentrant=False"):
        gradients(model, inputs)
    running.static_graph = True
    assert gradients(model, inputs)


def test_module_used_twice_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> dict[str, Tensor]:
        model, tiny = adapted("timm_vit", "replora")
        disturb(model)
        model.blocks[1] = model.blocks[0]
        return gradients(model, tiny.inputs())

    got = twice()
    without_operator(monkeypatch)
    want = twice()
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "method"), [("timm_vit", "lora"), ("timm_vit", "replora"), ("hf_llama", "replora")])
def test_the_whole_model_compiles_into_one_graph(name: str, method: str) -> None:
    model, tiny = adapted(name, method)
    disturb(model)
    inputs = tiny.inputs()
    if name == "timm_vit":
        inputs = inputs.repeat(20, 1, 1, 1)  # enough tokens for the order that forms the weight
    want = gradients(model, inputs)
    torch._dynamo.reset()
    got = gradients(torch.compile(model, backend="aot_eager", fullgraph=True), inputs)
    for name, gradient in want.items():
        torch.testing.assert_close(got[f"_orig_mod.{name}"], gradient, rtol=1e-4, atol=1e-6)


def test_input_dropout_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting_operator(monkeypatch)
    model = replora.inject(MODELS["timm_vit"].build(), replora.RepLoRAConfig(rank=2, hidden=4, dropout=0.5))
    disturb(model)
    x = MODELS["timm_vit"].inputs()
    calls.clear()
    model.train()
    assert not torch.equal(model(x), model(x))
    assert not calls
    model.eval()
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    assert len(calls) == 2 * 3


def double_the_output(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def test_hooks_on_the_frozen_layer_act(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    calls = counting_operator(monkeypatch)
    before = call(model, tiny.inputs())
    assert len(calls) == 3
    handle = model.blocks[0].attn.qkv.linear.register_forward_hook(double_the_output)
    assert not torch.allclose(call(model, tiny.inputs()), before)
    assert len(calls) == 3 + 2
    handle.remove()
    torch.testing.assert_close(call(model, tiny.inputs()), before, rtol=0, atol=0)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    call(model, tiny.inputs())
    handle.remove()
    assert model.blocks[0].attn.qkv.linear in seen


class Quantized(nn.Linear):
    """Like bitsandbytes' layers: a subclass whose weight is no plain matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.step = linear.weight.abs().max().item() / 127
        self.bias = linear.bias
        self.weight = nn.Parameter((linear.weight / self.step).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.step, self.bias)


def test_quantized_layers_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tiny = adapted("timm_vit", "lora")
    quantized = MODELS["timm_vit"].build().eval()
    quantized.load_state_dict(
        {n: t for n, t in replora.remove(copy.deepcopy(plain)).state_dict().items() if "replora" not in n}
    )
    for block in quantized.blocks:
        block.attn.qkv = Quantized(block.attn.qkv)
    calls = counting_operator(monkeypatch)
    replora.inject(quantized, replora.RepLoRAConfig(rank=2, factors="none"), also_train=["head"], example=tiny.inputs())
    before = call(quantized, tiny.inputs())
    disturb(quantized)
    after = call(quantized, tiny.inputs())
    assert not torch.allclose(before, after, atol=1e-3)
    assert gradients(quantized, tiny.inputs())
    assert not calls


def test_weights_that_train_take_the_reference() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    qkv = model.blocks[0].attn.qkv.linear
    qkv.weight.requires_grad_()
    qkv.bias.requires_grad_()
    found = gradients(model, tiny.inputs())
    assert found["blocks.0.attn.qkv.linear.weight"].any()
    assert found["blocks.0.attn.qkv.linear.bias"].any()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("method", ["replora", "lora"])
def test_forward_mode_differentiation(method: str, grad: bool) -> None:
    model, tiny = adapted("timm_vit", method)
    disturb(model)
    x, direction = tiny.inputs(), torch.randn(tiny.inputs().shape)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative, of which this reference makes use
        _, want = torch.autograd.functional.jvp(model, x, direction)
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            got = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["replora", "lora"])
def test_shapes_alone(method: str) -> None:
    """On the `meta` device, on which there is no autocast."""
    model, tiny = adapted("timm_vit", method)
    y = model.to("meta")(tiny.inputs().to("meta"))
    assert (y.is_meta, y.shape) == (True, (2, 5))
    y.sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)


def test_transforms_of_torch_func_work() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    model.requires_grad_(False)
    x = tiny.inputs()
    (want,) = torch.autograd.grad(call(model, x.requires_grad_()).square().sum(), x)
    got = torch.func.grad(lambda image: model(image).square().sum())(x.detach())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
