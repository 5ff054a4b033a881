"""Does every strategy and precision run on this machine's GPUs, how fast, and with how much memory?

    python benchmarks/strategies.py

Each run fits the packaged vit_nano to the digits for two epochs, in processes of its own. A run that fails is recorded
with the end of its error output; what one machine cannot run (DeepSpeed is not installed) does not end the others.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import torch

from replora.results import read_results

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
QUICK = "one GPU, float32"
SECONDS = 180  # of one run


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--only", choices=RUNS, action="append", help="name of a run; repeatable")
    options = parser.parse_args(arguments)
    if options.quick:
        options.only = [QUICK]
    elif not torch.cuda.is_available():
        sys.exit("There is no CUDA GPU here. The strategies that a CPU can run are tested in tests/cli.")
    settings = measure.settings(options, "only")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        for number, name in enumerate(options.only or RUNS):
            print(f"{name} ...", flush=True)
            results[name] = run(name, Path(home) / str(number), options.quick)
            device = "cpu" if options.quick else "cuda"
            file = measure.write(options.out, "strategies", settings, results, device)  # after every run
    failed = [name for name, found in results.items() if found["status"] != "ran"]
    print(f"{len(results) - len(failed)} of {len(results)} ran")
    print(file)


def run(name: str, directory: Path, quick: bool) -> dict[str, Any]:
    """Fit and test once; return what `results.json` says of it, or the error."""
    if "deepspeed" in name and importlib.util.find_spec("deepspeed") is None:
        return {"status": "deepspeed is not installed"}
    several = not name.startswith("one GPU") and not quick
    batch = 64 // torch.cuda.device_count() if several else 64
    options = ["--config=quickstart.yaml", *RUNS[name], f"--data.batch_size={max(batch, 1)}"]
    options += ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", f"--run_dir={directory}"]
    if quick:
        options += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
        options += [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    command = [sys.executable, "-m", "replora", "fit", *options]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {SECONDS} seconds"}
    if done.returncode:
        return {"status": f"failed with {done.returncode}", "error": done.stderr[-2000:]}
    results = read_results(directory)
    kept = {key: results["fit"][key] for key in ("devices", "precision", "seconds", "peak_memory_bytes")}
    return {"status": "ran", **kept, "accuracy": results["test"]["metrics"]["test/accuracy"]}


if __name__ == "__main__":
    main()
