"""The measuring scripts run, here with a tiny model on a CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from replora.results import read_results
from tests.fake_data import write_commonsense
from tests.tiny_llama import write_tiny_llama

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


def test_commonsense_smollm2(tmp_path, monkeypatch):
    """Two runs on a tiny LLaMA; their tables go into the page, and what is there is not run again."""
    script = load("commonsense_smollm2")
    write_commonsense(tmp_path / "data", {"ARC-Easy": (20, 5)})
    llama = [f"--model.backbone={write_tiny_llama(tmp_path / 'llama')}", f"--data.root={tmp_path / 'data'}"]
    small = [*llama, "--data.check_sizes=false", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    tables = {"cloze": {"untuned": [*script.UNTUNED, *small], "lora": [*script.LORA, *small]}}
    monkeypatch.setattr(script, "TABLES", tables)
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- table cloze -->\n\nold\n\n<!-- end -->\n\nafter\n\n<!-- end -->\n")
    arguments = [f"--out={tmp_path}", "--tables=cloze", f"--page={page}"]
    script.main(arguments)
    content = read_results(tmp_path / "cloze-lora.json")
    assert content["fit"]["command"].startswith("replora-cli fit --config=commonsense_smollm2.yaml --config=ad")
    found = content["test"]["tasks"]["ARC-Easy"]
    digits = content["test"]["right"]["ARC-Easy"]
    assert {name: text.count("1") / 5 for name, text in digits.items()} == {k: found[k] for k in ("acc", "acc_norm")}
    text = page.read_text()
    assert text.startswith("before\n\n<!-- table cloze -->\n\n| acc_norm |")
    assert "| lora | ARC-e | overlap |" in text
    assert text.endswith("exact sign test.\n\n<!-- end -->\n\nafter\n\n<!-- end -->\n")
    monkeypatch.setattr(script, "run", lambda *_: pytest.fail("it was there"))
    script.main(arguments)
    assert page.read_text() == text


def test_compare_filters(tmp_path, monkeypatch):
    """Each run is tested with both filters; what is there is not run again."""
    script = load("compare_filters")
    quick = ["--config=quickstart.yaml", "--trainer.limit_train_batches=2", "--data.batch_size=8"]
    monkeypatch.setattr(script, "TASKS", {"digits, 8 to 32 pixels": quick})
    arguments = [f"--out={tmp_path / 'out'}", f"--runs={tmp_path / 'runs'}", "--count=2", "--seeds", "0", "--epochs=1"]
    script.main(arguments)
    rows = json.loads((tmp_path / "out" / "accuracy.json").read_text())["rows"]
    assert [row["trained with"] for row in rows] == ["bilinear", "tf1_bilinear"]
    assert all(set(row["mean test accuracy with"]) == {"bilinear", "tf1_bilinear"} for row in rows)
    pixels = json.loads((tmp_path / "out" / "pixels.json").read_text())["rows"]
    assert all(row["bilinear and tf1_bilinear"] > row["bilinear and bicubic"] for row in pixels)
    monkeypatch.setattr(script, "replora_cli", lambda *_: pytest.fail("it was there"))
    script.main(arguments)


def test_the_page_of_images_quotes_the_comparison_of_filters():
    page = (SCRIPTS.parent / "docs" / "images.md").read_text(encoding="utf-8")
    for name in ("pixels", "accuracy"):
        for row in json.loads((SCRIPTS.parent / "results" / "filters" / f"{name}.json").read_text())["rows"]:
            if name == "pixels":
                cells = [row["images"], row["to"], *(value for key, value in row.items() if " and " in key)]
            else:
                means = row["mean test accuracy with"]
                cells = [row["task"], row["trained with"], *(f"{100 * mean:.1f}" for mean in means.values())]
            assert f"| {' | '.join(str(cell) for cell in cells)} |" in page
