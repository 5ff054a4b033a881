"""What PEFT's own tests demand of a LoRA model, with `reparameterize` in place: each function is one promise."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn

import replora
from replora.adapters.peft_lora.generators import Reparameterized
from tests.adapters.peft_zoo import Narrow, rows
from tests.adapters.tiny_models import hf_llama, tokens


def plain() -> nn.Module:
    torch.manual_seed(0)
    return Narrow().eval()


def config(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["first", "last"]} | options)


def out(model: nn.Module, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(rows(), **options)


def stir(model: nn.Module, *names: str) -> None:
    """Give the generators of these adapters other values."""
    with torch.no_grad():
        for name in names or ("default",):
            for parameter in model.replora[name].parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))


def made(**options: Any) -> nn.Module:
    """A model whose adapter changes the outputs."""
    model = replora.reparameterize(peft.get_peft_model(plain(), config(**options)).eval())
    stir(model)
    return model


def two() -> nn.Module:
    """One with a second adapter, of another rank."""
    model = made()
    model.add_adapter("other", config(r=2, target_modules=["first"]))
    replora.reparameterize(model, "other")
    stir(model, "other")
    return model.eval()


def stock(model: nn.Module) -> nn.Module:
    """The same adapters in a model without replora."""
    other = peft.get_peft_model(plain(), copy.deepcopy(model.peft_config["default"]))
    for name, own in model.peft_config.items():
        if name != "default":
            other.add_adapter(name, copy.deepcopy(own))
        peft.set_peft_model_state_dict(other, peft.get_peft_model_state_dict(model, adapter_name=name), name)
    other.base_model.set_adapter(model.active_adapters)
    return other.eval()


def close(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def differs(got: Tensor, want: Tensor) -> bool:
    return not torch.allclose(got, want, rtol=1e-3, atol=1e-3)


def merges(_: Path) -> None:
    for safe in (False, True):
        model = made()
        want = out(model)
        model.merge_adapter(safe_merge=safe)
        close(out(model), want)
        with pytest.raises(replora.RepLoRAError, match=r"first is merged\. Call unmerge_adapter"):
            replora.reparameterize(replora.materialize(copy.deepcopy(model)))
        model.unmerge_adapter()
        close(out(model), want)
        close(out(model.merge_and_unload(safe_merge=safe)), want)


def refuses_to_merge_nan(_: Path) -> None:
    model = made()
    with torch.no_grad():
        next(model.replora.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)


def unloads(_: Path) -> None:
    model = made()
    base = model.unload()
    assert torch.equal(out(base), out(plain()))
    assert not base._forward_pre_hooks
    assert pickle.loads(pickle.dumps(base)).state_dict().keys() == plain().state_dict().keys()


def switches_off(_: Path) -> None:
    model = made()
    want = out(model)
    with model.disable_adapter():
        assert torch.equal(out(model), out(plain()))
    assert torch.equal(out(model), want)


def switches_adapters(_: Path) -> None:
    model = two()
    first = out(model)
    model.set_adapter("other")
    other = out(model)
    assert differs(first, other)
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"other"}
    model.set_adapter("default")
    assert torch.equal(out(model), first)
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"default"}
    model.base_model.set_adapter(["default", "other"])
    close(out(model), out(stock(model)))
    assert differs(out(model), first)
    model.train()(rows()).square().mean().backward()
    assert all(p.grad is not None for p in model.replora.parameters())


def mixes_adapters_in_a_batch(_: Path) -> None:
    model = two()
    names = ["default", "other", "__base__", "default", "other", "__base__", "default", "other"]
    close(out(model, adapter_names=names), out(stock(model), adapter_names=names))


def deletes(_: Path) -> None:
    model = two()
    want = out(model)
    model.delete_adapter("other")
    assert torch.equal(out(model), want)
    assert list(model.replora) == ["default"]
    model.delete_adapter("default")
    assert not model.replora.generators()
    assert torch.equal(out(model.unload()), out(plain()))


def adds_weighted_adapters(_: Path) -> None:
    """Of every kind, as a new adapter and into a reparameterized one of the same name."""
    kinds = ("linear", "svd", "ties", "dare_linear", "magnitude_prune", "cat", "ties_svd", "magnitude_prune_svd")
    for kind in kinds:
        model = made()
        model.add_adapter("other", config())
        replora.reparameterize(model, "other")
        stir(model, "other")
        options = {} if kind in ("linear", "svd", "cat") else {"density": 0.5}
        outputs = []
        for each in (model, stock(model)):
            torch.manual_seed(3)
            each.add_weighted_adapter(["default", "other"], [0.7, 0.3], "sum", combination_type=kind, **options)
            each.set_adapter("sum")
            outputs.append(out(each))
        close(*outputs, tolerance=1e-4)


def tells_its_state(_: Path) -> None:
    model, other = two(), stock(two())
    assert model.get_layer_status() == other.get_layer_status()
    status = model.get_model_status()
    assert (status.num_adapter_layers, status.active_adapters) == (2, ["default"])
    assert status.requires_grad == {"default": True, "other": False}
    trained, total = model.get_nb_trainable_parameters()
    assert trained == sum(p.numel() for p in model.replora["default"].parameters())
    assert total == sum(p.numel() for p in model.parameters())
    model.print_trainable_parameters()


def freezes_and_releases(_: Path) -> None:
    model = two()
    for name, flag in (("other", True), ("default", False), ("default", True)):
        model.set_requires_grad(name, requires_grad=flag)
        assert all(p.requires_grad is flag for p in model.replora[name].parameters())


def swaps_hot(folder: Path) -> None:
    first, second = made(), made()
    stir(second)
    second.save_pretrained(folder)
    assert differs(out(first), out(second))
    hotswap_adapter(first, str(folder), adapter_name="default")
    close(out(first), out(second))
    first.train()(rows()).square().mean().backward()  # and goes on training
    assert all(p.grad is not None for p in first.replora.parameters())


def refuses_to_swap_in_a_higher_rank(folder: Path) -> None:
    made(r=8).save_pretrained(folder)
    with pytest.raises(replora.RepLoRAError, match=r"cannot become one of shape .*replora.materialize"):
        hotswap_adapter(made(), str(folder), adapter_name="default")


def takes_what_is_written_into_a_matrix(_: Path) -> None:
    model = made()
    layer = model.base_model.model.first
    layer.reset_lora_parameters("default", True)
    model.base_model.model.last.reset_lora_parameters("default", "gaussian")
    assert torch.equal(out(model), out(plain()))
    value = torch.randn(16, 4)
    for write in (
        lambda: layer.lora_B["default"].weight.data.copy_(value),
        lambda: setattr(layer.lora_B["default"].weight, "data", value),
        lambda: setattr(layer.lora_B["default"], "weight", nn.Parameter(value)),
        lambda: torch.add(value, 0, out=layer.lora_B["default"].weight.data),
        lambda: layer.lora_B["default"].weight.data[:].mul_(0).add_(value),
    ):
        nn.init.zeros_(layer.lora_B["default"].weight)
        assert not layer.lora_B["default"].weight.any()
        write()
        close(layer.lora_B["default"].weight.detach(), value)
    assert type(copy.deepcopy(layer.lora_B["default"].weight.detach())) is Tensor


def loads_without_memory(folder: Path) -> None:
    model = made()
    model.save_pretrained(folder)
    other = peft.PeftModel.from_pretrained(plain(), folder, low_cpu_mem_usage=True, is_trainable=True).eval()
    close(out(replora.reparameterize(other)), out(model))
    other.load_adapter(folder, "second", low_cpu_mem_usage=True)
    other.set_adapter("second")
    close(out(other), out(model))
    empty = peft.get_peft_model(plain(), config(), low_cpu_mem_usage=True)
    with pytest.raises(replora.RepLoRAError, match="has no values yet"):
        replora.reparameterize(empty)


def injects_into_a_model(_: Path) -> None:
    model = replora.reparameterize(peft.inject_adapter_in_model(config(), plain()).eval())
    assert torch.equal(out(model), out(plain()))
    stir(model)
    want = out(model)
    state = peft.get_peft_model_state_dict(model)
    other = peft.inject_adapter_in_model(config(), plain()).eval()
    peft.set_peft_model_state_dict(other, state)
    close(out(other), want)


def copies_and_pickles(folder: Path) -> None:
    model = two()
    want = out(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(out(other), want)
        stir(other)
        assert differs(out(other), want)
        assert torch.equal(out(model), want)
    torch.save(model.state_dict(), folder / "state.pt")
    other = two()
    other.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    assert torch.equal(out(other), want)


def serves_threads(_: Path) -> None:
    model = two()
    want, wrong = out(model), []

    def serve() -> None:
        wrong.extend(i for i in range(20) if not torch.equal(out(model), want))

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def runs_in_half_precision(_: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for autocast in (True, False):
            model = peft.get_peft_model(plain().to(dtype), config(), autocast_adapter_dtype=autocast).eval()
            want = model(rows().to(dtype))
            replora.reparameterize(model)
            assert {p.dtype for p in model.replora.parameters()} == {torch.float32 if autocast else dtype}
            assert torch.equal(model(rows().to(dtype)), want)
            model.train()(rows().to(dtype)).float().square().mean().backward()
            assert all(p.grad.isfinite().all() for p in model.replora.parameters() if p.grad is not None)
        moved = made().to(dtype)
        assert moved(rows().to(dtype)).dtype == dtype
        assert made().to("meta")(rows().to("meta")).is_meta


def notices_replaced_matrices(_: Path) -> None:
    model = made()
    want = out(model)
    layer = model.base_model.model.first
    layer.update_layer("default", 4, 8, config())
    with pytest.raises(replora.RepLoRAError, match=r"replaced in base_model.model.first .*materialize.*reparameterize"):
        out(model)
    replora.materialize(model)
    assert differs(out(model), want)  # the new matrices, which peft has drawn
    replora.reparameterize(model)
    out(model)


def forgets_removed_layers(_: Path) -> None:
    model = replora.reparameterize(peft.inject_adapter_in_model(config(), plain()).eval())
    for name in ("first", "last"):
        setattr(model, name, getattr(model, name).get_base_layer())
    assert torch.equal(out(model), out(plain()))
    assert isinstance(model.replora, Reparameterized)
    assert not model.replora.generators()
    model = replora.reparameterize(peft.inject_adapter_in_model(config(), model))
    assert list(model.replora) == ["default"]


def keeps_what_eva_found(_: Path) -> None:
    torch.manual_seed(0)
    options = {"target_modules": ["q_proj"], "init_lora_weights": "eva", "eva_config": peft.EvaConfig(rho=1.0)}
    for before in (True, False):
        model = peft.get_peft_model(hf_llama(), config(**options)).eval()
        batches = [tokens() for _ in range(4)]
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        if not before:
            replora.reparameterize(model)
        initialize_lora_eva_weights(model, batches)
        found = layer.lora_A["default"].weight.detach().clone()
        if before:
            replora.reparameterize(model)
        close(layer.lora_A["default"].weight.detach(), found)
        assert not layer.lora_B["default"].weight.any()


PROMISES: dict[str, Callable[[Path], None]] = {
    promise.__name__: promise
    for promise in (
        merges,
        refuses_to_merge_nan,
        unloads,
        switches_off,
        switches_adapters,
        mixes_adapters_in_a_batch,
        deletes,
        adds_weighted_adapters,
        tells_its_state,
        freezes_and_releases,
        swaps_hot,
        refuses_to_swap_in_a_higher_rank,
        takes_what_is_written_into_a_matrix,
        loads_without_memory,
        injects_into_a_model,
        copies_and_pickles,
        serves_threads,
        runs_in_half_precision,
        notices_replaced_matrices,
        forgets_removed_layers,
        keeps_what_eva_found,
    )
}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_is_kept(promise: str, tmp_path: Path) -> None:
    PROMISES[promise](tmp_path)
