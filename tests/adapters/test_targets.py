"""Which weight matrices roles, patterns and block numbers select."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import replora
from replora.adapters.targets import find_targets
from tests.adapters.tiny_models import MODELS

# Family -> how its query, value, output, first and second MLP layer of the first block are called.
NAMES = {
    "timm_vit": [
        "blocks.0.attn.qkv[q]",
        "blocks.0.attn.qkv[v]",
        "blocks.0.attn.proj",
        "blocks.0.mlp.fc1",
        "blocks.0.mlp.fc2",
    ],
    "timm_swin": [f"layers.0.blocks.0.{n}" for n in ("attn.qkv[q]", "attn.qkv[v]", "attn.proj", "mlp.fc1", "mlp.fc2")],
    "timm_swin_v2": [
        f"layers.0.blocks.0.{n}" for n in ("attn.qkv[q]", "attn.qkv[v]", "attn.proj", "mlp.fc1", "mlp.fc2")
    ],
    "torchvision_swin": [f"features.1.0.{n}" for n in ("attn.qkv[q]", "attn.qkv[v]", "attn.proj", "mlp.0", "mlp.3")],
    "torchvision_swin3d": [f"features.0.0.{n}" for n in ("attn.qkv[q]", "attn.qkv[v]", "attn.proj", "mlp.0", "mlp.3")],
    "torchvision_vit": [
        f"encoder.layers.encoder_layer_0.{n}"
        for n in ("self_attention[q]", "self_attention[v]", "self_attention.out_proj", "mlp.0", "mlp.3")
    ],
    "hf_vit": [
        f"vit.layers.0.{n}" for n in ("attention.q_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
    ],
    "hf_videomae": [
        f"videomae.encoder.layer.0.{n}"
        for n in ("attention.attention.query", "attention.attention.value", "attention.output.dense")
    ]
    + ["videomae.encoder.layer.0.intermediate.dense", "videomae.encoder.layer.0.output.dense"],
    "hf_bart": [
        f"model.encoder.layers.0.{n}"
        for n in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")
    ],
}


@pytest.mark.parametrize("family", NAMES)
def test_roles_find_the_right_layers(family: str) -> None:
    model = MODELS[family].build()
    for role, name in zip(("q", "v", "out", "fc1", "fc2"), NAMES[family], strict=True):
        assert find_targets(model, [role])[0].name == name, role


def test_llama_mlp_has_gate_up_and_down_in_one_group() -> None:
    targets = find_targets(MODELS["hf_llama"].build(), ["gate", "up", "down"], blocks=[1])
    assert [t.name for t in targets] == [f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert {t.group for t in targets} == {"model.layers.1.mlp"}


def test_groups_are_attention_modules() -> None:
    targets = find_targets(MODELS["hf_bart"].build(), ["q", "v", "out"])
    groups = [t.group for t in targets]
    assert len(set(groups)) == 6
    assert all(groups.count(group) == 3 for group in groups)


def test_fused_rows_are_the_thirds() -> None:
    q, k, v = find_targets(MODELS["timm_vit"].build(), ["q", "k", "v"], blocks=[0])
    assert (q.rows, k.rows, v.rows) == ((0, 24), (24, 48), (48, 72))
    assert q.shape == (24, 24)


def test_fused_projection_with_fewer_key_heads_is_not_cut_into_thirds() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv_proj = nn.Linear(24, 48)  # 24 query rows, 12 key rows, 12 value rows
            self.o_proj = nn.Linear(24, 24)

    model = nn.ModuleDict({"attn": Attention()})
    with pytest.raises(replora.TargetNotFoundError, match="'q' matches nothing"):
        find_targets(model, ["q"])
    assert [t.name for t in find_targets(model, ["*.qkv_proj"])] == ["attn.qkv_proj"]


def test_blocks_are_counted_in_the_model_s_order() -> None:
    swin = MODELS["timm_swin"].build()
    assert [t.module for t in find_targets(swin, ["q"], blocks=[0, 2])] == [
        "layers.0.blocks.0.attn.qkv",
        "layers.1.blocks.0.attn.qkv",
    ]
    with pytest.raises(replora.TargetNotFoundError, match=r"\[3\] asked for.*blocks 0 to 2"):
        find_targets(swin, ["q"], blocks=[0, 3])


def test_patterns_choose_whole_layers_and_skip_the_head() -> None:
    model = MODELS["timm_vit"].build()
    assert [t.name for t in find_targets(model, ["blocks.*.mlp.fc?"], blocks=[2])] == [
        "blocks.2.mlp.fc1",
        "blocks.2.mlp.fc2",
    ]
    assert "head" in [t.name for t in find_targets(model, ["*"])]
    assert "head" not in [t.name for t in find_targets(model, ["*"], skip=[model.head])]


def test_any_model_with_linear_layers_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    replora.inject(model, replora.RepLoRAConfig(rank=2, targets=["2"]), also_train=["4"], example=torch.randn(3, 4))
    assert replora.describe(model)["targets"] == ["2"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["query"], "'query' matches nothing in VisionTransformer.*Roles found in it: q, k, v, out, fc1, fc2"),
        (["gate"], "'gate' matches nothing"),
        (["q_prj"], r"fc1, fc2\. Its linear layers: blocks\.0\.attn\.qkv, .* and \d+ more\. Name a role"),
        (["blocks.0.atn.qkv"], r"fc1, fc2\. Did you mean 'blocks\.0\.attn\.qkv'"),
        (["*.mlp.fc3"], r"Did you mean 'blocks\.\d\.mlp\.fc"),
        (["blocks.0.norm1"], "only modules that cannot be adapted.*LayerNorm"),
        (["q", "blocks.0.attn.qkv"], "is chosen twice"),
        (["fc1", "*.fc1"], "is chosen twice"),
    ],
)
def test_wrong_targets_are_named(wanted: list[str], message: str) -> None:
    with pytest.raises(replora.TargetNotFoundError, match=message):
        find_targets(MODELS["timm_vit"].build(), wanted)


def test_model_without_linear_layers() -> None:
    with pytest.raises(replora.TargetNotFoundError, match=r"has no nn\.Linear"):
        find_targets(nn.Sequential(nn.Conv2d(3, 4, 1)), ["q"])
