"""Round trips with stock PEFT, for every low-rank method on every family, and what PEFT cannot express."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import replora
from tests.adapters.test_contract import LOW_RANK, METHODS, PEFT_MODELS, adapted, build, disturb, train
from tests.adapters.tiny_models import MODELS, call, tied_llama

CALLED = [*PEFT_MODELS, "hf_videomae"]
READ = [name for name in MODELS if name not in CALLED]


def trained(model_name: str, method: str):
    """An adapted model whose adapter and head have moved, its inputs, and the frozen model's outputs."""
    model, tiny = adapted(model_name, method)
    disturb(model)
    train(model, tiny, steps=2)
    return model, tiny


@pytest.mark.parametrize(("model_name", "method"), [*product(CALLED, LOW_RANK), *product(PEFT_MODELS, ["dora"])])
def test_stock_peft_gives_equal_outputs_and_merges_equally(model_name: str, method: str, tmp_path: Path) -> None:
    model, tiny = trained(model_name, method)
    replora.export_peft(model, tmp_path / "peft")
    want = call(model, tiny.inputs())
    base, _ = build(model_name)
    assert not torch.allclose(call(base, tiny.inputs()), want, atol=1e-3)
    opened = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    torch.testing.assert_close(call(opened, tiny.inputs()), want, rtol=0, atol=1e-5)
    plain = opened.merge_and_unload()
    with replora.merged(model):
        torch.testing.assert_close(call(plain, tiny.inputs()), call(model, tiny.inputs()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("model_name", "method"), product(CALLED, LOW_RANK))
def test_import_into_a_plain_model_and_into_the_same_method(model_name: str, method: str, tmp_path: Path) -> None:
    model, tiny = trained(model_name, method)
    want = call(model, tiny.inputs())
    replora.export_peft(model, tmp_path / "peft")
    plain, _ = build(model_name)
    config = replora.import_peft(plain, tmp_path / "peft")
    assert config["peft_type"] == "LORA"
    torch.testing.assert_close(call(plain, tiny.inputs()), want, rtol=0, atol=1e-5)
    start, _ = adapted(model_name, method, seed=0)
    replora.import_peft(start, tmp_path / "peft")
    torch.testing.assert_close(call(start, tiny.inputs()), want, rtol=0, atol=1e-5)
    train(start, tiny, steps=1)  # training goes on from there
    assert not torch.equal(call(start, tiny.inputs()), want)


@pytest.mark.parametrize("method", ["loha", "lokr", "ia3", "oft", "hra"])
def test_methods_of_peft_itself(method: str, tmp_path: Path) -> None:
    model, tiny = build("hf_vit")
    options = {"oft_block_size": 4, "r": 0} if method == "oft" else {}
    config = replora.PeftMethodConfig(method, rank=2, options=options)
    replora.inject(model, config, also_train=[tiny.head])
    disturb(model)
    replora.export_peft(model, tmp_path / "peft")
    base, _ = build("hf_vit")
    opened = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    torch.testing.assert_close(call(opened, tiny.inputs()), call(model, tiny.inputs()), rtol=0, atol=1e-5)


def test_the_fused_layout_is_two_blocks(tmp_path: Path) -> None:
    model, _ = trained("timm_vit", "replora_unshared")
    replora.export_peft(model, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 10, ["qkv"])
    assert isinstance(config["lora_alpha"], int)
    assert config["modules_to_save"] == ["head"]
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    B = tensors["base_model.model.blocks.0.attn.qkv.lora_B.weight"]  # rows q, k, v of 24 each
    assert B.shape == (72, 4)
    assert B[:24, :2].ne(0).any()
    assert B[48:, 2:].ne(0).any()
    assert not B[:24, 2:].any()
    assert not B[24:48].any()
    assert not B[48:, :2].any()


def test_layers_of_several_ranks_and_names_that_need_care(tmp_path: Path) -> None:
    """q and v of the fused layer (rank 4 together), fc1 of rank 2, in one block only: all are written with rank 4.

    llama.cpp has one alpha for a folder and divides it by each tensor's own rank.
    """
    model, tiny = build("timm_vit")
    config = replora.RepLoRAConfig(rank=2, hidden=4, alpha=6, targets=("q", "v", "fc1"), blocks=[1])
    replora.inject(model, config, also_train=["head"])
    disturb(model)
    replora.export_peft(model, tmp_path / "peft")
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == ["blocks.1.attn.qkv", "blocks.1.mlp.fc1"]
    assert not written["rank_pattern"]
    assert not written["alpha_pattern"]
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    ranks = {t.shape[0 if "lora_A" in name else 1] for name, t in tensors.items() if "lora_" in name}
    assert ranks == {written["r"]} == {4}
    assert written["lora_alpha"] / written["r"] == model.replora.config.scale
    want = call(model, tiny.inputs())
    opened = peft.PeftModel.from_pretrained(build("timm_vit")[0], str(tmp_path / "peft")).eval()
    torch.testing.assert_close(call(opened, tiny.inputs()), want, rtol=0, atol=1e-5)
    plain, _ = build("timm_vit")
    replora.import_peft(plain, tmp_path / "peft")
    torch.testing.assert_close(call(plain, tiny.inputs()), want, rtol=0, atol=1e-5)
    back = replora.inject(build("timm_vit")[0], config, also_train=["head"])  # fc1 of rank 2 again
    replora.import_peft(back, tmp_path / "peft")
    torch.testing.assert_close(call(back, tiny.inputs()), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_name", READ)
def test_weights_that_are_only_read_are_refused_with_the_way_out(model_name: str, tmp_path: Path) -> None:
    model, _ = adapted(model_name, "replora")
    with pytest.raises(replora.PeftFormatError, match=r"(?s)reads the weight of .*merge_and_unload"):
        replora.export_peft(model, tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["bitfit", "full", "linear_probe"])
def test_methods_without_an_adapter_are_refused(method: str, tmp_path: Path) -> None:
    model, _ = adapted("timm_vit", method)
    with pytest.raises(replora.PeftFormatError, match=f"{method}.*merge"):
        replora.export_peft(model, tmp_path / "peft")


class TwoHeads(nn.Module):
    """Its heads are `head` and `other_head`: PEFT's rule takes both for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.head, self.other_head = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.proj(x)
        return self.head(x) + self.other_head(x)


def test_what_peft_would_mistake_is_refused_and_unknown_use_asks_for_an_input(tmp_path: Path) -> None:
    config = replora.RepLoRAConfig(rank=2, hidden=4, targets=("proj",))
    model = replora.inject(TwoHeads(), config, also_train=["head"])
    with pytest.raises(replora.PeftFormatError, match="Pass an input"):
        replora.export_peft(model, tmp_path / "peft")
    with pytest.raises(replora.PeftFormatError, match="PEFT would take other_head for the head 'head'"):
        replora.export_peft(model, tmp_path / "peft", example=torch.randn(2, 4))
    model = replora.inject(TwoHeads(), config, also_train=["other_head"])
    replora.export_peft(model, tmp_path / "peft", example=torch.randn(2, 4))
    with pytest.raises(replora.RepLoRAError, match="is not overwritten"):
        replora.export_peft(model, tmp_path / "peft")


@pytest.mark.parametrize(
    "config",
    [
        replora.RepLoRAConfig(rank=2, hidden=4, targets=("q", "lm_head")),
        replora.PeftMethodConfig("lora", targets=["lm_head"]),
    ],
    ids=lambda config: config.name,
)
def test_an_update_of_a_tied_weight_is_refused(config: replora.AdapterConfig, tmp_path: Path) -> None:
    model = replora.inject(tied_llama().eval(), config)
    with pytest.raises(
        replora.PeftFormatError, match=r"lm_head shares its weight with model\.embed_tokens.*merge_and_un"
    ):
        replora.export_peft(model, tmp_path / "peft")
    with replora.merged(model), pytest.raises(replora.PeftFormatError, match="lm_head shares its weight"):
        replora.export_peft(model, tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = adapted("hf_llama", "replora")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("replora.adapters.peft_format.export.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        replora.export_peft(model, tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


def test_card_names_base_data_metrics_license_and_both_counts(tmp_path: Path) -> None:
    model, _ = adapted("hf_llama", "replora")
    counts = replora.parameter_counts(model)
    replora.export_peft(
        model, tmp_path / "p", base_model="org/llama", license="mit", data="arc", metrics={"test/accuracy": 0.5}
    )
    card = (tmp_path / "p" / "README.md").read_text()
    for text in ['base_model: "org/llama"', 'license: "mit"', "| Training data | arc |", "| test/accuracy | 0.5 |"]:
        assert text in card
    assert f"Parameters trained | {counts.adapter_trained:,}" in card
    assert f"Parameters deployed | {counts.adapter_deployed:,}" in card
    assert counts.adapter_trained != counts.adapter_deployed
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == "org/llama"


def test_a_timm_model_is_not_said_to_have_the_hubs_weights(tmp_path: Path) -> None:
    """timm names them in a model with random weights as well."""
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, depth=1)
    replora.inject(model, replora.RepLoRAConfig(rank=2), also_train=["head"])
    replora.export_peft(model, tmp_path / "own")
    card = (tmp_path / "own" / "README.md").read_text()
    assert "base_model:" not in card
    assert 'timm.create_model("vit_tiny_patch16_224", num_classes=3)  # and the weights of its training' in card
    assert json.loads((tmp_path / "own" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    replora.export_peft(model, tmp_path / "hub", base_model="timm/vit_tiny_patch16_224.augreg_in21k")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert 'timm.create_model("vit_tiny_patch16_224.augreg_in21k", pretrained=True, num_classes=3)' in card


# --- folders that PEFT itself wrote


def peft_folder(folder: Path, model_name: str = "hf_llama", **options) -> tuple[Path, torch.Tensor]:
    """A folder written by PEFT, its B not 0, and the outputs of PEFT's model."""
    base, tiny = build(model_name)
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]} | options
    model = peft.get_peft_model(base, peft.LoraConfig(**options)).eval()
    disturb_peft(model)
    model.save_pretrained(str(folder))
    return folder, call(model, tiny.inputs()).detach()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"layers.0.self_attn.v_proj": 2}},
        {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["norm"]},
    ],
)
def test_own_folders_of_peft_are_evaluated_here(options: dict, tmp_path: Path) -> None:
    folder, want = peft_folder(tmp_path / "peft", **options)
    model, tiny = build("hf_llama")
    replora.import_peft(model, folder)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-4, atol=1e-5)


def test_the_folders_dropout_is_kept(tmp_path: Path) -> None:
    model, _ = build("hf_llama")
    replora.import_peft(model, peft_folder(tmp_path / "peft", lora_dropout=0.2)[0])
    assert model.replora.config.dropout == 0.2


@pytest.mark.parametrize("into", ["plain", "adapted"])
@pytest.mark.parametrize(
    ("target", "ours", "written"),
    [
        ("lm_head", "lm_head", ["lm_head.base_layer.weight"]),
        ("v_proj", "v", ["lm_head.weight", "model.embed_tokens.weight"]),
    ],
)
def test_frozen_weights_that_peft_wrote_too_are_passed_over(
    target: str, ours: str, written: list[str], into: str, tmp_path: Path
) -> None:
    base, tiny = build("hf_llama")
    opened = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", target])).eval()
    disturb_peft(opened)
    opened.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=True)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert sorted(name for name in tensors if "lora_" not in name) == [f"base_model.model.{name}" for name in written]
    model, _ = build("hf_llama")
    if into == "adapted":
        replora.inject(model, replora.RepLoRAConfig(rank=2, targets=("q", ours)))
    replora.import_peft(model, tmp_path / "peft")
    assert replora.parameter_counts(model).head == 0
    torch.testing.assert_close(call(model, tiny.inputs()), call(opened, tiny.inputs()), rtol=1e-4, atol=1e-4)
    other, _ = build("hf_llama", seed=1)
    with pytest.raises(replora.PeftFormatError, match=rf"frozen weights \({written[0]}.* differ"):
        replora.import_peft(other, tmp_path / "peft")


def disturb_peft(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()


def test_folders_stand_side_by_side_with_heads_of_their_own(tmp_path: Path) -> None:
    model, tiny = trained("timm_vit", "replora")
    first = call(model, tiny.inputs())
    replora.export_peft(model, tmp_path / "first")
    model.reset_classifier(3)  # of other classes
    second = call(model, tiny.inputs())
    replora.export_peft(model, tmp_path / "second")
    plain, _ = build("timm_vit")
    replora.import_peft(plain, tmp_path / "first", name="first")
    replora.import_peft(plain, tmp_path / "second", name="second")
    assert replora.adapter_names(plain) == ["second", "first"]
    torch.testing.assert_close(call(plain, tiny.inputs()), second, rtol=0, atol=1e-5)
    replora.set_adapter(plain, "first")
    torch.testing.assert_close(call(plain, tiny.inputs()), first, rtol=0, atol=1e-5)
    with pytest.raises(replora.RepLoRAError, match="There is an adapter 'second'"):
        replora.import_peft(plain, tmp_path / "second", name="second")
    with pytest.raises(replora.PeftFormatError, match="which VisionTransformer does not have"):
        replora.import_peft(plain, peft_folder(tmp_path / "llama")[0], name="llama")
    assert replora.adapter_names(plain) == ["first", "second"]
    torch.testing.assert_close(call(plain, tiny.inputs()), first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factors", ["none", "mlp", "linear"])
def test_start_from_a_folder_of_lower_rank_and_other_alpha(factors: str, tmp_path: Path) -> None:
    folder, want = peft_folder(tmp_path / "peft")
    model, tiny = build("hf_llama")
    replora.inject(model, replora.RepLoRAConfig(rank=4, hidden=8, alpha=1, factors=factors))
    replora.import_peft(model, folder)
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-4, atol=1e-4)
    assert all(bool(A.ne(0).any(dim=2).all()) for bank in model.replora.banks for A, _ in bank())  # every row can learn


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    model, _ = build("hf_llama")
    keys = set(model.state_dict())
    folder, _ = peft_folder(tmp_path / "lora")

    def refused(message: str, path: Path = folder, target: nn.Module = model) -> None:
        with pytest.raises(replora.PeftFormatError, match=message):
            replora.import_peft(target, path)

    refused("no such folder", tmp_path / "none")
    refused("not plain LoRA: use_dora=True", peft_folder(tmp_path / "dora", use_dora=True)[0])
    refused("init_lora_weights='olora'", peft_folder(tmp_path / "olora", init_lora_weights="olora")[0])
    refused("bias='all'", peft_folder(tmp_path / "bias", bias="all")[0])
    other, _ = build("hf_bart")
    refused("adapts model.layers.0.self_attn.q_proj and 3 more layers, which BartFor", target=other)
    small, _ = adapted("hf_llama", "replora")
    refused("Only in the model: ", peft_folder(tmp_path / "q", target_modules=["q_proj"])[0], small)
    wide = replora.inject(build("hf_llama")[0], replora.RepLoRAConfig(rank=2, hidden=4))
    refused("has rank 3, more than the model's adapter", target=wide)
    narrow = replora.inject(build("hf_llama")[0], replora.RepLoRAConfig(rank=3, hidden=2))
    before = {name: tensor.clone() for name, tensor in replora.adapter_state(narrow).items()}
    with pytest.raises(replora.RepLoRAError, match="an MLP of width 2 cannot produce"):
        replora.import_peft(narrow, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in replora.adapter_state(narrow).items())
    dora, _ = adapted("hf_llama", "dora")
    refused("The model carries 'dora'", target=dora)
    heads = peft_folder(tmp_path / "heads", modules_to_save=["norm"])[0]
    plain = replora.inject(build("hf_llama")[0], replora.RepLoRAConfig(rank=3, factors="none"))
    refused("Only in the folder: model.layers.0.input_layernorm.weight", heads, plain)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_text('{"peft_type": "LORA"')
    (tmp_path / "half" / "adapter_model.safetensors").write_bytes(b"")
    refused("is damaged", tmp_path / "half")
    config = json.loads((folder / "adapter_config.json").read_text())
    for number, wrong in enumerate([[], config | {"modules_to_save": 5}, config | {"lora_alpha": True}]):
        shutil.copytree(folder, tmp_path / f"config{number}")
        (tmp_path / f"config{number}" / "adapter_config.json").write_text(json.dumps(wrong))
        refused("is damaged|lora_alpha is True", tmp_path / f"config{number}")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "adapter_model.bin").write_bytes(b"")
    refused("a pickle, which is not read", tmp_path / "pickle")
    assert set(model.state_dict()) == keys


@pytest.mark.parametrize("method", [None, "lora", "replora"])
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int32, torch.complex64, torch.bool, torch.float8_e4m3fn, "nan", "inf"]
)
def test_matrices_of_another_kind_or_not_finite_are_refused(
    dtype: torch.dtype | str, method: str | None, tmp_path: Path
) -> None:
    folder, _ = peft_folder(tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        wrong = tensor + float(dtype) if isinstance(dtype, str) else torch.ones_like(tensor).to(dtype)
        save_file(tensors | {name: wrong}, file, metadata={"format": "pt"})
        model = build("hf_llama")[0] if method is None else adapted("hf_llama", method)[0]
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(replora.RepLoRAError, match="not finite" if isinstance(dtype, str) else str(dtype)):
            replora.import_peft(model, folder)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if isinstance(dtype, str) and method is None:
        replora.import_peft(model, folder, force=True)


def test_a_joint_update_does_not_fit_separate_rows(tmp_path: Path) -> None:
    folder, want = peft_folder(tmp_path / "peft", "timm_vit", target_modules=["qkv"], r=2)
    model, tiny = adapted("timm_vit", "lora")
    with pytest.raises(replora.PeftFormatError, match="on different layers"):
        replora.import_peft(model, folder)  # this one also adapts the output projection
    rows, _ = adapted("timm_vit", "replora")
    with pytest.raises(replora.PeftFormatError, match="joint update of the whole layer"):
        replora.import_peft(rows, _without_heads(folder, tmp_path / "with_head"))
    whole = replora.inject(build("timm_vit")[0], replora.RepLoRAConfig(rank=2, hidden=4, targets=("*.qkv",)))
    replora.import_peft(whole, folder)
    torch.testing.assert_close(call(whole, tiny.inputs()), want, rtol=1e-4, atol=1e-5)


def _without_heads(folder: Path, new: Path) -> Path:
    """A copy of `folder` (its rows are what is tested, not its heads)."""
    new.mkdir()
    (new / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    save_file(load_file(folder / "adapter_model.safetensors"), new / "adapter_model.safetensors")
    return new


def test_exported_keys_are_those_that_peft_writes(tmp_path: Path) -> None:
    folder, _ = peft_folder(tmp_path / "own", r=2)
    model, _ = build("hf_llama")
    replora.inject(model, METHODS["replora"])
    replora.export_peft(model, tmp_path / "ours")
    ours, own = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "ours", folder))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: tensor.shape for name, tensor in own.items()}
