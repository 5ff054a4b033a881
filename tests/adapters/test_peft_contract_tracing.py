"""`torch.jit.trace`, and the ONNX exports by it and by `torch.export`, work on an adapted model as on the plain one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import replora
from tests.adapters.test_contract import PEFT_MODELS, adapted, build, disturb
from tests.adapters.tiny_models import MODELS, TinyModel, call

PAIRS = [
    *((model, method) for model in MODELS for method in ("replora", "lora")),
    *((model, "dora") for model in PEFT_MODELS),
]


class Logits(nn.Module):
    """A model of one tensor to one tensor, as tracing wants it."""

    def __init__(self, model: nn.Module, tiny: TinyModel) -> None:
        super().__init__()
        self.model = model
        inputs = tiny.inputs()
        self.key = next(iter(inputs)) if isinstance(inputs, dict) else None
        self.example: Tensor = inputs if self.key is None else inputs[self.key]

    def forward(self, x: Tensor) -> Tensor:
        if self.key is None:
            return self.model(x)
        options = {"use_cache": False} if self.key == "input_ids" else {}
        return call(self.model, {self.key: x} | options)


def disturbed(model_name: str, method: str) -> Logits:
    model, tiny = adapted(model_name, method)
    disturb(model)
    return Logits(model, tiny)


@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_a_traced_model_gives_the_outputs_of_the_adapter(model_name: str, method: str, tmp_path: Path) -> None:
    model = disturbed(model_name, method)
    with torch.no_grad():
        want = model(model.example)
        with replora.disabled(model.model):
            base = model(model.example)
        torch.jit.trace(model, (model.example,), check_trace=False).save(tmp_path / "model.pt")
        got = torch.jit.load(tmp_path / "model.pt")(model.example)
        torch.testing.assert_close(model(model.example), want, rtol=0, atol=0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, base, atol=1e-4)


def exported(model: Logits, folder: Path) -> Path:
    file = folder / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(model, (model.example,), str(file), dynamo=False, input_names=["x"])
    return file


@pytest.mark.parametrize("model_name", MODELS)
def test_an_exported_model_gives_them_too(model_name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    try:
        exported(Logits(*build(model_name)), tmp_path)
    except (torch.onnx.errors.UnsupportedOperatorError, TypeError) as error:
        pytest.skip(f"the plain model cannot be exported either: {error}")
    for method in ("replora", "lora"):
        model = disturbed(model_name, method)
        with torch.no_grad():
            want = model(model.example)
        session = runtime.InferenceSession(exported(model, tmp_path), providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(None, {"x": model.example.numpy()})[0])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "state"), [("replora", "adapted"), ("replora", "merged"), ("dora", "disabled")])
def test_the_other_exporter_gives_them_for_every_batch_size(method: str, state: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if method == "dora":
        pytest.importorskip("peft")
    model = disturbed("timm_vit", method).eval()
    block = {"disabled": replora.disabled, "merged": replora.merged}.get(state, nullcontext)
    larger = torch.cat([model.example, model.example.flip(0), model.example])
    file = tmp_path / "model.onnx"
    with torch.no_grad(), block(model.model):
        want = model(larger)
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(model, (model.example,), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {"x": larger.numpy()})[0])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
