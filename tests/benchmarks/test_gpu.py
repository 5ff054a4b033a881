"""The command that measures everything on a GPU: each part runs here on a CPU, and none of them ends the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from replora.cli.main import main as replora_cli


@pytest.fixture
def gpu(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("gpu")


def test_every_part_runs_on_a_cpu(gpu, tmp_path: Path, monkeypatch) -> None:
    """With its real options, which `--quick` makes small. In this process, which has imported everything."""

    def here(arguments: list[str], _limit: float, _shown: object) -> str:
        script, *options = arguments
        if script == "-m":
            assert not replora_cli(options[1:])
        else:
            importlib.import_module(Path(script).stem).main(options)
        return "done"

    monkeypatch.setattr(gpu, "finish", here)
    assert gpu.main(["--quick", f"--out={tmp_path}"]) == 0
    written = {file.stem for file in tmp_path.glob("*.json")}
    scripts = {part.script for part in gpu.PARTS.values()} - {"sweep"}
    assert {name.split("-")[0] for name in written} == scripts
    step = "training_step-tiny-batch2-cpu-fp32"
    assert {step, f"{step}-compiled", f"{step}-checkpointing"} <= written
    tables = importlib.import_module("tables")
    for file in tmp_path.glob("*.json"):
        assert "| ---" in tables.section(file)
    monkeypatch.setattr(gpu, "finish", lambda *_: pytest.fail("it was done"))
    assert gpu.main(["--quick", f"--out={tmp_path}"]) == 0


def test_a_part_that_fails_or_hangs_does_not_end_the_rest(gpu, tmp_path: Path, monkeypatch, capsys) -> None:
    writes = "import pathlib, sys\npathlib.Path(sys.argv[-1].partition('=')[2], f'{NAME}.json').write_text('{}')\n"
    scripts = {
        "fails": f"NAME = 'partial'\n{writes}sys.exit(3)",
        "hangs": "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'input()'])\ntime.sleep(600)",
        "works": f"NAME = 'complete'\n{writes}print('output')",
    }
    for name, script in scripts.items():
        (tmp_path / f"{name}.py").write_text(script)
    parts = {name: gpu.Part(0.02 if name == "hangs" else 1, name) for name in scripts}
    for name, value in {"HERE": tmp_path, "PARTS": parts, "GRACE": 5.0}.items():
        monkeypatch.setattr(gpu, name, value)
    out = tmp_path / "out"
    assert gpu.main(["--quick", f"--out={out}"]) == 1
    shown = capsys.readouterr().out
    assert "fails ... failed with 3" in shown
    assert "hangs ... stopped after 1 s" in shown
    assert "Not done: fails, hangs." in shown
    assert [file.name for file in out.glob("*.json")] == ["complete.json"]
    assert (out / "log" / "partial.json").is_file()
    assert (out / "log" / "works.txt").read_text() == "output\n"
    (tmp_path / "fails.py").write_text(writes.replace("{NAME}", "fixed"))
    assert gpu.main(["--quick", f"--out={out}"]) == 1
    assert [line.split(" ...")[0] for line in capsys.readouterr().out.splitlines()][:2] == ["fails", "hangs"]
    assert (out / "fixed.json").is_file()
    assert gpu.main(["--quick", f"--out={out}", "--minutes=0"]) == 1  # no time is left for what is not done
    assert capsys.readouterr().out.startswith("Not done: hangs.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so(gpu, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA GPU here"):
        gpu.main([f"--out={tmp_path}"])
    assert not any(tmp_path.iterdir())
