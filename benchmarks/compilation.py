"""How long does `--model.compile true` compile, and how often?

    python benchmarks/compilation.py

The batches of a short fit of configs/video_demo.yaml with swin3d_nano: a validation whose last batch is smaller, a
training step, and a test. `static` compiles the model as torch.compile does by default, which takes the size of the
batch for constant until another one comes; `fit` is what the module does. `seconds` are those of the processor in this
process and those that it starts, so other work on the machine matters little; the first batch of each kind includes its
compilation. The cache of compiled kernels is empty.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import torch

BATCHES = (
    ("validation, 32", False, 32),
    ("validation, 4", False, 4),
    ("training, 16", True, 16),
    ("training, 16, again", True, 16),
    ("test, 32", False, 32),
    ("test, 12", False, 12),
)


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--one", choices=["eager", "static", "fit"], help="measure this one, in this process")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.one:
        measured(options.one, "eager" if options.quick else options.backend, options.out)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("eager", "static", "fit"):
            out = Path(folder) / name
            command = [sys.executable, __file__, "--one", name, "--out", str(out), "--threads", str(options.threads)]
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(out / "cache")}
            more = ["--quick"] if options.quick else ["--backend", options.backend]
            subprocess.run([*command, *more], check=True, env=environment)
            results[name] = json.loads((out / "compilation.json").read_text())["results"]
    measure.show(
        "swin3d_nano, 8 frames of 32 x 32: processor seconds of each batch (graphs compiled so far)",
        ["batch", *results],
        [
            [name, *(f"{found[name]['seconds']:.1f} ({found[name]['graphs']})" for found in results.values())]
            for name, _, _ in BATCHES
        ],
    )
    print(measure.write(options.out, "compilation", measure.settings(options, "one"), results))


def measured(name: str, backend: str, out: Path) -> None:
    """Write the seconds of each batch and the number of graphs."""
    from lightning_modules import VideoClassification
    from replora import RepLoRAConfig

    torch.manual_seed(0)
    module = VideoClassification(4, "swin3d_nano", False, adapter=RepLoRAConfig(rank=8, targets=("q", "v")))
    graphs = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    if name != "eager":
        module.model.compile(backend=counting)
        module.compiled = name == "fit"
    results = {}
    for title, training, size in BATCHES:
        module.train(training)
        clips = torch.randn(size, 3, 8, 32, 32)
        before, started = _processor_seconds(), time.perf_counter()
        if training:
            module(clips).sum().backward()
        else:
            with torch.inference_mode():
                module(clips)
        results[title] = {
            "seconds": _processor_seconds() - before,
            "elapsed": time.perf_counter() - started,
            "graphs": graphs,
        }
    measure.write(out, "compilation", {}, results)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
