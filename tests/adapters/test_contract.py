"""The contract of every method on every family of models: one table, one test per promise."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import product

import pytest
import torch
from safetensors import safe_open
from torch import nn

import replora
from tests.adapters.tiny_models import MODELS, TinyModel, call

METHODS: dict[str, replora.AdapterConfig] = {
    "replora": replora.RepLoRAConfig(rank=2, hidden=4),
    "replora_unshared": replora.RepLoRAConfig(rank=2, hidden=4, sharing="none", alpha=5.0),
    "replora_tied": replora.RepLoRAConfig(rank=2, hidden=4, sharing="tied", targets=("q", "k", "v", "out")),
    "linear": replora.RepLoRAConfig(rank=2, hidden=4, factors="linear"),
    "lora": replora.RepLoRAConfig(rank=2, factors="none", targets=("q", "k", "v", "out")),
    "dora": replora.PeftMethodConfig("dora", rank=2),
    "replora_peft": replora.PeftMethodConfig("lora", rank=2, reparameterize=True, hidden=4),
    "bitfit": replora.BitFitConfig(),
    "full": replora.FullConfig(),
    "linear_probe": replora.LinearProbeConfig(),
}
LOW_RANK = ["replora", "replora_unshared", "replora_tied", "linear", "lora"]
# peft adapts only layers that are called one by one.
PEFT_MODELS = ["timm_vit", "timm_swin", "hf_vit", "hf_llama", "hf_gpt2", "hf_bart"]
PAIRS = [
    *product(MODELS, LOW_RANK),
    *product(PEFT_MODELS, ["dora"]),
    *product(["timm_vit", "hf_llama"], ["replora_peft"]),
    *product(["timm_vit", "hf_bart"], ["bitfit", "full", "linear_probe"]),
]
UPDATING = [(model, method) for model, method in PAIRS if method in (*LOW_RANK, "dora", "replora_peft")]


def build(model_name: str, seed: int = 0) -> tuple[nn.Module, TinyModel]:
    """The tiny model in evaluation mode, its weights those of `seed`."""
    torch.manual_seed(seed)
    tiny = MODELS[model_name]
    return tiny.build().eval(), tiny


def adapted(model_name: str, method: str, seed: int = 0) -> tuple[nn.Module, TinyModel]:
    model, tiny = build(model_name, seed)
    return replora.inject(model, METHODS[method], also_train=[tiny.head], example=tiny.inputs()), tiny


def disturb(model: nn.Module) -> None:
    """Give the adapter (not the head) random values, so that its update is not 0."""
    head = set(model.replora.head)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in head:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def train(model: nn.Module, tiny: TinyModel, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.AdamW(replora.parameter_groups(model), lr=1e-2)
    for _ in range(steps):
        call(model, tiny.inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_injection_changes_nothing_at_first(model_name: str, method: str) -> None:
    model, tiny = build(model_name)
    before = call(model, tiny.inputs())
    replora.inject(model, METHODS[method], also_train=[tiny.head], example=tiny.inputs())
    tolerance = 1e-6 if method == "dora" else 0.0  # DoRA divides by a norm that it multiplies with again
    torch.testing.assert_close(call(model, tiny.inputs()), before, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_training_moves_exactly_what_should_train(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, tiny)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name in model.replora.trained if name in before}
    assert moved <= trained
    still = {name for name in trained - moved if name not in model.replora.head}
    if method not in ("full", "bitfit"):  # there, some parameters rightly get no gradient: the bias of keys, positions
        assert not still
    assert moved


@pytest.mark.parametrize(("model_name", "method"), UPDATING)
def test_merged_equals_unmerged_and_unmerging_is_exact(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unmerged = call(model, tiny.inputs())
    with replora.merged(model):
        once = call(model, tiny.inputs())
        replora.merge(model)
        torch.testing.assert_close(call(model, tiny.inputs()), once, rtol=0, atol=0)
    torch.testing.assert_close(once, unmerged, rtol=1e-4, atol=1e-5)
    if method in LOW_RANK:
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        torch.testing.assert_close(call(model, tiny.inputs()), unmerged, rtol=0, atol=0)


@pytest.mark.parametrize(("model_name", "method"), UPDATING)
def test_disabled_is_the_backbone(model_name: str, method: str) -> None:
    model, tiny = build(model_name)
    before = call(model, tiny.inputs())
    replora.inject(model, METHODS[method], also_train=[tiny.head], example=tiny.inputs())
    disturb(model)
    changed = call(model, tiny.inputs())
    assert not torch.allclose(changed, before, atol=1e-4)
    with replora.disabled(model):  # torch's own attention takes another path when nothing needs gradients
        torch.testing.assert_close(call(model, tiny.inputs()), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(call(model, tiny.inputs()), changed, rtol=0, atol=0)


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_saved_adapter_gives_equal_outputs_in_a_fresh_model(model_name: str, method: str, tmp_path) -> None:
    model, tiny = adapted(model_name, method)
    backbone = {name: tensor.clone() for name, tensor in build(model_name)[0].state_dict().items()}
    train(model, tiny, steps=2)
    path = replora.save_adapter(model, tmp_path / "adapter.safetensors", {"note": "test"})
    fresh, _ = build(model_name)
    fresh.load_state_dict(backbone)
    torch.manual_seed(99)  # another adapter initialization
    replora.inject(fresh, METHODS[method], also_train=[tiny.head], example=tiny.inputs())
    description = replora.load_adapter(fresh, path)
    assert description["method"] == METHODS[method].name
    torch.testing.assert_close(call(fresh, tiny.inputs()), call(model, tiny.inputs()), rtol=0, atol=0)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
def test_file_holds_no_backbone_weights(method: str, tmp_path) -> None:
    model, _ = adapted("hf_vit", method)
    path = replora.save_adapter(model, tmp_path / "adapter.safetensors")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert file.metadata()["format"] == "replora-adapter"
    backbone = {name for name, _ in build("hf_vit")[0].named_parameters() if "bias" not in name}
    assert not {name for name in names if name in backbone and not name.startswith("classifier")}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_removal_gives_the_backbone_back(model_name: str, method: str) -> None:
    model, tiny = build(model_name)
    before, keys = call(model, tiny.inputs()), set(model.state_dict())
    replora.inject(model, METHODS[method], also_train=[tiny.head], example=tiny.inputs())
    disturbed = method in (*LOW_RANK, "dora")
    if disturbed:
        disturb(model)
    replora.remove(model)
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(call(model, tiny.inputs()), before, rtol=0, atol=0)
    with pytest.raises(replora.RepLoRAError, match="carries no adapter"):
        replora.parameter_counts(model)


@pytest.mark.parametrize(
    ("model_name", "method"), [*product(MODELS, ["replora", "lora"]), ("timm_vit", "replora_tied")]
)
def test_deep_copy_and_pickle_are_independent_and_equal(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    want = call(model, tiny.inputs()).detach()
    copied = copy.deepcopy(model)
    pickled = pickle.loads(pickle.dumps(model))
    disturb(model)  # the copies must not see this
    assert not torch.allclose(call(model, tiny.inputs()), want, atol=1e-4)
    for twin in (copied, pickled):
        torch.testing.assert_close(call(twin, tiny.inputs()), want, rtol=0, atol=0)
        train(twin, tiny, steps=1)
        assert not torch.equal(call(twin, tiny.inputs()), want)


@pytest.mark.parametrize(
    ("model_name", "method", "reentrant"),
    [
        *product(["timm_vit", "timm_swin", "hf_llama", "hf_bart"], ["replora", "lora"], [False]),
        *product(["hf_llama"], ["replora", "replora_tied", "linear", "lora"], [True]),
    ],
)
def test_gradient_checkpointing_gives_equal_gradients(model_name: str, method: str, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, tiny = adapted(model_name, method)
        disturb(model)
        model.train()
        if reentrant:
            model.enable_input_require_grads()
        if checkpointing and hasattr(model, "set_grad_checkpointing"):
            model.set_grad_checkpointing(True)
        elif checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(1)
        call(model, tiny.inputs()).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["replora", "replora_tied", "linear", "lora"])
def test_compiled_model_agrees_and_its_state_loads_in_a_plain_one(method: str) -> None:
    model, tiny = adapted("timm_vit", method)
    disturb(model)
    want = call(model, tiny.inputs())
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(call(compiled, tiny.inputs()), want, rtol=1e-5, atol=1e-6)
    call(compiled, tiny.inputs()).square().mean().backward()
    assert all(p.grad is not None for p in compiled.parameters() if p.requires_grad)
    plain, _ = adapted("timm_vit", method, seed=0)
    replora.load_adapter_state(plain, {f"_orig_mod.{n}": t for n, t in replora.adapter_state(compiled).items()})
    torch.testing.assert_close(call(plain, tiny.inputs()), want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model_name", "method"),
    [
        *product(["timm_vit", "hf_llama", "torchvision_swin", "torch_encoder"], ["replora"]),
        *product(["timm_vit", "hf_llama"], ["replora_tied"]),
    ],
)
def test_adapter_stays_in_float32_on_a_bfloat16_backbone(model_name: str, method: str) -> None:
    model, tiny = build(model_name)
    model = model.bfloat16()
    inputs = tiny.inputs()
    inputs = inputs.bfloat16() if isinstance(inputs, torch.Tensor) else inputs
    replora.inject(model, METHODS[method], also_train=[tiny.head], example=inputs)
    assert {p.dtype for p in model.replora.banks.parameters()} == {torch.float32}
    disturb(model)
    unmerged = call(model, inputs)
    assert unmerged.dtype == torch.bfloat16
    with replora.merged(model):
        torch.testing.assert_close(call(model, inputs), unmerged, rtol=0.1, atol=0.1)


def test_autocast_agrees_with_float32() -> None:
    model, tiny = adapted("timm_vit", "replora")
    disturb(model)
    want = call(model, tiny.inputs())
    with torch.autocast("cpu", torch.bfloat16):
        got = call(model, tiny.inputs())
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.05)


def test_state_survives_torch_save_with_weights_only() -> None:
    model, _ = adapted("timm_vit", "replora")
    buffer = io.BytesIO()
    torch.save(replora.adapter_state(model), buffer)
    buffer.seek(0)
    replora.load_adapter_state(model, torch.load(buffer, weights_only=True))
