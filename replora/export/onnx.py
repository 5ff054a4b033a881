"""A merged image classifier as a file of ONNX, verified with onnxruntime before it is put in its place."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import replora
from replora.export.merged import TOLERANCES, merge_verified
from replora.export.trained import ExportError, Trained
from replora.export.usage import onnx_usage
from replora.io import new_folder

FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 1_800_000_000  # bytes of weights in the file itself; a message of protobuf has less than 2 GiB


def check_onnx() -> None:
    """Check that the libraries are there.

    Raises:
        ExportError: One is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--format onnx needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            'pip install "replora[onnx]"'
        )


class _WithProbabilities(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(image)
        return logits, logits.softmax(dim=1)


def export_onnx(trained: Trained, out: Path, license: str = "unknown", overwrite: bool = False) -> float:
    """Write a folder with `model.onnx` and a model card.

    The input `image` is float32 (batch, 3, H, W), normalized; the outputs are `logits` and `probabilities`, (batch,
    classes). The metadata have `class_names` and `preprocessing` as JSON, and what the card says.

    Returns:
        The largest difference between the probabilities of onnxruntime and torch.

    Raises:
        RepLoRAError: A library is missing, the model is no image classifier, ONNX cannot express it, the outputs
            differ, or `out` exists and `overwrite` is off.
        OSError: It cannot be written; then nothing is left behind.
    """
    check_onnx()
    data = trained.data
    if "interpolation" not in data:
        raise ExportError("--format onnx is for runs that classify images. For others: --format peft, or merge.")
    description = replora.describe(trained.model)
    merge_verified(trained)
    model = _WithProbabilities(trained.model).eval()
    size = data["image_size"]
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with new_folder(out, overwrite) as folder:
        _write(model, example, folder / FILE, _metadata(trained, license))
        difference = _verify(model, example, folder / FILE)
        card = trained.card(description, license, "onnx", onnx_usage(data, FILE))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def _metadata(trained: Trained, license: str) -> dict[str, str]:
    preprocessing = {name: value for name, value in trained.data.items() if name != "class_names"}
    values: dict[str, Any] = {
        "class_names": json.dumps(trained.data["class_names"], ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing, ensure_ascii=False),
        "metrics": json.dumps(trained.metrics),
        "trained_on": trained.trained_on,
        "base_model": trained.base,
        "license": license,
    }
    return {name: value for name, value in values.items() if value}


def _write(model: _WithProbabilities, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program: Any = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                input_names=["image"],
                output_names=["logits", "probabilities"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises what its hundreds of translations raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"torch cannot write {type(model.model).__name__} as ONNX ({reason}). For the merged model: --format timm."
        ) from error
    program.model.metadata_props.update(metadata)
    program.save(file, external_data=size > LARGEST)


def _verify(model: nn.Module, example: Tensor, file: Path) -> float:
    """Compare with torch for batches of 1, 2 and 3; return the largest difference between probabilities."""
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = 0.0
    for images in (example[:1], example, torch.cat([example.flip(0), example[:1]])):
        with torch.inference_mode():
            wanted = [output.numpy() for output in model(images)]
        found = session.run(["logits", "probabilities"], {"image": images.numpy()})
        differences = [float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True)]
        if not differences[0] <= TOLERANCES[torch.float32] * max(1.0, float(np.abs(wanted[0]).max())):
            raise ExportError(
                f"The outputs of onnxruntime and torch differ by {differences[0]:.2g} for a batch of {len(images)}, "
                "more than rounding. --format timm writes the merged model."
            )
        largest = max(largest, differences[1])
    return largest
