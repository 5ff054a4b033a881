"""Images of other sizes: the weights are those of the published size, resampled as timm does; the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import replora
from replora.backbones.backbone import BackboneError
from replora.backbones.image_size import image_size_of
from replora.backbones.vision import VisionBackbone, build_vision_backbone
from replora.errors import RepLoRAError

torch.set_num_threads(1)

# One small model of each kind that timm can resample: position embeddings with and without prefix tokens, relative
# positions, rotary ones, windows, and a stem of convolutions.
KINDS = [
    *("test_vit", "vit_nano", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2", "test_vit_relpos"),
    *("eva02_tiny_patch14_224", "vit_tiny_r_s16_p8_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
]


def build(name: str, size: int | None = None, **options) -> VisionBackbone:
    torch.manual_seed(0)
    return build_vision_backbone(name, num_classes=3, image_size=size, **{"pretrained": False, **options})


@pytest.mark.parametrize("name", KINDS)
def test_any_size_that_the_patches_divide(name: str) -> None:
    own = build(name)
    patch = own.input_size // own.model.patch_embed.grid_size[0]
    for size in (own.input_size + 2 * patch, own.input_size // 2 // patch * patch):
        b = build(name, size)
        assert (b.input_size, b.resampled_from, image_size_of(b.model)) == (size, own.input_size, size)
        assert b.fingerprint == own.fingerprint, "of the published weights"
        with torch.no_grad():
            assert b.model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 3)
    assert build(name, own.input_size).resampled_from is None
    wrong = own.input_size + 1
    message = rf"patches of {patch} x {patch} pixels, which do not divide {wrong} x {wrong}\. Set --data\.image_size "
    with pytest.raises(BackboneError, match=rf"{message}{own.input_size} or {own.input_size + patch};"):
        build(name, wrong)


def test_sizes_below_a_patch_name_the_smallest() -> None:
    with pytest.raises(BackboneError, match=r"do not divide 3 x 3\. Set --data\.image_size 4;"):
        build("vit_nano", 3)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_models_that_timm_cannot_resample_are_refused(name: str) -> None:
    with pytest.raises(BackboneError, match=r"takes images of 224 x 224 .* 256 x 256\. timm cannot .*image_size 224"):
        build(name, 256)


@pytest.mark.parametrize("name", ["mixer_s32_224", "levit_128s", "maxvit_rmlp_pico_rw_256", "mvitv2_tiny"])
def test_models_of_one_size_without_patches_are_refused(name: str) -> None:
    own = build(name)
    assert own.any_size
    message = rf"{name} does not take images of .* pixels \(.*\)\. Set --data\.image_size {own.input_size}"
    with pytest.raises(BackboneError, match=message):
        build(name, own.input_size + 80)
    assert build(name, own.input_size).model.training


def test_convolutions_take_any_size() -> None:
    b = build("resnet10t", 100)
    assert (b.any_size, b.resampled_from) == (True, None)


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("steps", [2, -3])
def test_the_weights_are_those_that_timm_loads_at_this_size(name: str, steps: int, tmp_path: Path) -> None:
    own = build(name)
    size = own.input_size + steps * (own.input_size // own.model.patch_embed.grid_size[0])
    file = tmp_path / "w.safetensors"
    save_file(own.model.state_dict(), file)
    ours = build(name, size, checkpoint=file)
    theirs = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 3},
        num_classes=3,
        img_size=size,
    )
    found = ours.model.state_dict()
    for key, tensor in theirs.state_dict().items():
        assert key.startswith("head.") or torch.equal(found[key], tensor), key


def test_an_adapter_belongs_to_the_size_of_its_training(tmp_path: Path) -> None:
    def backbone(size: int | None) -> torch.nn.Module:
        return build("vit_nano", size, pretrained=True).model

    model = replora.inject(backbone(48), replora.RepLoRAConfig(rank=2, hidden=4), also_train=["head"])
    replora.save_adapter(model, tmp_path / "a.safetensors")
    loaded = backbone(48)
    replora.load_adapter(loaded, tmp_path / "a.safetensors")
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(image), model.eval()(image), atol=1e-6)
    with pytest.raises(RepLoRAError, match="with other weights"):
        replora.load_adapter(backbone(None), tmp_path / "a.safetensors")
