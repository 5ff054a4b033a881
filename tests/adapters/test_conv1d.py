"""transformers' `Conv1D`, whose weight is (in, out), under every method; and layers of other kinds, refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

import replora
from replora.adapters.config import PeftMethod
from tests.adapters.test_contract import adapted, build, disturb, train
from tests.adapters.tiny_models import call

ROLES = ("q", "k", "v", "out", "fc1", "fc2")


def test_roles_of_gpt2_are_columns_of_the_stored_weight() -> None:
    model, _ = build("hf_gpt2")
    names = [target.name for target in replora.find_targets(model, ROLES, blocks=[1])]
    h = "transformer.h.1"
    assert names == [
        *(f"{h}.attn.c_attn[{role}]" for role in "qkv"),
        f"{h}.attn.c_proj",
        f"{h}.mlp.c_fc",
        f"{h}.mlp.c_proj",
    ]
    adapted_model, _ = adapted("hf_gpt2", "replora")
    disturb(adapted_model)
    before = {name: p.clone() for name, p in adapted_model.named_parameters()}
    with replora.merged(adapted_model):
        for name, p in adapted_model.named_parameters():
            if "c_attn.linear.weight" in name:
                assert p.is_contiguous()
                columns = (p != before[name]).any(0)
                assert columns.tolist() == [True] * 24 + [False] * 24 + [True] * 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_of_a_call_is_that_of_the_read_weight(dtype: torch.dtype) -> None:
    model, tiny = build("hf_gpt2")
    model = model.to(dtype)
    replora.inject(model, replora.RepLoRAConfig(rank=2, targets=ROLES), example=tiny.inputs())
    disturb(model)
    generator = torch.Generator().manual_seed(0)
    for block in model.transformer.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            assert layer.weight.shape == (layer.in_features, layer.out_features)
            for tokens in (1, 300):  # the operator adds the update to few, and forms the weight for many
                x = torch.randn(1, tokens, layer.in_features, generator=generator).to(dtype)
                want = x.float() @ layer.weight.float() + layer.bias.float()
                tolerance = 1e-5 if dtype == torch.float32 else 0.1
                torch.testing.assert_close(layer(x).float(), want, rtol=tolerance, atol=tolerance)


def test_a_folder_that_peft_trained_is_read_exactly(tmp_path: Path) -> None:
    base, tiny = build("hf_gpt2")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    want = call(theirs, tiny.inputs())
    theirs.save_pretrained(str(tmp_path / "peft"))
    model, _ = build("hf_gpt2")
    replora.import_peft(model, tmp_path / "peft")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=1e-5)
    merged_theirs = theirs.merge_and_unload()
    for (name, mine), (_, their) in zip(
        replora.merge_and_unload(model).named_parameters(), merged_theirs.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-6, msg=name)


# Methods of peft that know no Conv1D say so themselves.
UNKNOWN_TO_PEFT = ("oft", "boft", "loha", "lokr", "hra")


@pytest.mark.parametrize("method", PeftMethod.__args__)
def test_methods_of_peft(method: str, tmp_path: Path) -> None:
    model, tiny = build("hf_gpt2")
    before = call(model, tiny.inputs())
    config = replora.PeftMethodConfig(method, rank=2, targets=["c_attn", "mlp.c_proj"])
    if method in UNKNOWN_TO_PEFT:
        with pytest.raises(replora.RepLoRAError, match=rf"{method}: peft refuses: .*Conv1D"):
            replora.inject(model, config)
        torch.testing.assert_close(call(model, tiny.inputs()), before, rtol=0, atol=0)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        replora.inject(model, config)
    disturb(model)
    train(model, tiny)
    want = call(model, tiny.inputs())
    with replora.merged(model):
        torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=1e-4, atol=1e-5)
    replora.export_peft(model, tmp_path / "peft")
    opened = peft.PeftModel.from_pretrained(build("hf_gpt2")[0], str(tmp_path / "peft")).eval()
    torch.testing.assert_close(call(opened, tiny.inputs()), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("entry", ["wte", "transformer.wte", "*.wte"])
def test_an_embedding_is_refused_by_name(entry: str) -> None:
    with pytest.raises(replora.TargetNotFoundError, match=rf"'{entry.replace('*', '.')}' matches only .*: Embedding"):
        replora.inject(build("hf_gpt2")[0], replora.RepLoRAConfig(targets=[entry]))


@pytest.mark.parametrize("entry", ["patch_embed.proj", "*.proj_conv", "proj_conv"])
def test_a_convolution_is_refused_by_name(entry: str) -> None:
    model = nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, 4, 2), "proj_conv": nn.Conv2d(3, 4, 2)})})
    with pytest.raises(replora.TargetNotFoundError, match=r"matches only modules that cannot be adapted.*: Conv2d"):
        replora.inject(model, replora.RepLoRAConfig(targets=[entry]))
