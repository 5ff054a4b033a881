"""Video backbones: reference sizes, checkpoints of the original release, and adapters that act on the output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import replora
from replora.adapters.verify import example_input
from replora.backbones.backbone import BackboneError
from replora.backbones.video import VideoMAE, build_swin3d, build_video_backbone, checkpoint_gradients
from replora.backbones.video_weights import SWIN3D_SHAPES, SWIN3D_WEIGHTS, torchvision_names

torch.set_num_threads(1)

METHODS = {
    "replora": replora.RepLoRAConfig(rank=2, hidden=4),
    "linear": replora.RepLoRAConfig(factors="linear", rank=2, hidden=4),
    "lora": replora.RepLoRAConfig(factors="none", rank=2),
}


def nano(**options) -> nn.Module:
    return build_video_backbone("swin3d_nano", num_classes=3, pretrained=False, **options).model


def clip(frames: int = 4, size: int = 16) -> Tensor:
    return torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def videomae_folder(folder: Path, **options) -> Path:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    small = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": 16, "patch_size": 8, "num_frames": 4, "num_labels": 7,
    }  # fmt: skip
    VideoMAEForVideoClassification(VideoMAEConfig(**(small | options))).save_pretrained(folder)
    return folder


# --- sizes


@pytest.mark.parametrize(
    ("name", "total"), [("swin3d_t", 28_158_070), ("swin3d_s", 49_816_678), ("swin3d_b", 88_048_984)]
)
def test_sizes_are_torchvision_s(name: str, total: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build_swin3d(name).parameters()) == total


def test_golden_counts_of_the_published_rows() -> None:
    """protocol of V-PETL: parameters without the head (1024 x 174 + 174)."""
    with torch.device("meta"):
        model = build_swin3d("swin3d_b", 174)
        lora = replora.RepLoRAConfig(factors="none", rank=16)
        counts = replora.parameter_counts(replora.inject(model, lora, also_train=["head"]))
        assert counts == replora.ParameterCounts(87_638_984, 770_048, 770_048, 178_350)
        replora.remove(model)
        counts = replora.parameter_counts(replora.inject(model, replora.RepLoRAConfig(rank=16), also_train=["head"]))
        # 24 blocks x 2 factors x (r + r h + h), and 4 h d of each block of width d: r = 16, h = 2 r, sum of d = 12,032.
        assert (counts.adapter_deployed, counts.adapter_trained) == (770_048, 1_566_976)
        replora.remove(model)
        replora.inject(model, replora.BitFitConfig(), also_train=["head"])
        assert replora.parameter_counts(model).adapter_trained == 137_216  # the row's 1.09M counts position tables too


def test_names_mean_torchvision_s_weights() -> None:
    from torchvision.models import get_weight

    for tags in SWIN3D_WEIGHTS.values():
        for member in tags.values():
            assert get_weight(member).url.startswith("https://download.pytorch.org/models/swin3d_")
    # The published rows start from ImageNet-22k; torchvision's default does not.
    assert next(iter(SWIN3D_WEIGHTS["swin3d_b"])) == "kinetics400_imagenet22k_v1"


# --- checkpoints


def original_shapes(name: str, window_frames: int = 8) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a checkpoint of github.com/SwinTransformer/Video-Swin-Transformer."""
    width, depths, heads = (SWIN3D_SHAPES[name][key] for key in ("embed_dim", "depths", "num_heads"))
    tokens = window_frames * 49
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.patch_embed.proj.weight": (width, 3, 2, 4, 4),
        "backbone.patch_embed.proj.bias": (width,),
        "backbone.patch_embed.norm.weight": (width,),
        "backbone.patch_embed.norm.bias": (width,),
    }
    for i, depth in enumerate(depths):
        d = width * 2**i
        for j in range(depth):
            block = {
                "norm1.weight": (d,), "norm1.bias": (d,),
                "attn.relative_position_bias_table": ((2 * window_frames - 1) * 169, heads[i]),
                "attn.relative_position_index": (tokens, tokens),
                "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
                "attn.proj.weight": (d, d), "attn.proj.bias": (d,),
                "norm2.weight": (d,), "norm2.bias": (d,),
                "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,),
                "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
            }  # fmt: skip
            shapes |= {f"backbone.layers.{i}.blocks.{j}.{key}": shape for key, shape in block.items()}
        if i < len(depths) - 1:
            merging = {"reduction.weight": (2 * d, 4 * d), "norm.weight": (4 * d,), "norm.bias": (4 * d,)}
            shapes |= {f"backbone.layers.{i}.downsample.{key}": shape for key, shape in merging.items()}
    last = width * 2 ** (len(depths) - 1)
    shapes |= {"backbone.norm.weight": (last,), "backbone.norm.bias": (last,)}
    return shapes | {"cls_head.fc_cls.weight": (400, last), "cls_head.fc_cls.bias": (400,)}


@pytest.mark.parametrize("name", ["swin3d_t", "swin3d_s", "swin3d_b"])
@pytest.mark.parametrize("window_frames", [8, 16])
def test_original_checkpoints_fit_name_by_name(name: str, window_frames: int) -> None:
    with torch.device("meta"):
        original = {key: torch.empty(shape) for key, shape in original_shapes(name, window_frames).items()}
        model = build_swin3d(name, window_frames=window_frames)
    renamed = {key: tuple(tensor.shape) for key, tensor in torchvision_names(original).items()}
    wanted = {key: tuple(p.shape) for key, p in model.named_parameters()}
    assert renamed == wanted


def as_original(state: dict[str, Tensor], stages: int = 2) -> dict[str, Tensor]:
    """torchvision's names -> the original ones, stage by stage."""
    renamed = {}
    for key, tensor in state.items():
        for stage in range(stages):
            key = key.replace(f"features.{2 * stage}.", f"layers.{stage}.blocks.")
            key = key.replace(f"features.{2 * stage + 1}.", f"layers.{stage}.downsample.")
        key = key.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        renamed[key.replace("head.", "cls_head.fc_cls.") if key.startswith("head.") else f"backbone.{key}"] = tensor
    return renamed


@pytest.mark.parametrize("form", ["original.pth", "torchvision.pth", "torchvision.safetensors"])
def test_weights_come_out_of_a_file(form: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = build_swin3d("swin3d_nano", 400)
    file = tmp_path / form
    if form.startswith("original"):
        torch.save({"state_dict": as_original(source.state_dict()), "meta": {}}, file)
    elif form.endswith("pth"):
        torch.save(source.state_dict(), file)
    else:
        save_file({key: tensor.contiguous() for key, tensor in source.state_dict().items()}, file)
    built = build_video_backbone("swin3d_nano", num_classes=3, checkpoint=file)
    source.head = built.model.head  # of other classes, and never taken from the file
    assert built.model.head.out_features == 3
    assert torch.equal(built.model.eval()(clip()), source.eval()(clip()))
    assert built.weights == str(file)
    assert len(built.sha256) == 64
    random = build_video_backbone("swin3d_nano", num_classes=3, pretrained=False)
    assert random.fingerprint != built.fingerprint


def test_a_longer_window_is_that_of_the_file(tmp_path: Path) -> None:
    source = build_swin3d("swin3d_nano", 400, window_frames=16)
    torch.save(as_original(source.state_dict()), tmp_path / "long.pth")
    model = build_video_backbone("swin3d_nano", num_classes=3, checkpoint=tmp_path / "long.pth").model
    assert model.features[0][0].attn.window_size == [16, 4, 4]
    source.head = model.head
    assert torch.equal(model.eval()(clip(32)), source.eval()(clip(32)))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"

    def refused(message: str, name: str = "swin3d_nano") -> None:
        with pytest.raises(BackboneError, match=message):
            build_video_backbone(name, num_classes=3, checkpoint=file)

    refused("there is no file")
    state = build_swin3d("swin3d_nano").state_dict()
    torch.save(state, file)
    refused(r"is not of swin3d_t: missing: .*of another shape: patch_embed\.proj\.weight", "swin3d_t")
    torch.save({key: tensor for key, tensor in state.items() if "qkv" not in key}, file)
    refused(r"missing: features\.0\.0\.attn\.qkv\.weight.* and 3 more")
    torch.save(state | {"features.9.weight": torch.ones(1)}, file)
    refused(r"of no use: features\.9\.weight")
    torch.save({"epoch": 3}, file)
    refused("holds no plain table of tensors")
    file.write_bytes(b"no weights")
    refused("cannot be read as weights")
    for name, message in {
        "swin3d_x": r"no video backbone 'swin3d_x'\. Did you mean 'swin3d_t'",
        "swin3d_b.kinetics600": r"no weights 'kinetics600' of 'swin3d_b'",
        "swin3d_nano": r"'swin3d_nano' has no published weights",
    }.items():
        with pytest.raises(BackboneError, match=message):
            build_video_backbone(name, num_classes=3)
    with pytest.raises(BackboneError, match="num_classes: 0"):
        build_video_backbone("swin3d_nano", num_classes=0, pretrained=False)
    with pytest.raises(BackboneError, match="drop_path_rate: 1"):
        build_video_backbone("swin3d_nano", num_classes=3, pretrained=False, drop_path_rate=1.0)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import WeightsEnum

    asked = []

    def fetch(self: WeightsEnum, **options: object) -> None:
        asked.append((str(self), options["weights_only"]))
        raise OSError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fetch)
    with pytest.raises(
        BackboneError, match=r"'swin3d_t' could not be fetched \(OSError: no network\).*--model\.checkpoint"
    ):
        build_video_backbone("swin3d_t", num_classes=3)
    assert asked == [("Swin3D_T_Weights.KINETICS400_V1", True)]


# --- what it does


@pytest.mark.parametrize("frames", [1, 3, 8, 20, 40])
def test_a_swin_takes_clips_of_any_length(frames: int) -> None:
    model = nano().eval()
    assert model(clip(frames)).shape == (2, 3)


def test_drop_path_grows_with_depth() -> None:
    model = nano(drop_path_rate=0.3)
    assert [round(block.stochastic_depth.p, 3) for stage in (0, 2) for block in model.features[stage]] == [
        0,
        0.1,
        0.2,
        0.3,
    ]


def test_videomae_from_a_folder(tmp_path: Path) -> None:
    folder = videomae_folder(tmp_path / "mae")
    built = build_video_backbone(str(folder), num_classes=3, num_frames=4)
    assert (built.num_frames, built.input_size, built.head_names) == (4, 16, ("model.classifier",))
    from transformers import VideoMAEForVideoClassification

    source = VideoMAEForVideoClassification.from_pretrained(folder)
    source.classifier = built.model.model.classifier
    expected = source.eval()(pixel_values=clip().transpose(1, 2)).logits
    assert torch.allclose(built.model.eval()(clip()), expected, atol=1e-6)
    longer = build_video_backbone(str(folder), num_classes=3, num_frames=8)
    assert longer.model.eval()(clip(8)).shape == (2, 3)
    assert longer.fingerprint == built.fingerprint  # its position embedding is computed, not loaded
    with pytest.raises(BackboneError, match="do not divide into tubelets of 2"):
        build_video_backbone(str(folder), num_classes=3, num_frames=5)
    with pytest.raises(BackboneError, match="no drop path"):
        build_video_backbone(str(folder), num_classes=3, num_frames=4, drop_path_rate=0.1)
    with pytest.raises(BackboneError, match=r"could not be loaded"):
        build_video_backbone(str(tmp_path), num_classes=3)


@pytest.mark.parametrize("shape", [(4, 16, 16), (20, 40, 24), (40, 16, 20), (7, 33, 18)])
def test_attention_that_calls_its_projections_is_torchvision_s(shape: tuple[int, int, int]) -> None:
    """Windows that fit, are padded, shifted and shrunk; values and gradients."""
    from torchvision.models.video import SwinTransformer3d

    own = build_swin3d("swin3d_nano", 3).eval()
    theirs = SwinTransformer3d([2, 4, 4], **SWIN3D_SHAPES["swin3d_nano"], num_classes=3).eval()
    theirs.load_state_dict(own.state_dict())
    video = torch.randn(2, 3, *shape)
    outputs = [model(video) for model in (own, theirs)]
    assert torch.allclose(*outputs, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for (name, mine), its in zip(own.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_methods_of_peft_act_too(method: str) -> None:
    model = nano()
    replora.inject(model, replora.PeftMethodConfig(method, rank=2, dropout=0.1), also_train=["head"])
    assert replora.adapters.container.adapters_of(model).targets_verified
    model(clip()).square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)


def test_input_dropout_acts() -> None:
    torch.manual_seed(0)
    model = nano()
    replora.inject(model, replora.RepLoRAConfig(factors="none", rank=2, dropout=0.9), also_train=["head"])
    for p in replora.adapters.container.adapters_of(model).parameters():
        nn.init.normal_(p)
    assert not torch.equal(model.train()(clip()), model(clip()))
    assert torch.equal(model.eval()(clip()), model(clip()))


# --- adapters are in the path


def models(tmp_path: Path) -> dict[str, nn.Module]:
    folder = videomae_folder(tmp_path / "mae")
    mae = build_video_backbone(str(folder), num_classes=3, num_frames=4).model
    from torchvision.models.video import SwinTransformer3d

    theirs = SwinTransformer3d([2, 4, 4], **SWIN3D_SHAPES["swin3d_nano"], stochastic_depth_prob=0.0, num_classes=3)
    return {"swin3d": nano(), "torchvision": theirs, "videomae": mae, "attention": Attention()}


class Attention(nn.Module):
    """`nn.MultiheadAttention` over the frames of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Linear(3 * 16 * 16, 24)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Linear(24, 3)

    def example_input(self) -> Tensor:
        return clip()

    def forward(self, video: Tensor) -> Tensor:
        x = self.frame(video.transpose(1, 2).flatten(2))
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


HEADS = {"swin3d": "head", "torchvision": "head", "videomae": "model.classifier", "attention": "head"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", HEADS)
def test_every_target_is_in_the_path_and_merges_exactly(name: str, method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models(tmp_path)[name]
    before = model.eval()(clip())
    replora.inject(model, METHODS[method], also_train=[HEADS[name]])
    adapters = replora.adapters.container.adapters_of(model)
    assert adapters.targets_verified  # injection made an input of its own
    assert {target.rpartition("[")[2].rpartition(".")[2].rstrip("]") for target in adapters.targets} <= {
        "q", "v", "query", "value",
    }  # fmt: skip
    assert torch.allclose(model(clip()), before, atol=1e-6)  # it starts as the backbone
    for p in adapters.parameters():
        nn.init.normal_(p, std=0.5)
    changed = model(clip())
    assert not torch.allclose(changed, before, atol=5e-5)
    model(clip()).square().sum().backward()
    for key, p in adapters.named_parameters():
        assert p.grad is not None, key
        assert p.grad.any(), key
    with replora.merged(model):
        assert torch.allclose(model(clip()), changed, atol=1e-5, rtol=1e-4)
    replora.remove(model)
    assert torch.equal(model(clip()), before)


@pytest.mark.parametrize("name", ["swin3d", "torchvision", "videomae"])
def test_each_target_alone_changes_the_output(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models(tmp_path)[name].eval()
    replora.inject(model, replora.RepLoRAConfig(factors="none", rank=2), also_train=[HEADS[name]])
    adapters = replora.adapters.container.adapters_of(model)
    before = model(clip())
    changed = 0
    for bank in adapters.factor_banks():
        for matrices in bank.last_matrices():  # B of one role: (groups, ...)
            for group in range(len(matrices)):
                with torch.no_grad():
                    # A query of the first block moves the logits least. Which numbers it meets depends on how many of
                    # them the installed transformers draws: at ten times their size every one is far above the bound.
                    matrices[group] = 10 * torch.randn(matrices[group].shape)
                    assert not torch.allclose(model(clip()), before, atol=1e-5)
                    matrices[group] = 0
                changed += 1
    assert changed == len(adapters.targets) >= 4
    assert torch.equal(model(clip()), before)


def test_the_example_reaches_every_stage() -> None:
    for name in ("swin3d_t", "swin3d_nano"):
        with torch.device("meta"):
            model = build_swin3d(name)
        example = example_input(model)
        stages = len(SWIN3D_SHAPES[name]["depths"])
        assert example.shape == (1, 3, 4, 8 * 2 ** (stages - 1), 8 * 2 ** (stages - 1))


@pytest.mark.parametrize("name", ["swin3d", "videomae"])
def test_gradient_checkpointing_changes_nothing_but_memory(name: str, tmp_path: Path) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = nano(drop_path_rate=0.5) if name == "swin3d" else models(tmp_path / str(recompute))[name]
        replora.inject(model, METHODS["replora"], also_train=[HEADS[name]])
        for p in replora.adapters.container.adapters_of(model).parameters():
            nn.init.normal_(p, std=0.5)
        if recompute:
            checkpoint_gradients(model)
        torch.manual_seed(1)
        model.train()(clip()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(*gradients, strict=True))
    assert isinstance(models(tmp_path / "x")["videomae"], VideoMAE)
