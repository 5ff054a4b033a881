"""Compiled, exported and traced models, and passes that threads, transforms and errors interrupt."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import replora
from replora.adapters.low_rank.factors import GeneratedFactors
from tests.adapters.peft_lora.test_reparameterize import IDS, output, wrapped


def model_of(kind: str = "replora", **options: Any) -> nn.Module:
    """A LoRA model of peft whose update is not 0, reparameterized or not."""
    model = wrapped(**options)
    if kind == "replora":
        replora.reparameterize(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture
def produced(monkeypatch) -> Counter[str]:
    """How often all factors were produced in one go, and how often those of one group."""
    count: Counter[str] = Counter()
    forward = GeneratedFactors.forward

    def counting(self: GeneratedFactors, group: int | None = None) -> Any:
        count["all" if group is None else "one"] += 1
        return forward(self, group)

    monkeypatch.setattr(GeneratedFactors, "forward", counting)
    return count


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_compiled_without_a_break_in_the_graph(inner: bool, training: bool) -> None:
    """Like stock LoRA; the pass of the inner model has its hook as a graph of its own."""
    model = model_of().train(training)
    graphs: list[Counter[str]] = []

    def backend(module: torch.fx.GraphModule, _example: Any) -> Any:
        graphs.append(Counter(str(node.target) for node in module.graph.nodes))
        return module

    def run(called: nn.Module) -> list[Tensor]:
        with torch.set_grad_enabled(training):
            logits = called(input_ids=IDS).logits
        if not training:
            return [logits]
        model.zero_grad()
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    wanted = run(model)
    assert len(wanted) == (1 + len(list(model.replora.parameters())) if training else 1)
    torch._dynamo.reset()
    compiled = torch.compile(model.base_model.model if inner else model, backend=backend, fullgraph=True)
    for _ in range(2):
        for found, one in zip(run(compiled), wanted, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-4)
    assert len(graphs) == (2 if inner else 1)
    assert sum(graph[f"{torch.tanh}"] for graph in graphs) == 2, "one for all A and one for all B"
    torch._dynamo.reset()


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("how", ["export", "trace"])
def test_exported_and_traced_like_stock_lora(how: str, produced: Counter[str]) -> None:
    model = Logits(model_of())
    wanted = model(IDS)
    produced.clear()
    with torch.no_grad():
        exported: Any = (
            torch.export.export(model, (IDS,), strict=False).module()
            if how == "export"
            else torch.jit.trace(model, (IDS,), check_trace=False)
        )
        assert produced["all"] == 1
        torch.testing.assert_close(exported(IDS), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(IDS), wanted)


def test_factors_once_per_pass_and_per_generate(produced: Counter[str]) -> None:
    model = model_of()
    produced.clear()
    output(model)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert produced == {"all": 2}
    produced.clear()
    model.eval().generate(input_ids=IDS[:, :4], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert produced == {"all": 1}
    with torch.no_grad():
        model.replora["default"].banks[0].mlp_B.V[0].add_(0.1)
    assert not torch.equal(output(model), output(model_of())), "a new pass reads the parameters again"


def test_threads_do_not_disturb_each_other() -> None:
    model, errors = model_of(), []
    wanted = output(model)
    barrier = threading.Barrier(4)

    def serve(training: bool) -> None:
        try:
            barrier.wait()
            for _ in range(5):
                if training:
                    model(input_ids=IDS, labels=IDS).loss.backward()
                else:
                    assert torch.equal(output(model), wanted)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def banks_of(model: nn.Module) -> list[Any]:
    return model.replora.factor_banks()


@pytest.mark.parametrize("copies", [False, True])
def test_an_error_or_a_copy_inside_a_pass_leaves_no_factors(copies: bool) -> None:
    model = model_of()
    wanted, made = output(model), []

    def inside(_module: nn.Module, _inputs: Any) -> None:
        if copies:
            made.append(copy.deepcopy(model))
        else:
            raise ZeroDivisionError

    hook = model.base_model.model.model.layers[1].register_forward_pre_hook(inside)
    if copies:
        assert torch.equal(output(model), wanted)
    else:
        with pytest.raises(ZeroDivisionError):
            output(model)
    hook.remove()
    for one in (model, *made):
        assert all(bank._of_thread.running is None for bank in banks_of(one))
        with torch.no_grad():
            one.replora["default"].banks[0].mlp_B.V[0].mul_(-1)
        assert not torch.equal(output(one), wanted)


def test_transforms_of_functions_see_their_own_parameters() -> None:
    model = model_of()
    wanted = output(model)
    own = {name: p.detach() for name, p in model.named_parameters() if name.startswith("replora.")}
    other = {name: p * 0.5 for name, p in own.items()}

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (IDS,)).logits

    torch.testing.assert_close(logits(own), wanted, rtol=0, atol=0)
    assert not torch.allclose(logits(other), wanted)
    both = torch.func.vmap(logits)({name: torch.stack([own[name], other[name]]) for name in own})
    torch.testing.assert_close(both[0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], logits(other), rtol=1e-4, atol=1e-5)
    gradients = torch.func.grad(lambda parameters: logits(parameters).square().sum())(own)
    model(input_ids=IDS).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in own:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)
    assert torch.equal(output(model), wanted)
