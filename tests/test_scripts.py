"""The measuring scripts run: here on a tiny model, on a CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gpu_llama(tmp_path):
    small = ["--batch_size=2", "--length=16", "--steps=1", "--eval_batch_size=2"]
    load("gpu_llama").main(["--shape=tiny", "--device=cpu", *small, f"--out={tmp_path / 'out.json'}"])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["method"], row["gradient_checkpointing"]) for row in rows] == [
        ("lora", False),
        ("lora", True),
        ("replora", False),
        ("replora", True),
    ]
    for row in rows:
        assert row["parameters"]["adapter_deployed"] == 2 * 32 * (3 * (64 + 64) + 2 * (64 + 128))
        assert row["tokens_per_second"] == pytest.approx(32 / row["seconds_per_step"], rel=0.01)
        assert row["likelihood_items_per_second"] > 0
        assert row["generate_items_per_second"] > 0
