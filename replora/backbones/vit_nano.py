"""`vit_nano`: the small ViT that ships with the package, so that everything can be tried offline on a laptop.

A plain timm `VisionTransformer` for 32x32 RGB images (64 tokens of 4x4 pixels, 6 blocks, width 128, 1.2 million
parameters), pre-trained on CIFAR-10's training images by `scripts/pretrain_vit_nano.py`. Its weights are
`weights/vit_nano.safetensors`, its training log `weights/vit_nano.json`.

CIFAR-10 is what it was trained on: never report CIFAR-10 as a transfer task of this backbone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

VIT_NANO_WEIGHTS = Path(__file__).parent / "weights" / "vit_nano.safetensors"

# The architecture, as arguments of timm's VisionTransformer.
VIT_NANO_ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
    "class_token": False,
    "global_pool": "avg",
}

# Pixels in [0, 1] are mapped to [-1, 1], as for Google's ImageNet-21k ViTs.
VIT_NANO_MEAN = (0.5, 0.5, 0.5)
VIT_NANO_STD = (0.5, 0.5, 0.5)


def build_vit_nano(num_classes: int = 0, drop_path_rate: float = 0.0) -> nn.Module:
    """A `vit_nano` with random weights. `num_classes=0` leaves the head out: the output is then (batch, 128)."""
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        num_classes=num_classes, drop_path_rate=drop_path_rate, **VIT_NANO_ARCHITECTURE
    )
    return model
