"""Weights that the input and the output embedding share, with adapters on them and modules that train as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import replora
from tests.adapters.test_contract import disturb
from tests.adapters.tiny_models import call, hf_bart, hf_llama, tied_llama, tokens

BOTH = ["model.embed_tokens", "lm_head"]
METHODS = {
    "RepLoRA": replora.RepLoRAConfig(rank=2, hidden=4, targets=("q",)),
    "LoRA": replora.LoRAConfig(rank=2, targets=("q",)),
    "dora": replora.PeftMethodConfig("dora", rank=2, targets=("q",)),
    "probe": replora.LinearProbeConfig(),
}
ON_HEAD = {
    "RepLoRA": replora.RepLoRAConfig(rank=2, hidden=4, targets=("q", "lm_head")),
    "LoRA": replora.LoRAConfig(rank=2, targets=("q", "lm_head")),
    "dora": replora.PeftMethodConfig("dora", rank=2, targets=("q", "lm_head")),
}


def fresh(build=tied_llama) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def trained(config: replora.AdapterConfig, also_train=(), build=tied_llama) -> nn.Module:
    model = replora.inject(fresh(build), config, also_train=also_train)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    disturb(model)
    return model


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return call(model, tokens())


def tied(model: nn.Module) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("heads", [BOTH, BOTH[::-1]])
@pytest.mark.parametrize("method", METHODS)
def test_both_may_train_as_a_whole_and_their_file_loads(method: str, heads: list[str], tmp_path: Path) -> None:
    model = trained(METHODS[method], heads)
    want = out(model)
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    assert [name for name in load_file(file) if not name.startswith(("replora.", "model.layers"))] == [
        "model.embed_tokens.weight"
    ]
    plain = fresh()
    base = out(plain)
    replora.load_adapter(plain, file)
    assert tied(plain)
    assert torch.equal(out(plain), want)
    # As the initial values of an adapter that is there, and beside it.
    again = replora.inject(fresh(), METHODS[method], also_train=heads)
    replora.load_adapter(again, file)
    replora.load_adapter(again, file, name="other")
    replora.set_adapter(again, "default")
    assert tied(again)
    assert torch.equal(out(again), want)
    torch.testing.assert_close(out(replora.merge_and_unload(again)), want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(base, want, atol=1e-3)


def test_files_of_tied_and_untied_models_are_not_mixed_up(tmp_path: Path) -> None:
    for build, other in ((tied_llama, hf_llama), (hf_llama, tied_llama)):
        file = replora.save_adapter(trained(METHODS["LoRA"], BOTH, build), tmp_path / "a.safetensors")
        plain = fresh(other)
        with pytest.raises(replora.RepLoRAError):
            replora.load_adapter(plain, file, force=True)
        assert not hasattr(plain, "replora")


@pytest.mark.parametrize("equal", [True, False])
def test_a_folder_of_peft_that_trained_the_two_apart_is_refused(equal: bool, tmp_path: Path) -> None:
    model = trained(METHODS["LoRA"], BOTH)
    folder = replora.export_peft(model, tmp_path / "peft")
    if not equal:
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors["base_model.model.lm_head.weight"] += 1
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(replora.PeftFormatError, match=r"different values for .* Untie them"):
            replora.import_peft(fresh(), folder)
        return
    plain = fresh()
    replora.import_peft(plain, folder)
    assert tied(plain)
    torch.testing.assert_close(out(plain), out(model))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("method", ON_HEAD)
def test_an_adapted_tied_head_can_be_tied_again(method: str, merged: bool) -> None:
    model = trained(ON_HEAD[method])
    want, names = out(model), model.state_dict().keys()
    types = [type(module) for module in model.modules()]
    if merged:
        replora.merge(model)
    model.tie_weights()
    torch.testing.assert_close(out(model), want, rtol=1e-4, atol=1e-5)
    replora.unmerge(model)
    assert torch.equal(out(model), want) or method == "dora"
    assert model.state_dict().keys() == names
    assert [type(module) for module in model.modules()] == types
    replora.remove(model)
    assert tied(model)
    assert torch.equal(out(model), out(fresh()))
    assert not {"tie_weights", "resize_token_embeddings"} & vars(model).keys()


def test_tying_again_reaches_a_new_embedding() -> None:
    """As after `model.set_input_embeddings`, which is what `tie_weights` is for."""
    model = trained(ON_HEAD["RepLoRA"])
    table = nn.Embedding(50, 24)
    model.set_input_embeddings(table)
    for merge in (False, True):
        with torch.no_grad():
            table.weight.add_(1)
        if merge:
            replora.merge(model)
        model.tie_weights()
    assert model.lm_head.updates[0].base_before_merge is table.weight
    replora.unmerge(model)
    assert model.lm_head.linear.weight is table.weight


@pytest.mark.parametrize("method", ON_HEAD)
@pytest.mark.parametrize("build", [tied_llama, hf_llama])
def test_an_adapted_head_keeps_its_vocabulary(method: str, build) -> None:
    model = trained(ON_HEAD[method], build=build)
    want = out(model)
    for size, multiple in ((60, None), (None, 32), (50, 64)):
        with pytest.raises(
            replora.RepLoRAError, match=r"lm_head is adapted.*from 50 to \d+ tokens.*before replora\.inj"
        ):
            model.resize_token_embeddings(size, multiple)
    assert model.resize_token_embeddings() is model.resize_token_embeddings(50) is model.get_input_embeddings()
    assert model.resize_token_embeddings(41, pad_to_multiple_of=25).num_embeddings == 50
    assert torch.equal(out(model), want)


@pytest.mark.parametrize("also_train", [(), BOTH])
@pytest.mark.parametrize("build", [tied_llama, hf_llama, hf_bart])
def test_a_vocabulary_that_is_not_adapted_may_grow(build, also_train, tmp_path: Path) -> None:
    if also_train and build is hf_bart:
        also_train = ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    model = trained(METHODS["RepLoRA"], also_train, build)
    want = out(model)
    trains = [p.requires_grad for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)]
    model.resize_token_embeddings(60)
    assert out(model).shape[-1] == 60
    torch.testing.assert_close(out(model)[..., :50], want, rtol=1e-4, atol=1e-5)
    assert [
        p.requires_grad for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    ] == trains
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    plain = fresh(build)
    plain.resize_token_embeddings(60)
    replora.load_adapter(plain, file, force=True)
    if also_train:
        assert torch.equal(out(plain), out(model))
