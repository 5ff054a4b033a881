"""What stands around a model or around its layers: compilation, distribution, averages, other libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import replora
from tests.adapters.test_contract import adapted, build, disturb
from tests.adapters.tiny_models import call


@pytest.fixture
def process_group(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def eager(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def accelerated(model: nn.Module) -> nn.Module:
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(model)


WRAPPERS = {
    "ddp": DistributedDataParallel,
    "averaged": AveragedModel,
    "compiled": eager,
    "accelerate": accelerated,
    "compiled ddp": lambda model: eager(DistributedDataParallel(model)),
    "ddp of compiled": lambda model: DistributedDataParallel(eager(model)),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("model_name", "method"), [("timm_vit", "replora"), ("timm_vit", "dora")])
def test_every_call_takes_a_wrapped_model(wrapper: str, model_name: str, method: str, tmp_path: Path) -> None:
    model, tiny = adapted(model_name, method)
    disturb(model)
    want = call(model, tiny.inputs()).detach()
    wrapped = WRAPPERS[wrapper](model)
    assert replora.describe(wrapped) == replora.describe(model)
    assert replora.parameter_counts(wrapped) == replora.parameter_counts(model)
    assert replora.adapter_state(wrapped).keys() == replora.adapter_state(model).keys()
    file = replora.save_adapter(wrapped, tmp_path / "a.safetensors")
    replora.export_peft(wrapped, tmp_path / "peft")
    with replora.merged(wrapped):
        torch.testing.assert_close(call(wrapped, tiny.inputs()), want, rtol=1e-4, atol=1e-5)
    with replora.disabled(wrapped):
        assert not torch.allclose(call(wrapped, tiny.inputs()), want, atol=1e-4)
    replora.unmerge(replora.merge(wrapped))
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        replora.load_adapter_state(wrapped, {f"{prefix}{n}": t for n, t in replora.adapter_state(model).items()})
    replora.load_adapter(wrapped, file)
    replora.load_adapter(wrapped, file, name="again")
    assert replora.adapter_names(wrapped) == ["again", "default"]
    replora.set_adapter(wrapped, "default")
    torch.testing.assert_close(call(wrapped, tiny.inputs()), want)
    assert replora.merge_and_unload(wrapped) is wrapped
    torch.testing.assert_close(call(wrapped, tiny.inputs()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("process_group")
def test_of_another_outer_module_the_right_part_is_named() -> None:
    model, _ = adapted("timm_vit", "replora")
    with pytest.raises(replora.RepLoRAError, match="Its module '1' does"):
        replora.merge(nn.Sequential(nn.Identity(), model))
    plain, _ = build("timm_vit")
    with pytest.raises(replora.RepLoRAError, match=r"Inject into model\.module first"):
        replora.inject(DistributedDataParallel(plain), replora.RepLoRAConfig(rank=2))


def compile_layers(model: nn.Module, in_place: bool) -> None:
    layers = model.blocks if hasattr(model, "blocks") else model.model.layers
    for number, layer in enumerate(list(layers)):
        if in_place:
            layer.compile(backend="eager")
        else:
            layers[number] = eager(layer)


@pytest.mark.parametrize("method", ["replora", "dora", "linear_probe"])
def test_a_head_that_is_compiled_by_itself_takes_the_one_of_a_file(method: str, tmp_path: Path) -> None:
    plain, tiny = adapted("timm_vit", method)
    disturb(plain)
    want = call(plain, tiny.inputs()).detach()
    file = replora.save_adapter(plain, tmp_path / "a.safetensors")
    model, _ = build("timm_vit")
    model.head = eager(model.head)
    for name in ("first", "second"):
        replora.load_adapter(model, file, name=name)
        torch.testing.assert_close(call(model, tiny.inputs()), want)
    replora.set_adapter(model, "first")
    again = replora.save_adapter(model, tmp_path / "b.safetensors")
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("check", ["made-up example", "first pass"])
@pytest.mark.parametrize(
    ("model_name", "config"),
    [
        ("timm_vit", replora.RepLoRAConfig(rank=2, hidden=4)),
        ("hf_llama", replora.RepLoRAConfig(rank=2, hidden=4)),
        ("hf_llama", replora.PeftMethodConfig("dora", rank=2)),
    ],
)
def test_layers_are_compiled_before_or_after(
    model_name: str,
    config: replora.AdapterConfig,
    check: str,
    before: bool,
    in_place: bool,
    tmp_path: Path,
    monkeypatch,
) -> None:
    if check == "first pass":
        monkeypatch.setattr("replora.adapters.verify.example_input", lambda _model: None)
    head = {"timm_vit": "blocks.2.norm2", "hf_llama": "model.layers.1.input_layernorm"}[model_name]
    plain, tiny = build(model_name)
    replora.inject(plain, config, also_train=[head])
    disturb(plain)
    want = call(plain, tiny.inputs()).detach()
    state = replora.adapter_state(plain)

    model, _ = build(model_name)
    if before:
        compile_layers(model, in_place)
    replora.inject(model, config, also_train=[head])
    if not before:
        compile_layers(model, in_place)
    replora.load_adapter_state(model, state)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-5, atol=1e-6)
    assert replora.describe(model) == replora.describe(plain)
    assert replora.adapter_state(model).keys() == state.keys()
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    fresh, _ = build(model_name)
    replora.load_adapter(fresh, file)
    torch.testing.assert_close(call(fresh, tiny.inputs()), want, rtol=1e-5, atol=1e-6)
    replora.load_adapter(model, file)

    monkeypatch.undo()
    from peft import PeftModel

    replora.export_peft(model, tmp_path / "peft")
    stock = PeftModel.from_pretrained(build(model_name)[0], tmp_path / "peft").eval()
    torch.testing.assert_close(call(stock, tiny.inputs()), want, rtol=1e-4, atol=1e-5)
    replora.remove(model)
    assert {p.requires_grad for p in model.parameters()} == {True}


@pytest.mark.parametrize("method", [replora.RepLoRAConfig(rank=2), replora.PeftMethodConfig("dora", rank=2)])
@pytest.mark.parametrize("given", [False, True])
def test_injected_under_inference_mode_it_can_train(method: replora.AdapterConfig, given: bool) -> None:
    model, tiny = build("timm_vit")
    with torch.inference_mode():
        replora.inject(model, method, also_train=["head"], example=tiny.inputs() if given else None)
    call(model, tiny.inputs().clone()).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_on_a_model_that_peft_has_wrapped_the_way_out_is_named() -> None:
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model

    lora = LoraConfig(target_modules=["q_proj"])
    for wrapped in (get_peft_model(build("hf_llama")[0], lora), inject_adapter_in_model(lora, build("hf_llama")[0])):
        with pytest.raises(replora.RepLoRAError, match=r"the peft library already.*unload"):
            replora.inject(wrapped, replora.RepLoRAConfig(rank=2))


@pytest.mark.parametrize("value", ["8", 2.5, True, 1e9, 8.0, None, float("nan"), np.float32(8), -1, 0])
@pytest.mark.parametrize("option", ["rank", "hidden", "alpha", "dropout", "blocks", "scale_exponent"])
def test_options_of_wrong_types_are_refused(option: str, value) -> None:
    allowed = {
        "hidden": [None],
        "alpha": [None, 2.5, 8.0, 1e9],
        "dropout": [0],
        "scale_exponent": [0],
        "blocks": [],
        "rank": [],
    }
    if any(value is one or (type(value) is type(one) and value == one) for one in allowed[option]):
        replora.RepLoRAConfig(**{option: value})
        return
    given = [value] if option == "blocks" else value
    if option == "blocks" and isinstance(value, int) and not isinstance(value, bool):
        return  # an index, which the model must have
    for config in (replora.RepLoRAConfig, replora.PeftMethodConfig):
        if hasattr(config, option):
            with pytest.raises(replora.RepLoRAError, match=f"^{option}: "):
                config(**{option: given})


def test_a_rank_beyond_the_matrices_is_refused() -> None:
    model, _ = build("timm_vit")
    with pytest.raises(replora.RepLoRAError, match="rank: 1000000000 is out of range"):
        replora.inject(model, replora.RepLoRAConfig(rank=10**9))
    assert not hasattr(model, "replora")


@pytest.mark.parametrize("method", ["replora", "lora", "dora", "full", "linear_probe"])
@pytest.mark.parametrize("model_name", ["hf_llama", "timm_vit"])
def test_a_model_prepared_by_accelerate_trains_saves_and_goes_on(model_name: str, method: str, tmp_path) -> None:
    from accelerate import Accelerator

    model, tiny = adapted(model_name, method)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(replora.parameter_groups(model), lr=1e-2))
    for _ in range(2):
        with accelerator.accumulate(prepared):
            accelerator.backward(call(prepared.train(), tiny.inputs()).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state(str(tmp_path / "state"))
    want = call(prepared.eval(), tiny.inputs()).detach()
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(parameter.requires_grad)
    accelerator.load_state(str(tmp_path / "state"))
    torch.testing.assert_close(call(prepared, tiny.inputs()), want, rtol=0, atol=0)
    there, _ = build(model_name)
    replora.load_adapter(there, replora.save_adapter(prepared, tmp_path / "adapter.safetensors"))
    torch.testing.assert_close(call(there, tiny.inputs()), want)
    unwrapped = accelerator.unwrap_model(prepared)
    if method not in ("full", "linear_probe"):
        with replora.merged(prepared):
            torch.testing.assert_close(call(unwrapped, tiny.inputs()), want, rtol=1e-4, atol=1e-5)
    if model_name == "hf_llama":
        unwrapped.save_pretrained(tmp_path / "saved", state_dict=accelerator.get_state_dict(prepared))
        saved = type(unwrapped).from_pretrained(tmp_path / "saved").eval()
        if method != "full":
            replora.load_adapter(saved, tmp_path / "saved" / "adapter.safetensors")
        torch.testing.assert_close(call(saved, tiny.inputs()), want)


def test_adapters_do_not_wait_for_distributed_tensors() -> None:
    """Their module takes ten times as long to import as the adapters; who shares out a model has imported it."""
    code = "import sys, replora.adapters.inject; sys.exit('torch.distributed.tensor' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
