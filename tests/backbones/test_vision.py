from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from replora.backbones import vision
from replora.backbones.backbone import BackboneError, file_sha256
from replora.backbones.vision import build_vision_backbone, load_backbone_weights

torch.set_num_threads(1)


def nano(**options) -> vision.Backbone:
    return build_vision_backbone(**{"name": "vit_nano", "num_classes": 3, "pretrained": False, **options})


def tiny_vit(depth: int = 2, width: int = 24, num_classes: int = 5) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=width, depth=depth, num_heads=2, num_classes=num_classes
    )


def google_npz(model: nn.Module, path: Path, head: int | None = 21) -> Path:
    """The weights of a timm ViT in the format of google-research/vision_transformer, with pre-logits and a head."""
    w = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    out = {
        "cls": w["cls_token"],
        "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": w["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "Transformer/encoder_norm/scale": w["norm.weight"],
        "Transformer/encoder_norm/bias": w["norm.bias"],
        "pre_logits/kernel": np.ones((width, width), np.float32),
        "pre_logits/bias": np.ones(width, np.float32),
    }
    if head:
        out |= {"head/kernel": np.ones((width, head), np.float32), "head/bias": np.ones(head, np.float32)}
    for i in range(len(model.blocks)):
        block, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        kernels = np.split(w[f"{ours}.attn.qkv.weight"], 3)
        biases = np.split(w[f"{ours}.attn.qkv.bias"], 3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            out[f"{attention}/{name}/kernel"] = kernel.T.reshape(width, heads, -1)
            out[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        out[f"{attention}/out/kernel"] = w[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{attention}/out/bias"] = w[f"{ours}.attn.proj.bias"]
        for norm, name in ((1, "LayerNorm_0"), (2, "LayerNorm_2")):
            out[f"{block}/{name}/scale"] = w[f"{ours}.norm{norm}.weight"]
            out[f"{block}/{name}/bias"] = w[f"{ours}.norm{norm}.bias"]
        for layer in (1, 2):
            out[f"{block}/MlpBlock_3/Dense_{layer - 1}/kernel"] = w[f"{ours}.mlp.fc{layer}.weight"].T
            out[f"{block}/MlpBlock_3/Dense_{layer - 1}/bias"] = w[f"{ours}.mlp.fc{layer}.bias"]
    np.savez(path, **out)
    return path


def test_packaged_backbone():
    b = nano(drop_path_rate=0.2)
    assert (b.name, b.head_names, b.input_size, b.any_size, b.weights, b.sha256) == (
        "vit_nano",
        ("head",),
        32,
        False,
        "random",
        None,
    )
    assert b.model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert b.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)


def test_packaged_weights_are_loaded_and_the_head_is_new():
    first, second = nano(pretrained=True), nano(pretrained=True, num_classes=7)
    assert first.fingerprint == second.fingerprint
    assert first.sha256 == file_sha256(vision.VIT_NANO_WEIGHTS)
    assert second.model.head.out_features == 7


def test_missing_packaged_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(vision, "VIT_NANO_WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(BackboneError, match=r"none\.safetensors are missing.*--model.pretrained false"):
        nano(pretrained=True)


@pytest.mark.parametrize(
    ("name", "heads", "any_size"),
    [
        ("resnet10t", ("fc",), True),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist"), False),
        ("swin_tiny_patch4_window7_224", ("head.fc",), False),
    ],
)
def test_heads_are_found_by_identity(name, heads, any_size):
    b = build_vision_backbone(name, num_classes=4, pretrained=False)
    assert b.head_names == heads
    assert b.any_size is any_size
    for head in heads:
        assert b.model.get_submodule(head).out_features == 4


def test_default_is_the_vit_papers_checkpoint():
    b = build_vision_backbone(num_classes=2, pretrained=False)
    assert (b.name, b.input_size, b.head_names) == ("vit_base_patch16_224.orig_in21k", 224, ("head",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_smol_patch16_224"}, r"no model 'vit_smol_patch16_224'\. Did you mean 'vit_small_patch16_224'"),
        ({"name": "vit_nanno"}, "Did you mean 'vit_nano'"),
        ({"name": "vit_base_patch16_224.orig_in22k"}, r"no weights 'orig_in22k' of .*Did you mean 'orig_in21k'"),
        (
            {"name": "vit_base_patch16_224_in21k", "pretrained": True},
            r"names two checkpoints.*orig_in21k.*augreg_in21k",
        ),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "'vgg11' has no drop path in timm. Set --model.drop_path_rate 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate: 1\.0 is out of range"),
        ({"num_classes": 0}, "num_classes: 0 asked for"),
        ({"checkpoint": Path("nowhere.npz")}, r"there is no file 'nowhere\.npz'"),
    ],
)
def test_errors_name_the_remedy(options, message):
    with pytest.raises(BackboneError, match=message):
        nano(**options)


def test_hub_weights_with_as_many_classes_get_a_new_head(monkeypatch):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    before = model.head.weight.detach().clone()
    monkeypatch.setattr(vision, "_create", lambda *_: model)
    b = build_vision_backbone("vit_tiny_patch16_224.augreg_in21k_ft_in1k", num_classes=1000)
    assert not torch.equal(b.model.head.weight, before)
    assert b.weights.startswith("timm/vit_tiny_patch16_224")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_weights_files(tmp_path, suffix):
    source = nano(num_classes=9).model
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), file)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, file)
    b = nano(checkpoint=file)
    assert b.sha256 == file_sha256(file)
    assert b.weights == str(file)
    assert b.model.head.out_features == 3
    for name, tensor in source.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(b.model.state_dict()[name], tensor), name


def test_head_of_the_same_size_is_not_loaded(tmp_path):
    source = nano().model
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert not torch.equal(nano(checkpoint=tmp_path / "w.safetensors").model.head.weight, source.head.weight)


def test_weights_of_another_model(tmp_path):
    state = nano().model.state_dict()
    state["fc_norm.weight"] = torch.zeros(5)
    del state["blocks.0.attn.qkv.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        BackboneError,
        match=r"missing: blocks\.0\.attn\.qkv\.bias; of another shape: fc_norm\.weight \(5,\) instead of \(128,\)",
    ):
        nano(checkpoint=tmp_path / "w.pth")


def test_file_that_runs_code_is_refused(tmp_path):
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="cannot be read as weights"):
        nano(checkpoint=tmp_path / "w.pth")


def test_damaged_and_foreign_files(tmp_path):
    for name in ("w.safetensors", "w.pth", "w.npz"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(BackboneError, match=rf"checkpoint: .*{name}"):
            nano(checkpoint=tmp_path / name)
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"w\.h5 is not one of \.npz, \.safetensors"):
        nano(checkpoint=tmp_path / "w.h5")
    torch.save({"model": {"epoch": 3}}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="no plain table of tensors"):
        nano(checkpoint=tmp_path / "w.pth")


def test_googles_format_is_read_without_head_and_pre_logits(tmp_path):
    source, model = tiny_vit(), tiny_vit(num_classes=21)
    head = model.head.weight.detach().clone()
    load_backbone_weights(model, google_npz(source, tmp_path / "w.npz"))
    for name, tensor in source.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(model.head.weight, head), "a head of as many classes as the file's stays new"


@pytest.mark.parametrize(("depth", "width"), [(1, 24), (3, 24), (2, 36)])
def test_googles_format_of_another_model_is_refused(tmp_path, depth, width):
    file = google_npz(tiny_vit(), tmp_path / "w.npz")
    with pytest.raises(BackboneError, match=r"w\.npz (does not fit|has 2 blocks)"):
        load_backbone_weights(tiny_vit(depth=depth, width=width), file)


def test_googles_format_only_for_models_that_know_it(tmp_path):
    file = google_npz(tiny_vit(), tmp_path / "w.npz")
    with pytest.raises(BackboneError, match="which ConvNeXt cannot read"):
        load_backbone_weights(timm.create_model("convnext_atto"), file)


def test_fingerprint_tells_weights_apart_and_ignores_the_head(tmp_path):
    source = nano()
    save_file(source.model.state_dict(), tmp_path / "w.safetensors")
    same = nano(num_classes=8, checkpoint=tmp_path / "w.safetensors")
    assert same.fingerprint == source.fingerprint
    assert nano().fingerprint != source.fingerprint


def published_vit(path: Path, *, pre_logits: bool = True, classes: int = 21_843, size: int = 224) -> Path:
    """A file like Google's of ViT-Ti/16, which no published one has in its three kinds: small enough for a test."""
    source = timm.create_model("vit_tiny_patch16_224", num_classes=1, img_size=size)
    arrays = dict(np.load(google_npz(source, path, head=classes)))
    np.savez(path, **{name: array for name, array in arrays.items() if pre_logits or "pre_logits" not in name})
    return path


def tagged(monkeypatch, tag: str, file: Path) -> vision.VisionBackbone:
    monkeypatch.setattr(vision, "_check_name", lambda *_: None)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name.partition(".")[0], **options))
    return build_vision_backbone(f"vit_tiny_patch16_224{tag}", num_classes=3, checkpoint=file)


@pytest.mark.parametrize(
    ("file", "published"),
    [
        ({}, "orig_in21k"),
        ({"pre_logits": False}, "augreg_in21k"),
        ({"pre_logits": False, "classes": 1000}, None),
        ({"classes": 1000}, None),
    ],
)
def test_googles_published_files_are_known_by_their_tensors(tmp_path, monkeypatch, file, published):
    path = published_vit(tmp_path / "w.npz", **file)
    built = tagged(monkeypatch, "", path)
    assert built.published == published
    assert built.describe().get("published") == published
    for tag in ("orig_in21k", "augreg_in21k"):
        if published == tag:
            assert tagged(monkeypatch, f".{tag}", path).published == tag
            continue
        remedy = f"--model.backbone vit_tiny_patch16_224{f'.{published}' if published else ''}, or"
        with pytest.raises(BackboneError, match=rf"w\.npz is not of '{tag}'.*{remedy}"):
            tagged(monkeypatch, f".{tag}", path)


def test_a_state_dict_of_the_hub_may_lack_what_tells_published_files_apart(tmp_path, monkeypatch):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    save_file(state, tmp_path / "hub.safetensors")
    assert tagged(monkeypatch, ".orig_in21k", tmp_path / "hub.safetensors").published is None
    save_file(state | {"head.weight": torch.zeros(21_843, 192)}, tmp_path / "augreg.safetensors")
    with pytest.raises(BackboneError, match=r"is not of 'orig_in21k'.*vit_tiny_patch16_224\.augreg_in21k"):
        tagged(monkeypatch, ".orig_in21k", tmp_path / "augreg.safetensors")


def test_position_embeddings_of_another_image_size_are_refused_unless_it_is_asked_for(tmp_path):
    file = published_vit(tmp_path / "w.npz", size=384)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    with pytest.raises(BackboneError, match=r"embeddings of 24 x 24 patches.*384 x 384.*takes 14 x 14"):
        load_backbone_weights(model, file)
    load_backbone_weights(timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=384), file)
    usual = published_vit(tmp_path / "usual.npz")
    load_backbone_weights(timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=384), usual)
