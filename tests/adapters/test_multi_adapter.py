"""Several adapters on one backbone: one is active at a time, the backbone is never copied, each has its own head."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import torch

import replora
from tests.adapters.test_contract import METHODS, adapted, build, disturb, train
from tests.adapters.tiny_models import call

FAMILIES = ["timm_vit", "timm_beit", "torchvision_vit", "torch_encoder", "hf_vit", "hf_llama", "hf_bart"]


def save(model_name: str, method: str, folder: Path):
    """A trained adapter's file, and its outputs."""
    model, tiny = adapted(model_name, method)
    disturb(model)
    train(model, tiny, steps=1)
    return replora.save_adapter(model, folder / f"{method}.safetensors"), call(model, tiny.inputs()).detach()


@pytest.mark.parametrize("model_name", FAMILIES)
def test_each_gives_its_own_outputs_whatever_was_set_before(model_name: str, tmp_path: Path) -> None:
    methods = ["replora", "lora", "linear", "replora_tied"] + ["dora"] * (model_name in ("timm_vit", "hf_llama"))
    files = {method: save(model_name, method, tmp_path) for method in methods}
    model, tiny = build(model_name)
    plain = call(model, tiny.inputs()).detach()
    weights = {p.data_ptr() for p in model.parameters()}
    for method, (path, _) in files.items():
        replora.load_adapter(model, path, name=method)
    assert replora.adapter_names(model) == [methods[-1], *methods[:-1]]
    for method in [*methods, *reversed(methods)]:
        replora.set_adapter(model, method)
        assert replora.describe(model)["method"] == METHODS[method].name
        torch.testing.assert_close(call(model, tiny.inputs()), files[method][1], rtol=0, atol=0)
    head = {p.data_ptr() for p in model.get_submodule(tiny.head).parameters()}
    own = {p.data_ptr() for p in model.replora.parameters()} | head
    assert {p.data_ptr() for p in model.parameters()} - own <= weights  # the backbone is the one it was
    replora.remove(model)
    assert not torch.equal(call(model, tiny.inputs()), plain)  # the trained head stays, as ever
    for method in methods[1:]:
        replora.delete_adapter(model, method)


def test_heads_of_other_numbers_of_classes(tmp_path: Path) -> None:
    path, want = save("timm_vit", "replora", tmp_path)
    model, tiny = build("timm_vit")
    model.reset_classifier(3)
    with torch.no_grad():
        three = call(model, tiny.inputs())
    replora.load_adapter(model, path, name="five")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)
    other = replora.inject(build("timm_vit")[0], METHODS["lora"])
    replora.save_adapter(other, tmp_path / "headless.safetensors")
    replora.load_adapter(model, tmp_path / "headless.safetensors", name="headless")  # trains no head: the model's own
    torch.testing.assert_close(call(model, tiny.inputs()), three, rtol=0, atol=1e-6)


def test_an_injected_one_is_called_default_and_can_go_on_training(tmp_path: Path) -> None:
    path, want = save("hf_llama", "lora", tmp_path)
    model, tiny = adapted("hf_llama", "replora")
    disturb(model)
    own = call(model, tiny.inputs()).detach()
    replora.load_adapter(model, path, name="other")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)
    replora.set_adapter(model, "default")
    torch.testing.assert_close(call(model, tiny.inputs()), own, rtol=0, atol=0)
    train(model, tiny, steps=1)
    replora.set_adapter(model, "other")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)
    assert not any("lora" in name and "replora" not in name for name in model.state_dict())
    twin = copy.deepcopy(model)
    replora.set_adapter(twin, "default")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)


@pytest.mark.parametrize("acting", ["a", "b"])
def test_the_backbone_can_train_again_when_the_acting_one_is_removed(acting: str, tmp_path: Path) -> None:
    path, _ = save("timm_vit", "replora", tmp_path)
    model, _ = build("timm_vit")
    model.cls_token.requires_grad = False
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    replora.load_adapter(model, path, name="a")
    replora.load_adapter(model, path, name="b")
    replora.set_adapter(model, acting)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name in model.replora.trained if name in dict(model.named_parameters())}
    replora.remove(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before


def test_nothing_waits_when_one_is_folded_in(tmp_path: Path) -> None:
    path, want = save("timm_vit", "replora", tmp_path)
    model, tiny = build("timm_vit")
    for name in ("a", "b"):
        replora.load_adapter(model, path, name=name)
    replora.merge_and_unload(model)
    assert replora.adapter_names(model) == []
    with pytest.raises(replora.RepLoRAError, match="There is no adapter 'a'"):
        replora.set_adapter(model, "a")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_name", ["timm_vit", "hf_vit"])
def test_a_model_may_change_its_type_while_adapters_wait(model_name: str, tmp_path: Path) -> None:
    path, want = save(model_name, "replora", tmp_path)
    model, tiny = build(model_name)
    for name in ("a", "b"):
        replora.load_adapter(model, path, name=name)
    model.bfloat16()
    inputs = tiny.inputs()
    half = {k: v.bfloat16() for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.bfloat16()
    for name in ("a", "b", "a"):
        replora.set_adapter(model, name)
        torch.testing.assert_close(call(model, half).float(), want, rtol=0.1, atol=0.1 * float(want.abs().max()))
    model.float()
    replora.set_adapter(model, "b")
    call(model, inputs)


def test_mistakes_are_named_and_change_nothing(tmp_path: Path) -> None:
    path, want = save("timm_vit", "replora", tmp_path)
    model, tiny = build("timm_vit")
    replora.load_adapter(model, path, name="birds")
    with pytest.raises(replora.RepLoRAError, match="Did you mean 'birds'"):
        replora.set_adapter(model, "bird")
    with pytest.raises(replora.RepLoRAError, match="There is an adapter 'birds' on this model already"):
        replora.load_adapter(model, path, name="birds")
    with pytest.raises(replora.RepLoRAError, match="active"):
        replora.delete_adapter(model, "birds")
    with pytest.raises(replora.RepLoRAError, match="There is no adapter 'cars'"):
        replora.delete_adapter(model, "cars")
    alien, _ = save("hf_llama", "lora", tmp_path)
    with pytest.raises(replora.RepLoRAError, match=r"'model\.norm', which VisionTransformer does not have"):
        replora.load_adapter(model, alien, name="alien")
    replora.save_adapter(replora.inject(build("hf_llama")[0], METHODS["lora"]), alien)
    with pytest.raises(replora.RepLoRAError):
        replora.load_adapter(model, alien, name="alien")
    assert replora.adapter_names(model) == ["birds"]
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)
    replora.merge(model)
    with pytest.raises(replora.RepLoRAError, match="unmerge first"):
        replora.load_adapter(model, path, name="again")
    bitfit, _ = adapted("timm_vit", "bitfit")
    with pytest.raises(replora.RepLoRAError, match="'bitfit' trains the backbone's own parameters"):
        replora.load_adapter(bitfit, path, name="birds")


@pytest.mark.parametrize(
    ("model_name", "method"),
    [*product(FAMILIES, ["replora", "linear"]), ("hf_llama", "dora"), ("timm_vit", "bitfit"), ("hf_vit", "full")],
)
def test_a_file_alone_prepares_a_plain_model(model_name: str, method: str, tmp_path: Path) -> None:
    path, want = save(model_name, method, tmp_path)
    model, tiny = build(model_name)
    assert replora.load_adapter(model, path)["method"] == METHODS[method].name
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model_name", "method"), product(FAMILIES, ["replora_unshared", "replora_tied", "linear", "lora"])
)
def test_deployed_file_is_small_and_equal(model_name: str, method: str, tmp_path: Path) -> None:
    path, want = save(model_name, method, tmp_path)
    trained, tiny = build(model_name)
    replora.load_adapter(trained, path)
    counts = replora.parameter_counts(trained)
    replora.save_adapter(trained, tmp_path / "deployed.safetensors", deploy=True)
    model, _ = build(model_name)
    description = replora.load_adapter(model, tmp_path / "deployed.safetensors")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-5, atol=1e-6)
    assert description["trained_as"]["method"] == METHODS[method].name
    assert description["parameters"]["adapter_trained"] == counts.adapter_deployed
    assert replora.parameter_counts(model).adapter_trained == counts.adapter_deployed
    # What it was trained as is known from then on, also of a file that is saved again.
    for deploy in (True, False):
        replora.save_adapter(model, tmp_path / "again.safetensors", deploy=deploy)
        fresh, _ = build(model_name)
        replora.load_adapter(fresh, tmp_path / "again.safetensors")
        assert replora.describe(fresh)["trained_as"] == description["trained_as"]
