"""Adapter files: what is refused, and that nothing is lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import replora
from replora.adapters.state import read_metadata
from tests.adapters.test_contract import adapted, build, disturb
from tests.adapters.tiny_models import call


def test_state_of_another_rank_or_method_names_the_differences(tmp_path: Path) -> None:
    model, _ = adapted("timm_vit", "replora")
    path = replora.save_adapter(model, tmp_path / "a.safetensors")
    other, _ = adapted("timm_vit", "lora")
    before = {name: tensor.clone() for name, tensor in replora.adapter_state(other).items()}
    with pytest.raises(
        replora.StateMismatchError, match=r"(?s)a\.safetensors \(method replora; rank=2.*missing: replora\.banks"
    ):
        replora.load_adapter(other, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in replora.adapter_state(other).items())

    wider = replora.inject(
        adapted_model_without_adapter(), replora.RepLoRAConfig(rank=3, hidden=4), also_train=["head"]
    )
    with pytest.raises(replora.StateMismatchError, match=r"\(3, 2\) instead of \(3, 3\)"):
        replora.load_adapter(wider, path)


def adapted_model_without_adapter() -> torch.nn.Module:
    return replora.remove(adapted("timm_vit", "replora")[0])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    model, _ = adapted("timm_vit", "replora")
    with pytest.raises(replora.RepLoRAError, match="There is no adapter file"):
        replora.load_adapter(model, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(replora.RepLoRAError, match="damaged or not a safetensors file"):
        replora.load_adapter(model, tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(replora.RepLoRAError, match="not a RepLoRA adapter"):
        replora.load_adapter(model, tmp_path / "other.safetensors")
    future = {"format": "replora-adapter", "version": "99", "description": "{}"}
    save_file({"x": torch.zeros(1)}, tmp_path / "future.safetensors", metadata=future)
    with pytest.raises(replora.RepLoRAError, match="format version 99"):
        replora.load_adapter(model, tmp_path / "future.safetensors")
    named = {"method": "lora", "options": {}}
    for header, message in [
        ({"version": "one", "description": json.dumps(named)}, "damaged: its header gives 'one' as the version"),
        ({"description": json.dumps(named)}, "damaged: its header gives '' as the version"),
        ({"version": "1"}, "damaged: its header has no description"),
        ({"version": "1", "description": "{x"}, "damaged: its header has no description"),
        ({"version": "1", "description": "[]"}, "damaged: its header has no description"),
        ({"version": "1", "description": '{"also_train": []}'}, r"damaged: its description names no method \(also_tr"),
    ]:
        save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={"format": "replora-adapter"} | header)
        with pytest.raises(replora.RepLoRAError, match=message):
            replora.load_adapter(model, tmp_path / "bad.safetensors")
    file = replora.save_adapter(model, tmp_path / "entries.safetensors")
    description = json.loads(read_metadata(file)["description"])
    for entry, value in [
        *(("method", value) for value in (None, 5)),
        *(("options", value) for value in (None, [], "x")),
        *((entry, value) for entry in ("targets", "also_train") for value in (None, 5, [5], "head")),
        *(("base", value) for value in ("x", [1], {"class": "VisionTransformer"}, description["base"] | {"dtype": 5})),
    ]:
        header = read_metadata(file) | {"description": json.dumps(description | {entry: value})}
        save_file(load_file(file), tmp_path / "bad.safetensors", metadata=header)
        for target, name in ((model, None), (model, "second"), (build("timm_vit")[0], None)):
            with pytest.raises(replora.RepLoRAError, match=f"damaged: the entry '{entry}' of its description"):
                replora.load_adapter(target, tmp_path / "bad.safetensors", name=name)
    whole = replora.save_adapter(model, tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(replora.RepLoRAError, match="damaged"):
        replora.load_adapter(model, tmp_path / "half.safetensors")


def test_failed_write_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch) -> None:
    model, _ = adapted("timm_vit", "replora")
    path = replora.save_adapter(model, tmp_path / "adapter.safetensors")
    before = path.read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("replora.adapters.state.save_file", full_disk)
    disturb(model)
    with pytest.raises(OSError, match="No space left"):
        replora.save_adapter(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_state_is_the_same_while_merged_but_cannot_be_replaced() -> None:
    model, _ = adapted("timm_vit", "replora")
    disturb(model)
    state = {name: tensor.clone() for name, tensor in replora.adapter_state(model).items()}
    with replora.merged(model):
        assert all(torch.equal(tensor, state[name]) for name, tensor in replora.adapter_state(model).items())
        with pytest.raises(replora.RepLoRAError, match="merged"):
            replora.load_adapter_state(model, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: 0 is out of range"),
        ({"alpha": 0.0}, "alpha: 0.0"),
        ({"hidden": 0}, "hidden: 0"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"targets": ()}, "targets: "),
        ({"targets": "q"}, "a list of roles or names"),
        ({"targets": None}, "targets: None"),
        ({"targets": [5]}, r"targets: \[5\]"),
        ({"blocks": 5}, "blocks: 5"),
        ({"blocks": None}, "blocks: None"),
        ({"factors": "mpl"}, "Did you mean 'mlp'"),
        ({"activation": "geluu"}, "Did you mean 'gelu'"),
        ({"sharing": "all"}, "sharing: 'all' is not known"),
        ({"blocks": "some"}, "blocks: 'some'"),
        ({"blocks": []}, "at least one block index"),
        ({"scale_exponent": 2.0}, "scale_exponent: 2.0"),
        ({"init": "normal002"}, "needs factors: none"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(replora.RepLoRAError, match=message):
        replora.RepLoRAConfig(**options)


def test_options_of_peft_are_checked() -> None:
    with pytest.raises(replora.RepLoRAError, match="Did you mean 'dora'"):
        replora.PeftMethodConfig(method="doraa")
    with pytest.raises(replora.RepLoRAError, match="rank: 0"):
        replora.PeftMethodConfig(rank=0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"alpha": 2}, r"alpha: 8.* in the file, 2.* here"),
        ({"activation": "tanh"}, "activation: 'gelu' in the file, 'tanh' here"),
        ({"factors": "linear"}, "(?s)factors: 'mlp' in the file, 'linear' here.*activation: 'gelu' .* 'identity' here"),
        ({"scale_exponent": 1.0}, r"scale_exponent: 0\.5 in the file, 1\.0 here"),
        ({"blocks": [1]}, r"targets: .*layers\.0\.self_attn\.q_proj only in the file, .*layers\.1.* only here"),
        ({"targets": ("out",)}, r"targets: .*layers\.0\.self_attn\.q_proj only in the file, .*o_proj only here"),
    ],
)
def test_equal_shapes_of_another_function_are_refused(other: dict, message: str, tmp_path: Path) -> None:
    options = {"rank": 2, "hidden": 4, "alpha": 8, "activation": "gelu", "targets": ("q",), "blocks": [0]}
    model, _ = build("hf_llama")
    replora.inject(model, replora.RepLoRAConfig(**options))
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    there, _ = build("hf_llama")
    replora.inject(there, replora.RepLoRAConfig(**options | other))
    before = {name: tensor.clone() for name, tensor in replora.adapter_state(there).items()}
    with pytest.raises(replora.StateMismatchError, match=message):
        replora.load_adapter(there, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in replora.adapter_state(there).items())


def test_what_changes_training_alone_may_differ_and_so_may_what_a_method_does_not_use(tmp_path: Path) -> None:
    lora = {"rank": 2, "factors": "none"}
    model, tiny = build("hf_llama")
    replora.inject(model, replora.RepLoRAConfig(**lora, hidden=64, activation="gelu", alpha=2))
    disturb(model)
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    there, _ = build("hf_llama")
    replora.inject(there, replora.RepLoRAConfig(**lora, dropout=0.1, init="normal002"))
    replora.load_adapter(there, file)
    torch.testing.assert_close(call(there, tiny.inputs()), call(model, tiny.inputs()), rtol=0, atol=0)


def test_methods_of_peft_are_compared_too(tmp_path: Path) -> None:
    model, _ = build("hf_llama")
    replora.inject(model, replora.PeftMethodConfig("dora", rank=2, alpha=4))
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    there, _ = build("hf_llama")
    replora.inject(there, replora.PeftMethodConfig("dora", rank=2))
    with pytest.raises(replora.StateMismatchError, match="alpha: 4 in the file, 2 here"):
        replora.load_adapter(there, file)


def test_a_head_that_is_not_in_memory_cannot_be_saved(tmp_path: Path) -> None:
    model, _ = build("hf_llama")
    model.lm_head.to("meta")
    replora.inject(model, replora.RepLoRAConfig(rank=2), also_train=["lm_head"], check=False)
    with pytest.raises(replora.RepLoRAError, match=r"lm_head\.weight is not in memory"):
        replora.save_adapter(model, tmp_path / "a.safetensors")
    for update in model.replora.updates:
        update.called = True  # as after a forward pass
    with pytest.raises(replora.RepLoRAError, match=r"lm_head\.weight is not in memory"):
        replora.export_peft(model, tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("model_name", ["timm_vit", "torch_encoder", "hf_llama"])
def test_an_adapter_of_other_backbone_weights_is_refused(model_name: str, present: bool, tmp_path: Path) -> None:
    model, _ = adapted(model_name, "replora")
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    for seed in (3, 0):  # another initialization, as by pretrained=False; that of the training
        there, _ = adapted(model_name, "replora", seed=seed) if present else build(model_name, seed)
        before = {name: tensor.clone() for name, tensor in there.state_dict().items()}
        if seed:
            with pytest.raises(replora.RepLoRAError, match=r"with other weights: their fingerprint is .*force=True"):
                replora.load_adapter(there, file)
            assert all(torch.equal(tensor, before[name]) for name, tensor in there.state_dict().items())
            assert hasattr(there, "replora") == present
        replora.load_adapter(there, file, force=bool(seed))
        assert all(torch.equal(t, replora.adapter_state(model)[n]) for n, t in replora.adapter_state(there).items())


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("served", DTYPES)
@pytest.mark.parametrize("trained", DTYPES)
def test_a_copy_of_the_base_in_another_type_is_that_base(
    trained: torch.dtype, served: torch.dtype, tmp_path: Path
) -> None:
    base = build("timm_vit")[0].to(trained)
    copied = copy.deepcopy(base).to(served)
    file = replora.save_adapter(replora.inject(base, replora.LoRAConfig(rank=2)), tmp_path / "a.safetensors")
    replora.load_adapter(copied, file)
    other = build("timm_vit", seed=3)[0].to(served)
    if trained == served or trained.itemsize != served.itemsize:
        with pytest.raises(replora.RepLoRAError, match="with other weights"):
            replora.load_adapter(other, file)
    else:  # neither of bfloat16 and float16 holds the other
        replora.load_adapter(other, file)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_tensors_of_another_kind_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, _ = adapted("timm_vit", "replora")
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    name = "replora.banks.0.mlp_A.c"
    state = load_file(file) | {name: torch.ones_like(replora.adapter_state(model)[name]).to(dtype)}
    save_file(state, file, metadata=replora.adapters.state.read_metadata(file))
    wrong = f"{name}: {str(dtype).removeprefix('torch.')} instead of float32"
    with pytest.raises(replora.RepLoRAError, match=wrong):
        replora.load_adapter(model, file)
    with pytest.raises(replora.RepLoRAError, match=wrong):
        replora.load_adapter_state(model, state)


def test_files_of_equal_adapters_are_equal(tmp_path: Path) -> None:
    model, _ = adapted("timm_vit", "replora")
    metadata = {f"key {i}": 'ü / \\ " \x01' * i for i in range(12)}
    files = [replora.save_adapter(model, tmp_path / f"{i}.safetensors", metadata) for i in range(8)]
    assert len({file.read_bytes() for file in files}) == 1
    found = replora.adapters.state.read_metadata(files[0])
    assert {key: found[key] for key in metadata} == metadata
    replora.load_adapter(model, files[0])
