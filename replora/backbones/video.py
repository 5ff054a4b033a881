"""Video classifiers with a fresh head: torchvision's Video Swin, a tiny one of the same kind, transformers' VideoMAE.

`swin3d_b` is the backbone of the published Video Swin rows: ImageNet-22k, then Kinetics-400. torchvision's own default
for it are other weights (ImageNet-1k, then Kinetics-400); here the name alone means
`swin3d_b.kinetics400_imagenet22k_v1`.

torchvision's attention reads the weights of `qkv` and `proj` and never calls these layers; the models built here call
them (`swin3d_attention.py`), so that every method acts on them. Injection verifies it on a small clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as without_activations

from replora.adapters.fingerprint import fingerprint as model_fingerprint
from replora.backbones.backbone import Backbone, BackboneError, file_sha256
from replora.backbones.language import checkpoint_gradients as of_transformers
from replora.backbones.swin3d_attention import calling_block
from replora.backbones.video_weights import (
    SWIN3D_SHAPES,
    SWIN3D_WEIGHTS,
    fetch,
    first_line,
    load,
    read_tensors,
    tagged_names,
    torchvision_names,
    window_frames,
)
from replora.datasets.common.hub import check_hub
from replora.errors import nearest

Average = Literal["logits", "probabilities"]  # what is averaged over the views of a video

PATCH = [2, 4, 4]  # frames, rows and columns of a token

KINETICS_CLASSES = 400


@dataclass(frozen=True)
class VideoBackbone(Backbone):
    """A video classifier with a fresh head: normalized clips (batch, 3, T, H, W) -> (batch, num_classes) logits.

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
        """A clip of noise with which injection verifies that every target affects the output."""
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
        checkpoint: Weights of a Swin in torchvision's or in the original release's names, `.pth`, `.pt` or
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
        state = torchvision_names(read_tensors(checkpoint))
        model = build_swin3d(architecture, KINETICS_CLASSES, drop_path_rate, window_frames(state, architecture))
        load(model, state, f"checkpoint: {checkpoint}", name)
        weights, sha256 = str(checkpoint), file_sha256(checkpoint)
    else:
        model = build_swin3d(architecture, KINETICS_CLASSES, drop_path_rate)
        if pretrained:
            if not tags:
                raise BackboneError(
                    f"{name!r} has no published weights. Start from random ones: --model.pretrained false."
                )
            tag = tag or next(iter(tags))
            load(model, fetch(name, tags[tag]), f"torchvision's {tags[tag]}", name)
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


# --- VideoMAE


def _videomae(
    name: str, num_classes: int, pretrained: bool, checkpoint: Path | None, drop_path_rate: float, num_frames: int
) -> VideoBackbone:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    path = Path(name).expanduser()
    local = path.is_dir()
    if not local and "/" not in name:
        raise BackboneError(
            f"There is no video backbone {name!r}. {nearest(name, [*SWIN3D_SHAPES, *tagged_names()])} A VideoMAE is "
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
        check_hub(source)
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
            f"The VideoMAE {name!r} could not be loaded ({first_line(error)}). It may be a folder as transformers' "
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
