"""The backbone with its update merged, verified, for the tools of its own library."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import replora
from replora.adapters.config import PeftMethodConfig
from replora.adapters.container import adapters_of
from replora.adapters.fingerprint import in_head
from replora.adapters.low_rank.layer import WeightUpdate
from replora.adapters.low_rank.ops import add_update_to_weight
from replora.adapters.merge import disabled, merge_and_unload, merged
from replora.adapters.peft_format.export import library_of
from replora.adapters.verify import outputs_on_example
from replora.backbones.image_size import image_size_of
from replora.backbones.vit_nano import VIT_NANO_ARCHITECTURE, VIT_NANO_MEAN, VIT_NANO_STD, build_vit_nano
from replora.datasets.image.read import short_side
from replora.export.trained import ExportError, Trained
from replora.export.usage import timm_usage
from replora.io import new_folder

# Maximum difference between merged and unmerged outputs, as a fraction of the largest output.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


def merge(trained: Trained, out: Path, license: str = "unknown", overwrite: bool = False) -> float:
    """Merge the update into the backbone, verify it on an input, and write the model for stock tools.

    A timm model becomes a folder that `timm.create_model("local-dir:OUT", pretrained=True)` opens, a transformers model
    one for `from_pretrained`, any other a folder with `model.safetensors`. Each has a model card.

    Returns:
        The largest difference between merged and unmerged outputs, as a fraction of the largest output.

    Raises:
        RepLoRAError: A weight is quantized, the outputs differ, or `out` exists and `overwrite` is off.
        OSError: It cannot be written; then nothing is left behind.
    """
    model, description = trained.model, replora.describe(trained.model)
    difference = merge_verified(trained)
    with new_folder(out, overwrite) as folder:
        library, usage = _save(model, trained, folder)
        card = trained.card(description, license, library, usage)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def merge_verified(trained: Trained) -> float:
    """Merge for good, after a check; return the difference that `merge` returns."""
    difference = _difference(trained.model, trained.force)
    merge_and_unload(trained.model, force=trained.force)
    return difference


def _difference(model: nn.Module, force: bool) -> float:
    """Verify merging; return the largest difference between merged and unmerged outputs, relative to the largest.

    In 16 bits the outputs alone tell little, so each merged weight is also compared with W0 + scale * B A. The methods
    of peft keep no W0: there the merged model must be closer to the unmerged one than the frozen model is. Values that
    are not finite are not compared with `force`.

    Raises:
        ExportError: Outputs or weights differ by more than rounding, or no example input is known.
    """
    unmerged = outputs_on_example(model)
    if unmerged is None:
        raise ExportError(f"No input is known for {type(model).__name__}, so merging could not be checked.")
    with merged(model, force=force):
        found = outputs_on_example(model) or []
        wrong = [name for update in adapters_of(model).updates if not _is_sum(update) for name in update.names]
    difference = _relative_difference(found, unmerged)
    if force and not math.isfinite(difference):
        return difference
    dtypes = {p.dtype for p in model.parameters()} & TOLERANCES.keys()
    dtype = max(dtypes, key=TOLERANCES.__getitem__)
    allowed = TOLERANCES[dtype]
    if isinstance(adapters_of(model).config, PeftMethodConfig):
        with disabled(model):
            effect = _relative_difference(outputs_on_example(model) or [], unmerged)
        allowed = min(allowed, max(0.9 * effect, allowed / 10))
    if not difference <= allowed:
        raise ExportError(
            f"The merged model's outputs differ from the unmerged one's by {difference:.2g} of their size, more than "
            f"{allowed:.2g} allowed in {dtype}. Load the base in float32, or keep the adapter apart (export)."
        )
    if wrong:
        raise ExportError(
            f"The merged weight of {wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''} is not the sum of "
            "the frozen one and its update. Keep the adapter apart (export)."
        )
    return difference


def _relative_difference(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference, as a fraction of the largest output."""
    largest = max(float(output.abs().max()) for output in reference)
    differences = [float((a - b).abs().max()) for a, b in zip(outputs, reference, strict=True)]
    return float(torch.tensor(differences, dtype=torch.float64).max()) / max(largest, 1e-30)  # NaN, if one is


@torch.no_grad()
def _is_sum(update: WeightUpdate) -> bool:
    """Whether a merged weight is W0 + scale * B A, rounded to its type."""
    assert update.base_before_merge is not None
    exact = torch.promote_types(update.base.dtype, torch.float32)
    want = add_update_to_weight(update.turned(update.base_before_merge.to(exact)), update.pieces(exact), update.scale)
    eps, largest = torch.finfo(update.base.dtype).eps, float(want.abs().max())
    return torch.allclose(update.turned(update.base.to(exact)), want, rtol=eps, atol=1e-5 * largest + 1e-7)


def _save(model: Any, trained: Trained, folder: Path) -> tuple[str, str]:
    """Write the plain model; return the library that opens it, and the code to do so."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        _copy_processors(trained.base, folder)
        name = type(model).__name__
        return (
            "transformers",
            f'from {library_of(model)} import {name}\n\nmodel = {name}.from_pretrained(".")  # this folder',
        )
    if getattr(model, "pretrained_cfg", None) or _is_vit_nano(model):
        _save_timm(model, trained, folder)
        return "timm", timm_usage(trained.data)
    tensors: dict[str, Tensor] = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load = 'model.load_state_dict(load_file("model.safetensors"))  # in this folder'
    return "pytorch", f"from safetensors.torch import load_file\n\n{load}"


# What transformers opens from a folder beside the weights -> files that show whether the folder has it.
PROCESSORS = {
    "AutoTokenizer": ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    "AutoImageProcessor": ("preprocessor_config.json", "processor_config.json"),
    "GenerationConfig": ("generation_config.json",),
}


def _copy_processors(base: str | None, folder: Path) -> None:
    """Copy what serving needs beside the weights: tokenizer, image processor and generation options.

    Nothing is loaded for a base without such files, as transformers may create an empty tokenizer then.
    """
    if base is None:  # a model built in Python
        return
    import transformers
    from transformers.utils import cached_file

    for name, files in PROCESSORS.items():
        try:
            missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
            if any(cached_file(base, file, **missing) for file in files):
                getattr(transformers, name).from_pretrained(base, trust_remote_code=False).save_pretrained(folder)
        except (ImportError, OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{name} of {base} was not copied ({error}). Copy its files by hand.", stacklevel=2)


def _is_vit_nano(model: Any) -> bool:
    """Whether the model has the class of `vit_nano` and its shapes, with any head and any size of images."""
    nano: Any = build_vit_nano()
    if type(model) is not type(nano) or getattr(model, "pretrained_cfg", None):
        return False
    nano.set_input_size(img_size=model.patch_embed.img_size)
    shapes = [{n: p.shape for n, p in m.named_parameters() if not in_head(n, ("head",))} for m in (model, nano)]
    return shapes[0] == shapes[1]


def _save_timm(model: Any, trained: Trained, folder: Path) -> None:
    import timm

    config: dict[str, Any] = {}
    size = image_size_of(model)
    if not getattr(model, "pretrained_cfg", None):  # vit_nano, which timm does not know by name
        model.pretrained_cfg = {
            "architecture": "vit_tiny_patch16_224",
            "input_size": (3, size, size),
            "fixed_input_size": True,
            "mean": VIT_NANO_MEAN,
            "std": VIT_NANO_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        config["model_args"] = {**VIT_NANO_ARCHITECTURE, "img_size": size}
    if size not in (None, model.pretrained_cfg["input_size"][-1]):  # resampled for other images
        config.setdefault("model_args", {})["img_size"] = size
    if trained.data:
        size = trained.data["image_size"]
        framing = trained.data["framing"]
        config["label_names"] = trained.data["class_names"]
        config["pretrained_cfg"] = {
            "input_size": (3, size, size),
            "interpolation": trained.data["interpolation"].removeprefix("tf1_"),  # the nearest that timm has
            "crop_mode": {"crop": "center", "pad": "border", "squash": "squash"}[framing],
            # timm rounds size / crop_pct down.
            "crop_pct": math.nextafter(size / short_side(size), 0) if framing == "crop" else 1.0,
            "mean": tuple(trained.data["normalization"]["mean"]),
            "std": tuple(trained.data["normalization"]["std"]),
        }
    timm.models.save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
