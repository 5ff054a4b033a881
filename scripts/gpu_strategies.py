"""Run every strategy once on a machine with GPUs and write the results as JSON.

    python scripts/gpu_strategies.py --output gpu_strategies.json

Each run fits the packaged vit_nano to the digits for two epochs in separate processes. A failed run is recorded with
the end of its error output, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from replora.results import environment_info, read_results

# Name -> options. Runs whose strategy has several processes use all GPUs, with a global batch size of 64.
RUNS: dict[str, list[str]] = {
    "one GPU, float32": ["--config=trainer/gpu.yaml", "--trainer.precision=32-true"],
    "one GPU, bf16-mixed": ["--config=trainer/gpu.yaml"],
    "one GPU, 16-mixed": ["--config=trainer/gpu.yaml", "--trainer.precision=16-mixed"],
    "one GPU, bf16-true": ["--config=trainer/gpu.yaml", "--trainer.precision=bf16-true"],
    "one GPU, gradient checkpointing": ["--config=trainer/gpu.yaml", "--model.gradient_checkpointing=true"],
    "one GPU, compiled": ["--config=trainer/gpu.yaml", "--model.compile=true"],
    "ddp": ["--config=trainer/ddp.yaml"],
    "sharded backbone": ["--config=trainer/fsdp.yaml"],
    "deepspeed stage 2": ["--config=trainer/deepspeed.yaml"],
    "deepspeed stage 2, full fine-tuning": ["--config=trainer/deepspeed.yaml", "--config=adapter/full.yaml"],
}


def run(name: str, directory: Path) -> dict[str, object]:
    """Fit and test once; return the content of `results.json`, or the error."""
    several = not name.startswith("one GPU")
    batch = 64 // torch.cuda.device_count() if several else 64
    options = ["--config=quickstart.yaml", *RUNS[name], f"--data.batch_size={max(batch, 1)}"]
    options += ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", f"--run_dir={directory}"]
    done = subprocess.run(
        [sys.executable, "-m", "replora", "fit", *options], check=False, capture_output=True, text=True
    )
    record: dict[str, object] = {"options": options[1:-1], "exit_status": done.returncode}
    if done.returncode != 0:
        return record | {"error": done.stderr[-2000:]}
    results = read_results(directory)
    kept = ("devices", "precision", "seconds", "peak_memory_bytes", "metrics")
    record |= {key: results["fit"][key] for key in kept}
    record["test/accuracy"] = results["test"]["metrics"]["test/accuracy"]
    record["adapter_bytes"] = (directory / "adapter.safetensors").stat().st_size
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_strategies.json"), help="the JSON file")
    parser.add_argument("--only", choices=RUNS, action="append", help="name of a run; repeatable")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA GPU here. The strategies that a CPU can run are tested in tests/cli.")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    content = {"gpus": gpus, **environment_info(), "runs": {}}
    with tempfile.TemporaryDirectory() as home:
        for number, name in enumerate(arguments.only or RUNS):
            print(f"{name} ...", flush=True)
            content["runs"][name] = run(name, Path(home) / str(number))
            arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    failed = [name for name, record in content["runs"].items() if record["exit_status"] != 0]
    print(f"{len(content['runs']) - len(failed)} of {len(content['runs'])} ran. {arguments.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
