"""Video classifiers with a fresh head: torchvision's Video Swin, a tiny one of the same kind, transformers' VideoMAE.

`swin3d_b` is the backbone of the published Video Swin rows: ImageNet-22k, then Kinetics-400. torchvision's own default
for it are other weights (ImageNet-1k, then Kinetics-400); here the name alone means
`swin3d_b.kinetics400_imagenet22k_v1`.

torchvision's attention reads the weights of `qkv` and `proj` and never calls these layers; the models built here call
them (`swin3d_attention.py`), so that every method acts on them. Injection proves it on a small clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as without_activations

from replora.adapters.fingerprint import fingerprint as model_fingerprint
from replora.adapters.fingerprint import in_head
from replora.backbones.backbone import Backbone, BackboneError, file_sha256
from replora.errors import nearest

Average = Literal["logits", "probabilities"]  # what is averaged over the views of a video

# Liu et al., Video Swin Transformer (2022), section 3.3; as arguments of torchvision's SwinTransformer3d. `swin3d_nano`
# is ours, for demonstrations and tests: 2 x 4 x 4 pixels a token, 146,000 parameters, random weights alone.
SWIN3D_SHAPES: dict[str, dict[str, Any]] = {
    "swin3d_t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": [8, 7, 7]},
    "swin3d_s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": [8, 7, 7]},
    "swin3d_b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": [8, 7, 7]},
    "swin3d_nano": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [8, 4, 4]},
}
PATCH = [2, 4, 4]  # frames, rows and columns of a token

# Tag -> name in torchvision's enum of weights; the first is what the name without a tag means.
SWIN3D_WEIGHTS: dict[str, dict[str, str]] = {
    "swin3d_t": {"kinetics400_v1": "Swin3D_T_Weights.KINETICS400_V1"},
    "swin3d_s": {"kinetics400_v1": "Swin3D_S_Weights.KINETICS400_V1"},
    "swin3d_b": {
        "kinetics400_imagenet22k_v1": "Swin3D_B_Weights.KINETICS400_IMAGENET22K_V1",
        "kinetics400_v1": "Swin3D_B_Weights.KINETICS400_V1",
    },
    "swin3d_nano": {},
}
KINETICS_CLASSES = 400

# Names in the checkpoints of github.com/SwinTransformer/Video-Swin-Transformer -> names in torchvision's model. Block j
# of stage i is features.{2i}.{j}, the patch merging after it features.{2i + 1}.
_ORIGINAL_NAMES: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (re.compile(r"layers\.(\d+)\.downsample\.(.+)"), lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}"),
    (
        re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.(.+)"),
        lambda m: f"features.{2 * int(m[1])}.{m[2]}.mlp.0.{m[3]}",
    ),
    (
        re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.(.+)"),
        lambda m: f"features.{2 * int(m[1])}.{m[2]}.mlp.3.{m[3]}",
    ),
    (re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)"), lambda m: f"features.{2 * int(m[1])}.{m[2]}.{m[3]}"),
    (re.compile(r"cls_head\.fc_cls\.(.+)"), lambda m: f"head.{m[1]}"),
]
# Computed from the window's size, not learnt.
_COMPUTED = re.compile(r".*\b(relative_position_index|attn_mask)")


@dataclass(frozen=True)
class VideoBackbone(Backbone):
    """A video classifier with a fresh head: normalised clips (batch, 3, T, H, W) -> (batch, num_classes) logits.

    Attributes:
        num_frames: The T that the model takes; None for any.
        input_size: The H = W that the model takes, in pixels; None for any.
    """

    num_frames: int | None
    input_size: int | None


class VideoMAE(nn.Module):
    """transformers' VideoMAE under the convention of this package: (B, 3, T, H, W) -> logits (B, classes).

    Args:
        model: A `VideoMAEForVideoClassification`, which takes (B, T, 3, H, W).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def example_input(self) -> Tensor:
        """A clip of noise, with which injection proves that every target acts on the output."""
        config: Any = self.model.config
        shape = (1, config.num_channels, config.num_frames, config.image_size, config.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=video.transpose(1, 2)).logits
        return logits


def build_video_backbone(
    name: str = "swin3d_b",
    *,
    num_classes: int,
    pretrained: bool = True,
    checkpoint: Path | None = None,
    drop_path_rate: float = 0.0,
    num_frames: int = 16,
) -> VideoBackbone:
    """A video model with a new classification layer of random weights, put in after the weights are loaded.

    Args:
        name: `swin3d_t`, `swin3d_s`, `swin3d_b` with or without the tag of torchvision's weights, `swin3d_nano`, or a
            VideoMAE of transformers: a folder with config.json, or a hub id such as
            `MCG-NJU/videomae-base-finetuned-kinetics`.
        num_classes: Outputs of the new head, at least 1.
        pretrained: Whether to load the published weights. Not used with `checkpoint`.
        checkpoint: For a Swin: weights in torchvision's or in the original release's names, `.pth`, `.pt` or
            `.safetensors`. Its head is left out; the rest must fit, except for the length of the attention's window in
            time, which is then that of the file (16 in the Something-Something models, 8 elsewhere).
        drop_path_rate: Probability in [0, 1) of skipping the deepest residual branch in training; it grows linearly
            with depth from 0. Swin only.
        num_frames: Frames of a clip, at least 1. A Swin takes any number and does not depend on it; VideoMAE's fixed
            position embedding is computed for it.

    Raises:
        BackboneError: The name is unknown, or the weights cannot be loaded or belong to another model.
    """
    if num_classes < 1:
        raise BackboneError(f"num_classes: {num_classes} asked for. A classifier needs at least 1 class.")
    if not 0 <= drop_path_rate < 1:
        raise BackboneError(f"drop_path_rate: {drop_path_rate} is out of range. It must be a probability in [0, 1).")
    if checkpoint is not None:
        checkpoint = Path(checkpoint).expanduser()
        if not checkpoint.is_file():
            raise BackboneError(f"checkpoint: there is no file {str(checkpoint)!r} (looked in {Path.cwd()}).")
    architecture, _, tag = name.partition(".")
    if architecture in SWIN3D_SHAPES:
        return _swin3d(name, architecture, tag, num_classes, pretrained, checkpoint, drop_path_rate)
    return _videomae(name, num_classes, pretrained, checkpoint, drop_path_rate, num_frames)


def averaged(logits: Tensor, what: Average) -> Tensor:
    """The answers to the views of each video (V, B, classes) -> one answer each (B, classes), as logits in float32."""
    logits = logits.float()
    if what == "logits" or len(logits) == 1:
        return logits.mean(dim=0)
    # log mean_v softmax(logits_v), without a probability that rounds to 0
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep no activations inside the blocks; the backward pass computes them again, drop path drawn alike.

    Without reentrance: the reentrant kind gives adapters behind a frozen embedding no gradient.
    """
    from torchvision.models.swin_transformer import SwinTransformerBlock

    if isinstance(model, VideoMAE):
        from replora.backbones.language import checkpoint_gradients as of_transformers

        of_transformers(model.model)
        return
    for block in model.modules():
        if isinstance(block, SwinTransformerBlock):
            block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Any, x: Tensor) -> Tensor:
    y: Tensor = without_activations(forward, x, use_reentrant=False) if torch.is_grad_enabled() else forward(x)
    return y


# --- Video Swin


def build_swin3d(
    architecture: str,
    num_classes: int = KINETICS_CLASSES,
    drop_path_rate: float = 0.0,
    window_frames: int | None = None,
) -> nn.Module:
    """torchvision's SwinTransformer3d with random weights, and with projections that are called.

    Not through torchvision's own `swin3d_b(...)`: it refuses another drop path or window.

    Args:
        architecture: One of `SWIN3D_SHAPES`.
        num_classes: Outputs of the head.
        drop_path_rate: See `build_video_backbone`.
        window_frames: Length of the attention's window in tokens of two frames; 8 by default.
    """
    from torchvision.models.video import SwinTransformer3d

    from replora.backbones.swin3d_attention import calling_block

    shape = SWIN3D_SHAPES[architecture]
    window = [window_frames or shape["window_size"][0], *shape["window_size"][1:]]
    model: nn.Module = SwinTransformer3d(
        patch_size=PATCH,
        **(shape | {"window_size": window}),
        stochastic_depth_prob=drop_path_rate,
        num_classes=num_classes,
        block=calling_block,
    )
    return model


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under torchvision's names, whether it was written with these or by the original release.

    What only follows from the window's size (`relative_position_index`, `attn_mask`) is left out.
    """
    return {
        _torchvision_name(name.removeprefix("module.").removeprefix("backbone.")): tensor
        for name, tensor in state.items()
        if not _COMPUTED.fullmatch(name)
    }


def _torchvision_name(name: str) -> str:
    for pattern, rename in _ORIGINAL_NAMES:
        if match := pattern.fullmatch(name):
            return rename(match)
    return name


def _swin3d(
    name: str,
    architecture: str,
    tag: str,
    num_classes: int,
    pretrained: bool,
    checkpoint: Path | None,
    drop_path_rate: float,
) -> VideoBackbone:
    tags = SWIN3D_WEIGHTS[architecture]
    if tag and tag not in tags:
        raise BackboneError(
            f"torchvision has no weights {tag!r} of {architecture!r}. "
            + (nearest(tag, tags) if tags else "There are none; leave the tag out.")
        )
    weights, sha256 = "random", None
    if checkpoint is not None:
        state = torchvision_names(_read_tensors(checkpoint))
        model = build_swin3d(architecture, KINETICS_CLASSES, drop_path_rate, _window_frames(state, architecture))
        _load(model, state, f"checkpoint: {checkpoint}", name)
        weights, sha256 = str(checkpoint), file_sha256(checkpoint)
    else:
        model = build_swin3d(architecture, KINETICS_CLASSES, drop_path_rate)
        if pretrained:
            if not tags:
                raise BackboneError(
                    f"{name!r} has no published weights. Start from random ones: --model.pretrained false."
                )
            tag = tag or next(iter(tags))
            _load(model, _fetch(name, tags[tag]), f"torchvision's {tags[tag]}", name)
            weights = f"torchvision/{architecture}.{tag}"
    model.head = _new_head(model.head.in_features, num_classes)  # type: ignore[union-attr, arg-type]
    return VideoBackbone(
        model=model,
        name=name,
        head_names=("head",),
        weights=weights,
        sha256=sha256,
        fingerprint=model_fingerprint(model, ("head",)),
        num_frames=None,
        input_size=None,
    )


def _new_head(width: int, num_classes: int) -> nn.Linear:
    """As torchvision starts it."""
    head = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def _fetch(name: str, member: str) -> dict[str, Tensor]:
    """torchvision's weights, from its cache or its server."""
    from torchvision.models import get_weight

    try:
        state: dict[str, Tensor] = get_weight(member).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # urllib's, http's and torch's own errors
        raise BackboneError(
            f"The weights of {name!r} could not be fetched ({_first_line(error)}). Without a network give a file, "
            "--model.checkpoint FILE (torchvision's, or one of the original release such as "
            "swin_base_patch244_window877_kinetics400_22k.pth), or start from random weights, --model.pretrained false."
        ) from error
    return state


def _window_frames(state: dict[str, Tensor], architecture: str) -> int:
    """The window's length in time, from the number of relative positions: (2 t - 1) (2 h - 1) (2 w - 1)."""
    default, height, width = SWIN3D_SHAPES[architecture]["window_size"]
    table = state.get("features.0.0.attn.relative_position_bias_table")
    if table is None:
        return int(default)
    positions, rest = divmod(len(table), (2 * height - 1) * (2 * width - 1))
    return (positions + 1) // 2 if not rest and positions % 2 else int(default)


def _read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    if checkpoint.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(checkpoint)
            return tensors
        except SafetensorError as error:
            raise BackboneError(f"checkpoint: {checkpoint} cannot be read as weights ({error}).") from error
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own
        raise BackboneError(
            f"checkpoint: {checkpoint} cannot be read as weights ({_first_line(error)}). It has to be .safetensors, or "
            "a .pth of plain tensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(
            f"checkpoint: {checkpoint} holds no plain table of tensors (nor under 'state_dict' or 'model')."
        )
    return content


def _load(model: nn.Module, state: dict[str, Tensor], where: str, name: str) -> None:
    """Load everything but the head; every weight of the model must be there in its shape."""
    wanted = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not in_head(key, ("head",)) and not _COMPUTED.fullmatch(key)
    }
    missing = [key for key in wanted if key not in state]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    surplus = [key for key in state if key not in wanted and not in_head(key, ("head",))]
    found = [
        f"{what}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("of another shape", shapes), ("of no use", surplus))
        if keys
    ]
    if found:
        raise BackboneError(
            f"{where} is not of {name}: {'; '.join(found)}. Is --model.backbone the model that the file was made with?"
        )
    model.load_state_dict({key: state[key] for key in wanted}, strict=False)


# --- VideoMAE


def _videomae(
    name: str, num_classes: int, pretrained: bool, checkpoint: Path | None, drop_path_rate: float, num_frames: int
) -> VideoBackbone:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    path = Path(name).expanduser()
    local = path.is_dir()
    if not local and "/" not in name:
        raise BackboneError(
            f"There is no video backbone {name!r}. {nearest(name, [*SWIN3D_SHAPES, *_tagged_names()])} A VideoMAE is "
            "named by a folder with config.json or by a hub id such as MCG-NJU/videomae-base-finetuned-kinetics."
        )
    if checkpoint is not None:
        raise BackboneError(
            f"checkpoint: {checkpoint} is for a Swin. A VideoMAE is loaded from a folder of transformers: "
            "--model.backbone FOLDER."
        )
    if drop_path_rate > 0:
        raise BackboneError("VideoMAE has no drop path in transformers. Set --model.drop_path_rate 0.")
    source = str(path) if local else name
    try:
        config = VideoMAEConfig.from_pretrained(source)
        if config.model_type != "videomae":
            raise ValueError(f"its config.json is of {config.model_type!r}")
        if num_frames % config.tubelet_size:
            raise ValueError(f"clips of {num_frames} frames do not divide into tubelets of {config.tubelet_size}")
        config.num_frames = num_frames
        make: Any = VideoMAEForVideoClassification  # transformers is not typed
        if pretrained:
            model, report = make.from_pretrained(source, config=config, output_loading_info=True)
        else:
            model = make(config)
    except Exception as error:  # the hub's client, safetensors and transformers raise their own errors
        raise BackboneError(
            f"The VideoMAE {name!r} could not be loaded ({_first_line(error)}). It may be a folder as transformers' "
            "save_pretrained writes it or a hub id; without a network, a folder."
        ) from error
    if pretrained:
        # A self-supervised checkpoint has neither head nor its norm, which starts as the identity.
        absent = [key for key in report["missing_keys"] if not key.startswith(("classifier.", "fc_norm."))]
        if absent:
            raise BackboneError(f"{name!r} lacks weights of a VideoMAE: {', '.join(sorted(absent)[:5])}.")
    model.classifier = _new_head(config.hidden_size, num_classes)
    model.config.num_labels = num_classes
    model.train()
    wrapped = VideoMAE(model)
    files = list(path.glob("*.safetensors")) if local else []
    return VideoBackbone(
        model=wrapped,
        name=name,
        head_names=("model.classifier",),
        weights=name if pretrained else "random",
        sha256=file_sha256(files[0]) if pretrained and len(files) == 1 else None,
        fingerprint=model_fingerprint(wrapped, ("model.classifier",)),
        num_frames=num_frames,
        input_size=int(config.image_size),
    )


def _tagged_names() -> list[str]:
    return [f"{name}.{tag}" for name, tags in SWIN3D_WEIGHTS.items() for tag in tags]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
