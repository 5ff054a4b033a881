"""`merge`, `merged` and `disabled` in every order, interrupted, moved and saved in between."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import replora
from replora.adapters.extra_trainable import train_parts
from tests.adapters.test_contract import METHODS, UPDATING, adapted, build, disturb
from tests.adapters.tiny_models import call, tied_llama, tokens

ONE_OF_EACH = [("timm_vit", "replora"), ("torch_encoder", "lora"), ("hf_llama", "replora"), ("hf_llama", "dora")]
ONE_OF_EACH += [("timm_vit", "ia3")] if "ia3" in METHODS else []


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_parameters()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = dict(model.named_parameters())
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_merged_blocks_nest(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    before = snapshot(model)
    with replora.merged(model):
        once = snapshot(model)
        with replora.merged(model):
            assert same(model, once)
        assert same(model, once)
        with pytest.raises(replora.RepLoRAError, match="Leave that block"):
            replora.unmerge(model)
        assert same(model, once)
    assert same(model, before)
    replora.merge(model)
    with replora.merged(model):
        pass
    assert same(model, once)
    replora.unmerge(model)
    assert same(model, before)
    assert not call(model, tiny.inputs()).isnan().any()


@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_disabled_blocks_nest(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    with torch.no_grad():
        own = call(model, tiny.inputs())
        with replora.disabled(model):
            off = call(model, tiny.inputs())
            with replora.disabled(model):
                torch.testing.assert_close(call(model, tiny.inputs()), off, rtol=0, atol=0)
            torch.testing.assert_close(call(model, tiny.inputs()), off, rtol=0, atol=0)
        torch.testing.assert_close(call(model, tiny.inputs()), own, rtol=0, atol=0)
    assert not torch.allclose(own, off, atol=1e-4)


@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_merging_and_switching_off_exclude_each_other(model_name: str, method: str) -> None:
    model, _ = adapted(model_name, method)
    disturb(model)
    before = snapshot(model)
    with replora.disabled(model):
        for merge in (replora.merge, replora.merge_and_unload):
            with pytest.raises(replora.RepLoRAError, match="switched off"):
                merge(model)
        with pytest.raises(replora.RepLoRAError, match="switched off"), replora.merged(model):
            pass
    with replora.merged(model), pytest.raises(replora.RepLoRAError, match="merged"), replora.disabled(model):
        pass
    assert same(model, before)


@pytest.mark.parametrize("method", ["bitfit", "full", "parts"])
def test_what_trains_the_backbone_itself_cannot_be_switched_off(method: str) -> None:
    if method == "parts":
        model, _ = adapted("hf_bart", "lora")
        train_parts(model, ["layer_norm_weights"])
    else:
        model, _ = adapted("timm_vit", method)
    with pytest.raises(replora.RepLoRAError, match="of the backbone itself"), replora.disabled(model):
        pass


def test_the_probe_and_its_head_can_be() -> None:
    model, tiny = adapted("timm_vit", "linear_probe")
    with replora.disabled(model):
        call(model, tiny.inputs())


@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_removing_a_merged_adapter_leaves_the_frozen_backbone(model_name: str, method: str) -> None:
    model, _ = build(model_name)
    before = snapshot(model)
    replora.inject(model, METHODS[method])
    disturb(model)
    replora.remove(replora.merge(model))
    assert same(model, before)
    replora.inject(model, METHODS[method])
    disturb(model)
    with replora.merged(model):
        replora.remove(model)
    assert same(model, before)
    model.load_state_dict(before)  # no hook of the merged layers is left


@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_no_other_adapter_acts_where_one_is_switched_off(model_name: str, method: str, tmp_path: Path) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    path = replora.save_adapter(model, tmp_path / "a.safetensors")
    model, tiny = build(model_name)
    for name in ("first", "second"):
        replora.load_adapter(model, path, name=name)
    with torch.no_grad(), replora.disabled(model):
        off = call(model, tiny.inputs())
        with pytest.raises(replora.RepLoRAError, match="switched off"):
            replora.set_adapter(model, "first")
        with pytest.raises(replora.RepLoRAError, match="switched off"):
            replora.load_adapter(model, path, name="third")
        torch.testing.assert_close(call(model, tiny.inputs()), off, rtol=0, atol=0)
    assert replora.adapter_names(replora.set_adapter(model, "first")) == ["first", "second"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_an_interrupted_merge_leaves_nothing(model_name: str, method: str, error, monkeypatch) -> None:
    model, _ = adapted(model_name, method)
    disturb(model)
    before = snapshot(model)
    second = _second_layer(model)

    def interrupted() -> None:
        type(second).merge(second)
        raise error

    monkeypatch.setattr(second, "merge", interrupted)
    for merge in (replora.merge, replora.merge_and_unload):
        with pytest.raises((error, replora.RepLoRAError)):  # errors of peft are ours
            merge(model)
        assert same(model, before)
    with pytest.raises((error, replora.RepLoRAError)), replora.merged(model):
        pass
    assert same(model, before)
    monkeypatch.undo()
    replora.merge(model)
    assert not same(model, before)


def _second_layer(model: nn.Module):
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (model.replora.updates or [m for m in model.modules() if isinstance(m, BaseTunerLayer)])[1]


@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_a_merged_model_may_change_its_type(model_name: str, method: str) -> None:
    model, _ = adapted(model_name, method)
    disturb(model)
    twin = copy.deepcopy(model).bfloat16()
    with replora.merged(model):
        model.bfloat16()
    assert {p.dtype for p in model.parameters()} == {p.dtype for p in twin.parameters()}
    assert same(model, dict(twin.named_parameters()))


def test_a_tied_weight_stays_tied_when_a_merged_model_changes_its_type() -> None:
    model = replora.inject(tied_llama().eval(), replora.RepLoRAConfig(rank=2, hidden=4, targets=("lm_head",)))
    with replora.merged(model):
        model.bfloat16()
    assert model.lm_head.linear.weight is model.get_input_embeddings().weight
    assert model.lm_head.linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("model_name", "method"), UPDATING)
def test_state_dicts_do_not_depend_on_merging(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with replora.merged(model):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert model.state_dict(keep_vars=True).keys() == before.keys()
        for whole in (model, model.replora):
            with pytest.raises(replora.RepLoRAError, match=r"Call replora\.unmerge before loading"):
                whole.load_state_dict(whole.state_dict())
    assert state.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    other, _ = adapted(model_name, method, seed=3)
    other.load_state_dict(state)
    torch.testing.assert_close(call(other, tiny.inputs()), call(model, tiny.inputs()))


@pytest.mark.parametrize(("model_name", "method"), ONE_OF_EACH)
def test_a_diverged_adapter_is_merged_only_by_force(model_name: str, method: str) -> None:
    model, _ = adapted(model_name, method)
    disturb(model)
    with torch.no_grad():
        for parameter in model.replora.parameters() if len(model.replora.banks) else _added(model):
            parameter.fill_(float("nan"))
    before = {name for name, p in model.named_parameters() if p.isnan().any()}
    for merge in (replora.merge, replora.merge_and_unload):
        with pytest.raises(replora.RepLoRAError, match=r"not finite.*force=True"):
            merge(model)
    with pytest.raises(replora.RepLoRAError, match="not finite"), replora.merged(model):
        pass
    assert {name for name, p in model.named_parameters() if p.isnan().any()} == before
    with replora.merged(model, force=True):
        pass
    plain = replora.merge_and_unload(model, force=True)
    assert any(p.isnan().any() for p in plain.parameters())


def _added(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "lora_" in name or "ia3_" in name]


def test_a_sum_that_overflows_16_bits_is_refused() -> None:
    model, tiny = build("timm_vit")
    replora.inject(model.half(), replora.RepLoRAConfig(rank=2, factors="none"), example=tiny.inputs().half())
    with torch.no_grad():
        for bank in model.replora.banks:
            bank.A[0].fill_(300.0)
            bank.B[0].fill_(300.0)
    with pytest.raises(replora.RepLoRAError, match="does not fit into float16"):
        replora.merge(model)


def test_a_diverged_adapter_is_written_only_by_force(tmp_path: Path) -> None:
    model, _ = adapted("hf_llama", "replora")
    call(model, tokens())
    with torch.no_grad():
        model.replora.banks[0].mlp_A.c.fill_(float("nan"))
    for write in (replora.save_adapter, replora.export_peft):
        with pytest.raises(replora.RepLoRAError, match=r"not finite.*force=True"):
            write(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    replora.save_adapter(model, tmp_path / "a.safetensors", force=True)
    replora.export_peft(model, tmp_path / "peft", force=True)
    fresh, _ = build("hf_llama")
    with pytest.raises(replora.RepLoRAError, match="not finite"):
        replora.load_adapter(fresh, tmp_path / "a.safetensors")
    assert not hasattr(fresh, "replora")
    replora.load_adapter(fresh, tmp_path / "a.safetensors", force=True)
