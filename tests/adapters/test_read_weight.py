"""Weights that code reads instead of calling their layer: numbers of the formed weight, without its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import replora
from replora.adapters.low_rank import read_weight as module
from replora.adapters.low_rank.layer import WeightUpdate
from replora.adapters.low_rank.ops import add_update_to_weight
from replora.adapters.low_rank.read_weight import read_weight
from tests.adapters.test_contract import adapted, disturb
from tests.adapters.test_ops import IN, OUT, ROWS, gradients, operands, pieces_of
from tests.adapters.tiny_models import call

READING = ["torchvision_swin", "torchvision_swin3d", "timm_swin_v2", "timm_beit", "timm_eva02", "torchvision_vit"]


class Product(torch.autograd.Function):
    """An operator that its author wrote for plain tensors; PyTorch does not ask a subclass about it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


def changed_in_place(x: Tensor, weight: Tensor) -> Tensor:
    weight.mul_(2)
    return F.linear(x, weight)


def without_gradients_first(x: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        large = float(weight.norm() > 1e9)
    return F.linear(x, weight) + large


USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "F.linear": F.linear,
    "by keyword, with bias": lambda x, w: F.linear(input=x, weight=w, bias=x.new_ones(OUT)),
    "any shape": lambda x, w: F.linear(x.view(1, *x.shape)[:, ::2], w) + F.linear(x[0], w),
    "twice": lambda x, w: F.linear(F.linear(x, w).tanh()[:, :IN], w) + F.linear(x, w),
    "matmul": lambda x, w: x @ w.T,
    "rows": lambda x, w: torch.cat([F.linear(x, part) for part in w.split([4, OUT - 4])], -1),
    "in a list": lambda x, w: x @ torch.stack([w, 2 * w]).sum(0).T,
    "an operator": Product.apply,
    "in place": changed_in_place,
    "without gradients": without_gradients_first,
    "linear and formed": lambda x, w: F.linear(x, w) + x @ w.T + w.sum() + w.shape[0],
    "convolution": lambda x, w: F.conv1d(x[..., None], w[..., None]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_values_and_gradients_are_those_of_the_formed_weight(rows, use) -> None:
    weight, _, factors = operands(rows, bias=False)
    x = torch.randn(7, IN, dtype=torch.float64, requires_grad=True)

    def read(x: Tensor, *factors: Tensor) -> Tensor:
        return use(x, read_weight(weight, lambda _: pieces_of(factors, rows), 0.7))

    def reference(x: Tensor, *factors: Tensor) -> Tensor:
        return use(x, add_update_to_weight(weight, pieces_of(factors, rows), 0.7))

    got, want = read(x, *factors), reference(x, *factors)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    direction = torch.randn_like(want)
    found, expected = (torch.autograd.grad(y, (x, *factors), direction) for y in (got, want))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    if rows == ROWS["query and value"]:
        assert torch.autograd.gradcheck(read, (x, *factors), fast_mode=True)
        if use is not Product.apply:
            assert torch.autograd.gradgradcheck(read, (x, *factors), fast_mode=True)


def formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightUpdate, "_may_stand_in", lambda _: False)


def doubled(name: str, method: str = "replora") -> tuple[nn.Module, Any]:
    model, tiny = adapted(name, method)
    disturb(model)
    return model.double(), tiny.inputs().double()


@pytest.mark.parametrize("method", ["replora", "lora"])
@pytest.mark.parametrize("name", READING)
def test_models_train_as_with_the_formed_weight(name: str, method: str, monkeypatch) -> None:
    forms = []
    monkeypatch.setattr(module, "add_update_to_weight", lambda *arguments: forms.append(arguments))
    model, x = doubled(name, method)
    got, output = gradients(model, x), call(model, x)
    assert type(output) is Tensor
    assert not forms
    formed(monkeypatch)
    torch.testing.assert_close(output, call(model, x), rtol=1e-12, atol=1e-12)
    want = gradients(model, x)
    assert got.keys() == want.keys()
    for key, gradient in want.items():
        torch.testing.assert_close(got[key], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("query", ["self", "encoder and decoder", "three inputs", "separate widths"])
@pytest.mark.parametrize("weights", [True, False])
def test_attention_of_torch(query: str, weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"kdim": 6, "vdim": 10} if query == "separate widths" else {}
    torch.manual_seed(0)
    attention = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True, **widths)})
    attention.forward = lambda q, k, v: attention["attn"](q, k, v, need_weights=weights)[0]
    replora.inject(attention, replora.RepLoRAConfig(rank=2, hidden=4, targets=["q", "k", "v", "out"]), check=False)
    disturb(attention)
    attention.double()
    q, other = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    k, v = {
        "self": (q, q),
        "encoder and decoder": (other, other),
        "three inputs": (other, other.flip(0)),
        "separate widths": (other[..., :6], torch.randn(2, 5, 10).double()),
    }[query]

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        attention.zero_grad()
        y = attention(q, k, v)
        y.square().sum().backward()
        return y.detach(), {n: p.grad.clone() for n, p in attention.named_parameters() if p.grad is not None}

    got = run()
    formed(monkeypatch)
    torch.testing.assert_close(got, run(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["torchvision_swin", "torchvision_vit"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(name: str, reentrant: bool) -> None:
    model, x = doubled(name)
    want = gradients(model, x.requires_grad_())
    blocks = model.encoder.layers if name == "torchvision_vit" else model.features[1::2]
    for block in blocks:
        block.forward = lambda x, f=block.forward: checkpoint(f, x, use_reentrant=reentrant)
    torch.testing.assert_close(gradients(model, x), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["torchvision_swin", "timm_beit", "torchvision_vit"])
def test_autocast_computes_as_called_layers_do(name: str) -> None:
    model, x = doubled(name)
    model, x = model.float(), x.float()
    want = gradients(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(model, x)
    for key, gradient in want.items():
        assert got[key].dtype == torch.float32
        assert (got[key] - gradient).norm() < 0.05 * gradient.norm() + 1e-4, key


@pytest.mark.parametrize("name", ["torchvision_swin", "timm_beit", "torchvision_vit"])
def test_compiles_into_one_graph(name: str) -> None:
    model, x = doubled(name)
    want = gradients(model, x)
    torch._dynamo.reset()
    got = gradients(torch.compile(model, backend="aot_eager", fullgraph=True), x)
    for key, gradient in want.items():
        torch.testing.assert_close(got[f"_orig_mod.{key}"], gradient, rtol=1e-9, atol=1e-11)


def test_a_bias_that_trains_gets_its_gradient() -> None:
    model, x = doubled("torchvision_swin")
    bias = model.features[1][0].attn.qkv.linear.bias.requires_grad_()
    assert gradients(model, x)
    assert bias.grad.any()


def test_other_code_reads_a_plain_tensor() -> None:
    model, _ = doubled("torchvision_swin")
    layer = model.features[1][0].attn.qkv
    before = layer.weight
    assert type(before) is Tensor
    kept = before.detach().clone()
    disturb(model)
    assert torch.equal(before, kept)
    assert not torch.equal(layer.weight, kept)


def test_training_keeps_nothing_of_the_size_of_the_weight() -> None:
    """Neither for the backward pass nor beyond it, and no product over the tokens has that size."""
    width, rank = 64, 2
    frozen = torch.randn(width, width)
    A, B = torch.randn(rank, width, requires_grad=True), torch.randn(width, rank, requires_grad=True)
    x = torch.randn(5, width, requires_grad=True)
    saved: list[Tensor] = []

    class Made(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.shape == frozen.shape:
                large.append(str(function))
            return made

    large: list[str] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = F.linear(x, read_weight(frozen, lambda _: [module.Piece(A, B, None)], 1.0))
    with Made():
        y.sum().backward()
    assert {t.data_ptr() for t in saved if t.numel() == frozen.numel()} == {frozen.data_ptr()}
    assert not [name for name in large if "aten.t." not in name]
