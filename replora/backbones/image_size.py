"""The size of the images that a timm model takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from replora.backbones.backbone import BackboneError
from replora.memory import check_memory


def image_size_of(model: nn.Module) -> int | None:
    """Height and width of the images that a timm model is bound to, in pixels; None if it takes several sizes."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return int(size[0]) if size else None


def check_size(model: nn.Module, name: str, made_for: int, image_size: int) -> None:
    """Classify an empty image: some models whose size is not fixed by patches take one size, or multiples of another.

    Raises:
        BackboneError: The model does not take images of this size.
    """
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise BackboneError(
            f"{name} does not take images of {image_size} x {image_size} pixels ({error}). Set --data.image_size "
            f"{made_for}, for which its weights were made."
        ) from error
    finally:
        model.train(training)


def resample(model: Any, name: str, made_for: int, image_size: int) -> None:
    """Let a model take images of another size: timm resamples position embeddings and relative position tables.

    Attention windows keep their size, as where timm creates the model for this size.

    Raises:
        BackboneError: The model cannot be resampled, or its patches do not divide the images.
    """
    if not hasattr(model, "set_input_size"):
        raise BackboneError(
            f"{name} takes images of {made_for} x {made_for} pixels, but the data gives {image_size} x {image_size}. "
            f"timm cannot resample a {type(model).__name__}. Set --data.image_size {made_for}."
        )
    patch = made_for // model.patch_embed.grid_size[0]
    if image_size % patch:
        below, above = image_size // patch * patch, -(-image_size // patch) * patch
        sizes = " or ".join(str(size) for size in (below, above) if size)
        raise BackboneError(
            f"{name} cuts images into patches of {patch} x {patch} pixels, which do not divide {image_size} x "
            f"{image_size}. Set --data.image_size {sizes}; its weights were made for {made_for}."
        )
    _check_memory(model, name, made_for, image_size, (image_size // patch) ** 2)
    windows: dict[str, Any] = {}
    if "window_size" in inspect.signature(model.set_input_size).parameters:
        windows["window_size"] = next(m.window_size for m in model.modules() if hasattr(m, "window_size"))
    model.set_input_size(img_size=(image_size, image_size), **windows)


def _check_memory(model: Any, name: str, made_for: int, image_size: int, tokens: int) -> None:
    """Refuse images of which a single one has more activations than this machine has memory."""
    size = 4 * tokens * model.num_features * len(getattr(model, "blocks", [None]))  # bytes of one value per block
    remedy = f"Set a smaller --data.image_size; its weights were made for {made_for}."
    check_memory(size, f"{name} on one image of {image_size:,} x {image_size:,} pixels", remedy)
