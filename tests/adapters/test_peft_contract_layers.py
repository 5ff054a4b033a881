"""Layers whose weight is not an ordinary parameter: adapted as they are, or refused by name with the remedy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import replora
from tests.adapters.test_contract import disturb


class Model(nn.Module):
    """Sizes that torchao's kernels take."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.last = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[None], x[None], x[None])[0]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


CONFIGS = {
    "RepLoRA": replora.RepLoRAConfig(rank=2, targets=["first"]),
    "LoRA": replora.LoRAConfig(rank=2, targets=["first"]),
    "dora": replora.PeftMethodConfig("dora", rank=2, targets=["first"]),
}
# Name in the error -> what computes the weight, and what makes it a parameter again, as the error says.
COMPUTED: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
    "utils.weight_norm": (old_weight_norm, remove_weight_norm),
    "utils.spectral_norm": (old_spectral_norm, remove_spectral_norm),
    "utils.parametrize (WeightNorm)": (parametrizations.weight_norm, parametrize.remove_parametrizations),
    "utils.parametrize (SpectralNorm)": (parametrizations.spectral_norm, parametrize.remove_parametrizations),
    "utils.parametrize (Orthogonal)": (parametrizations.orthogonal, parametrize.remove_parametrizations),
    "utils.parametrize (Doubled)": (
        lambda module, name: parametrize.register_parametrization(module, name, Doubled()),
        parametrize.remove_parametrizations,
    ),
    "utils.prune": (lambda module, name: prune.l1_unstructured(module, name, 0.5), prune.remove),
}


def batch() -> Tensor:
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_is_computed_is_refused_and_adapted_after_the_remedy(kind: str, method: str) -> None:
    computed, remedy = COMPUTED[kind]
    model = Model().eval()
    computed(model.first, "weight")
    before = model(batch())
    with pytest.raises(replora.RepLoRAError, match="no frozen parameter to adapt") as error:
        replora.inject(model, CONFIGS[method])
    assert f"torch.nn.{kind}," in str(error.value)
    assert f"{remedy.__name__}(module" in str(error.value)
    assert not hasattr(model, "replora")
    # Two layers that do not take part may stay as they are.
    replora.inject(model.eval(), replora.LoRAConfig(rank=2, targets=["last"]))
    torch.testing.assert_close(model(batch()), before, rtol=1e-3, atol=1e-4)
    replora.remove(model)

    remedy(model.first, "weight")
    model = replora.inject(model.eval(), CONFIGS[method], example=batch())
    disturb(model)
    want = model(batch())
    with replora.merged(model):
        torch.testing.assert_close(model(batch()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["utils.parametrize (Doubled)", "utils.prune", "utils.weight_norm"])
def test_a_computed_weight_of_an_attention_is_refused(kind: str) -> None:
    model = Attention()
    COMPUTED[kind][0](model.attention, "in_proj_weight")
    with pytest.raises(replora.RepLoRAError, match=r"in_proj_weight of attention\[q\] is computed in each pass by"):
        replora.inject(model, replora.LoRAConfig(rank=2))


def test_code_of_its_own_that_computes_a_weight_is_refused() -> None:
    model = Model()
    weight = model.first.weight.detach()
    del model.first.weight
    model.first.weight = weight  # a plain attribute
    with pytest.raises(replora.RepLoRAError, match="code of its own"):
        replora.inject(model, CONFIGS["LoRA"])


def test_a_lazy_layer_is_refused_until_it_has_a_shape() -> None:
    model = Model()
    model.first = nn.LazyLinear(64)
    with pytest.raises(replora.RepLoRAError, match="Run the model once"):
        replora.inject(model, CONFIGS["LoRA"])
    model(batch())
    replora.inject(model, CONFIGS["LoRA"], example=batch())


def test_a_layer_of_another_library_with_the_same_name_is_named_in_full() -> None:
    from torch.ao.nn.quantized.dynamic import Linear

    model = Model()
    model.first = Linear(32, 64)
    with pytest.raises(replora.RepLoRAError, match=r"cannot be adapted in Model: torch\.ao\..*\.Linear"):
        replora.inject(model, CONFIGS["LoRA"])


def quantized(kind: str) -> nn.Module:
    pytest.importorskip("torchao")
    from torchao import quantization

    torch.manual_seed(0)
    model = Model()
    quantization.quantize_(model, getattr(quantization, kind)())
    return model.eval()


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_quantized_weights_are_adapted_and_not_merged(kind: str, method: str, tmp_path) -> None:
    model = quantized(kind)
    before = model(batch())
    replora.inject(model, CONFIGS[method], example=batch())
    torch.testing.assert_close(model(batch()), before, rtol=1e-4, atol=1e-4)
    model.train()
    optimizer = torch.optim.SGD(replora.parameter_groups(model), lr=0.5)
    for _ in range(2):
        model(batch()).square().mean().backward()
        optimizer.step()
    want = model.eval()(batch())
    assert not torch.allclose(want, before, atol=1e-3)
    for merge in (replora.merge, replora.merge_and_unload):
        with pytest.raises(replora.RepLoRAError, match=r"quantized \((Int8|Float8)Tensor\)"):
            merge(model)
    torch.testing.assert_close(model(batch()), want, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(model)(batch()), want, rtol=0, atol=0)
    fresh = quantized(kind)
    replora.load_adapter(fresh, replora.save_adapter(model, tmp_path / "a.safetensors"))
    torch.testing.assert_close(fresh(batch()), want, rtol=0, atol=0)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_quantization_that_stops_gradients_may_not_train(method: str, tmp_path) -> None:
    plain = Model()
    file = replora.save_adapter(replora.inject(plain, CONFIGS[method], example=batch()), tmp_path / "a.safetensors")
    model = quantized("Int8DynamicActivationInt8WeightConfig")
    replora.load_adapter(model, file, force=True)
    model(batch())  # it may be used
    with pytest.raises(replora.RepLoRAError, match="first is quantized such that it gives no gradient to its input"):
        model.train()(batch())
