"""The code in a model card: it opens what was exported and classifies a photo. A test runs that of every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from replora.adapters.peft_format.export import base_code
from replora.backbones.vision import OFFLINE, VisionBackbone
from replora.datasets.image.read import short_side
from replora.export.trained import Trained

# Lines that import, and lines that follow.
Code = tuple[list[str], list[str]]


def peft_usage(trained: Trained) -> str | None:
    """Code for a PEFT folder of a run on images; None for others, whose card has code that opens it."""
    if "interpolation" not in trained.data:
        return None
    needed, base = _base(trained)
    opened = [f"base = {base}", 'model = PeftModel.from_pretrained(base, ".").eval()  # this folder']
    return _joined(([needed, "from peft import PeftModel"], opened), _photo(trained.data), _torch(trained.data))


def adapter_usage(trained: Trained, file: str) -> str:
    """Code for an adapter file, which this package opens."""
    needed, base = _base(trained)
    opened = [
        f"model = {base}",
        f"replora.load_adapter(model, {json.dumps(file, ensure_ascii=False)})",
        "replora.merge_and_unload(model).eval()",
    ]
    code: Code = (["import replora", needed], opened)
    if "interpolation" not in trained.data:
        return _joined(code)
    return _joined(code, _photo(trained.data), _torch(trained.data))


def timm_usage(data: dict[str, Any]) -> str:
    """Code for a folder of timm, whose `config.json` has the preprocessing and the class names."""
    code: Code = (["import timm"], ['model = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder'])
    if "interpolation" not in data:
        return _joined(code)
    if data["interpolation"] == "tf1_bilinear":
        return _joined(code, _photo(data), _torch(data))
    transform = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    imports, image = _opened(data)
    return _joined(
        code,
        (["import torch", *imports], [transform, image]),
        ([], ["with torch.inference_mode():", "    probabilities = model(transform(image)[None]).softmax(dim=1)[0]"]),
        ([], ['classes = model.pretrained_cfg["label_names"]', _ANSWER]),
    )


def onnx_usage(data: dict[str, Any], file: str) -> str:
    """Code for a file of ONNX, without torch."""
    session = [f'session = onnxruntime.InferenceSession("{file}")  # in this folder']
    run = [
        'probabilities = session.run(["probabilities"], {"image": batch})[0][0]',
        'classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])',
        _ANSWER,
    ]
    return _joined((["import json", "import onnxruntime"], session), _photo(data), ([], run))


_ANSWER = "print(classes[int(probabilities.argmax())], float(probabilities.max()))"


def _joined(*parts: Code) -> str:
    imports = sorted({line for needed, _ in parts for line in needed if line}, key=lambda line: line.split()[1].lower())
    return "\n".join([*imports, "", *(line for _, lines in parts for line in lines)])


def _base(trained: Trained) -> tuple[str, str]:
    """The import and the expression of the frozen model."""
    built = trained.backbone
    if not isinstance(built, VisionBackbone) or built.weights.startswith("timm/"):
        return base_code(trained.model, trained.base)
    options = f'"{built.name}", num_classes={len(trained.data["class_names"])}'
    options += "" if built.any_size else f", image_size={built.input_size}"
    if built.weights == "random":
        options += ", pretrained=False"
    elif built.name not in OFFLINE or built.weights != f"{built.name}.safetensors":
        options += f", checkpoint={json.dumps(Path(built.weights).name, ensure_ascii=False)}"
    made = f"build_vision_backbone({options}).model"
    note = "  # random weights: only the run has those of its seed" if built.weights == "random" else ""
    return "from replora.backbones.vision import build_vision_backbone", made + note


def _opened(data: dict[str, Any]) -> tuple[list[str], str]:
    """The imports and the line that opens a photo as RGB."""
    if data["upright"]:
        line = 'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")'
        return ["from PIL import Image, ImageOps"], line
    return ["from PIL import Image"], 'image = Image.open("photo.jpg").convert("RGB")'


def _photo(data: dict[str, Any]) -> Code:
    """Code from a photo to `batch`, float32 (1, 3, size, size), as the run's evaluation reads it."""
    size, mean, std = data["image_size"], data["normalization"]["mean"], data["normalization"]["std"]
    normalized = [
        f"pixels = (np.asarray(image, dtype=np.float32) / 255 - {mean}) / {std}",
        f"batch = pixels.transpose(2, 0, 1)[None].astype(np.float32)  # (1, 3, {size}, {size})",
    ]
    if data["interpolation"] == "tf1_bilinear":  # TensorFlow 1's, which no other library has
        options = f'{size}, "tf1_bilinear", "{data["framing"]}", {data["upright"]}'
        options += f', "{data.get("background", "white")}", {tuple(mean)}'
        read = f'image = ImageReader({options}).read(Path("photo.jpg")).permute(1, 2, 0)'
        needed = ["from pathlib import Path", "from replora.datasets.image.read import ImageReader"]
        return [*needed, "import numpy as np"], [read, *normalized]
    resample = f"Image.Resampling.{data['interpolation'].upper()}"
    framed = {
        "squash": [f"image = image.resize(({size}, {size}), {resample})"],
        "crop": [
            f"width, height = ({short_side(size)} * side // min(image.size) for side in image.size)",
            f"left, top = round((width - {size}) / 2), round((height - {size}) / 2)",
            f"image = image.resize((width, height), {resample}).crop((left, top, left + {size}, top + {size}))",
        ],
        "pad": [
            f"width, height = (max(1, round(side * {size} / max(image.size))) for side in image.size)",
            f"square = Image.new('RGB', ({size}, {size}), {tuple(round(255 * value) for value in mean)})",
            f"left, top = ({size} - width) // 2, ({size} - height) // 2",
            f"square.paste(image.resize((width, height), {resample}), (left, top))",
            "image = square",
        ],
    }[data["framing"]]
    imports, line = _opened(data)
    return [*imports, "import numpy as np"], [line, *framed, *normalized]


def _torch(data: dict[str, Any]) -> Code:
    """Code from `model` and `batch` to an answer, with the class names spelled out."""
    # Valid in Python, and without what Markdown or HTML could take for its own.
    names = json.dumps(data["class_names"], ensure_ascii=False)
    for character in "<>`":
        names = names.replace(character, f"\\u{ord(character):04x}")
    run = [
        "with torch.inference_mode():",
        "    probabilities = model(torch.from_numpy(batch)).softmax(dim=1)[0]",
        f"classes = {names}",
        _ANSWER,
    ]
    return ["import torch"], run
