"""Adapter files as each release wrote them, which later releases must read with equal outputs.

    python -m tests.adapters.release_files NAME      writes tests/adapters/files/NAME, once for each release

The model's weights come from a formula, so that no random generator's future can change them.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import replora

FILES = Path(__file__).parent / "files"
METHODS: dict[str, replora.AdapterConfig] = {
    # What the options were when the files were written, whatever the defaults are today.
    "replora": replora.RepLoRAConfig(rank=2, hidden=3, alpha=3, activation="gelu"),
    "replora_unshared_tanh": replora.RepLoRAConfig(
        rank=2, hidden=3, sharing="none", activation="tanh", scale_exponent=1.0
    ),
    "linear": replora.RepLoRAConfig(rank=2, hidden=3, factors="linear"),
    "lora": replora.RepLoRAConfig(rank=2, factors="none", targets=("q", "*.up")),
    "dora": replora.PeftMethodConfig("dora", rank=2),
    "bitfit": replora.BitFitConfig(),
    "linear_probe": replora.LinearProbeConfig(),
    "full": replora.FullConfig(),
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.up = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.softmax(self.q_proj(x) @ x.mT, dim=-1) @ self.v_proj(x))


class Model(nn.Module):
    """Two blocks and a head: (batch, 5, 6) -> (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Attention(), Attention())
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(wave(parameter, number))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(dim=1))


def wave(like: Tensor, number: int) -> Tensor:
    return 0.4 * torch.sin(1.7 * torch.arange(like.numel()).float() + number).view(like.shape)


def inputs() -> Tensor:
    return wave(torch.empty(2, 5, 6), 99)


def adapted(method: str) -> nn.Module:
    model = Model().eval()
    return replora.inject(model, METHODS[method], also_train=["head"], example=inputs())


def write(folder: Path) -> None:
    """One file a method, `replora_deployed.safetensors`, and the outputs of each in `outputs.safetensors`."""
    folder.mkdir(parents=True)
    outputs = {}
    for method in METHODS:
        model = adapted(method)
        with torch.no_grad():
            for number, tensor in enumerate(replora.adapter_state(model).values()):
                tensor.add_(wave(tensor, 50 + number))
        outputs[method] = model(inputs()).detach().clone()
        replora.save_adapter(model, folder / f"{method}.safetensors", {"note": "regression file"})
        if method == "replora" and "deploy" in inspect.signature(replora.save_adapter).parameters:
            replora.save_adapter(model, folder / "replora_deployed.safetensors", deploy=True)
            outputs["replora_deployed"] = outputs[method].clone()
    save_file(outputs, folder / "outputs.safetensors")


if __name__ == "__main__":
    write(FILES / sys.argv[1])
