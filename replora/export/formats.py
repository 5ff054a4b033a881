"""One trained adapter in the format asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import replora
from replora.adapters.peft_format.export import export_peft
from replora.adapters.state import HEADER, save_adapter
from replora.backbones.vision import VisionBackbone
from replora.datasets.image.read import describe_images
from replora.export.merged import merge
from replora.export.onnx import export_onnx
from replora.export.trained import ExportError, Trained
from replora.export.usage import adapter_usage, peft_usage
from replora.io import check_output, replace_text

Format = Literal["peft", "adapter", "timm", "onnx"]


def export(
    trained: Trained, out: Path, form: Format, license: str = "unknown", overwrite: bool = False
) -> float | None:
    """Write the adapter for PEFT, as a file of this package without the weights that only training needs, or merged.

    Returns:
        The largest difference that a check of the format found: `timm` as `merge`, `onnx` as `export_onnx`.

    Raises:
        RepLoRAError: The format cannot express the adapter or its model, or `out` exists.
        OSError: It cannot be written.
    """
    if form == "onnx":
        return export_onnx(trained, out, license, overwrite)
    if form == "timm":
        if not isinstance(trained.backbone, VisionBackbone):
            raise ExportError(
                f"--format timm is for models of timm, and this is {type(trained.model).__name__}. "
                "`replora-cli merge` writes it for its own library."
            )
        return merge(trained, out, license, overwrite)
    if form == "adapter":
        _export_file(trained, out, license, overwrite)
        return None
    export_peft(
        trained.model,
        out,
        base_model=trained.base,
        license=license,
        data=trained.trained_on,
        images=describe_images(trained.data),
        classes=trained.data.get("class_names", ()),
        usage=peft_usage(trained),
        metrics=trained.metrics,
        force=trained.force,
        overwrite=overwrite,
    )
    return None


def card_of(file: Path) -> Path:
    """Where the model card of an adapter file is: beside it."""
    return file.with_suffix(".md")


def _export_file(trained: Trained, out: Path, license: str, overwrite: bool) -> None:
    for file in (out, card_of(out)):
        check_output(file, overwrite)
    metadata = {key: value for key, value in trained.metadata.items() if key not in HEADER}
    if trained.trained_on:
        metadata["trained_on"] = trained.trained_on
    if trained.metrics:
        metadata["metrics"] = json.dumps(trained.metrics)
    save_adapter(trained.model, out, metadata, deploy=True, force=trained.force)
    card = trained.card(replora.describe(trained.model), license, "replora", adapter_usage(trained, out.name))
    replace_text(card_of(out), card)
