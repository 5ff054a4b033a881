"""Weights of video backbones: files of the original code, of torchvision and of the hub, and how they are loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from replora.adapters.fingerprint import in_head
from replora.backbones.backbone import BackboneError, why_unreadable
from replora.errors import listed

# Liu et al., Video Swin Transformer (2022), section 3.3; as arguments of torchvision's SwinTransformer3d. `swin3d_nano`
# is ours, for demonstrations and tests: 2 x 4 x 4 pixels a token, 146,000 parameters, random weights alone.
SWIN3D_SHAPES: dict[str, dict[str, Any]] = {
    "swin3d_t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": [8, 7, 7]},
    "swin3d_s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": [8, 7, 7]},
    "swin3d_b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": [8, 7, 7]},
    "swin3d_nano": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [8, 4, 4]},
}

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


def fetch(name: str, member: str) -> dict[str, Tensor]:
    """torchvision's weights, from its cache or its server."""
    from torchvision.models import get_weight

    try:
        state: dict[str, Tensor] = get_weight(member).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # urllib's, http's and torch's own errors
        raise BackboneError(
            f"The weights of {name!r} could not be fetched ({first_line(error)}). Without a network give a file, "
            "--model.checkpoint FILE (torchvision's, or one of the original release such as "
            "swin_base_patch244_window877_kinetics400_22k.pth), or start from random weights, --model.pretrained false."
        ) from error
    return state


def window_frames(state: dict[str, Tensor], architecture: str) -> int:
    """The window's length in time, from the number of relative positions: (2 t - 1) (2 h - 1) (2 w - 1)."""
    default, height, width = SWIN3D_SHAPES[architecture]["window_size"]
    table = state.get("features.0.0.attn.relative_position_bias_table")
    if table is None:
        return int(default)
    positions, rest = divmod(len(table), (2 * height - 1) * (2 * width - 1))
    return (positions + 1) // 2 if not rest and positions % 2 else int(default)


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    if checkpoint.suffix == ".safetensors":
        try:
            tensors: dict[str, Tensor] = load_file(checkpoint)
            return tensors
        except SafetensorError as error:
            raise BackboneError(f"checkpoint: {checkpoint} cannot be read as weights ({error}).") from error
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own
        raise BackboneError(
            f"checkpoint: {checkpoint} cannot be read as weights ({why_unreadable(error)}). It has to be "
            ".safetensors, or a .pth of plain tensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(
            f"checkpoint: {checkpoint} holds no plain table of tensors (nor under 'state_dict' or 'model')."
        )
    return content


def load(model: nn.Module, state: dict[str, Tensor], where: str, name: str) -> None:
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
        f"{what}: {listed(keys, 5)}"
        for what, keys in (("missing", missing), ("of another shape", shapes), ("of no use", surplus))
        if keys
    ]
    if found:
        raise BackboneError(
            f"{where} is not of {name}: {'; '.join(found)}. Is --model.backbone the model that the file was made with?"
        )
    model.load_state_dict({key: state[key] for key in wanted}, strict=False)


def tagged_names() -> list[str]:
    return [f"{name}.{tag}" for name, tags in SWIN3D_WEIGHTS.items() for tag in tags]


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
