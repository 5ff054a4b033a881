"""Where does the time of a training step go, compared with the floor and PEFT's LoRA?

    python benchmarks/step_profile.py                            ViT-B/16, batch 16, this machine's CPU
    python benchmarks/step_profile.py --device cuda --precision bf16 --batch 64

PyTorch's profiler gives each operator's own time, without that of what it calls. It slows small operators down, so its
shares show where time goes; `training_step.py` measures how long a step takes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from statistics import median
from typing import Any

import measure
import torch
from contenders import METHODS, WORKLOADS, TrainingStep, batch_for, build, contenders
from torch.profiler import ProfilerActivity, profile

# Kind of work -> substrings of its operators' names; the first match counts.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn_linear", "convolution"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "normalisation and activation": ("layer_norm", "gelu", "silu", "softmax"),
    "optimiser": ("adam", "foreach"),
    "elementwise and copies": ("add", "mul", "sub", "div", "sqrt", "lerp", "copy", "fill", "zero", "cat", "sum"),
}
OTHER = "other"


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=15)
    measure.device_options(parser)
    parser.add_argument("--model", default="vit_base", choices=list(WORKLOADS), help="model to adapt")
    chosen = ["floor", "replora", "lora", "peft_lora"]
    parser.add_argument("--methods", nargs="+", default=chosen, choices=list(METHODS), help="methods to compare")
    parser.add_argument("--batch", type=int, default=16, help="images or texts per step")
    parser.add_argument("--rank", type=int, default=8, help="rank of every low-rank method")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.batch, options.rounds = "tiny", 2, 2
    torch.set_num_threads(options.threads)
    workload = WORKLOADS[options.model]
    model = build(workload, None, options.device, options.precision)
    inputs, labels = batch_for(workload, options.batch, options.device, options.precision)
    steps = {
        name: TrainingStep(adapted, inputs, labels, options.precision)
        for name, adapted in contenders(model, workload, options.methods, options.rank).items()
    }
    results = {name: median_of(rounds) for name, rounds in profiled(steps, options.rounds, options.device).items()}
    columns = ["method", *(f"{kind}, ms" for kind in (*KINDS, OTHER)), "operators"]
    rows = [
        [name, *(f"{1000 * s:.1f}" for s in found["seconds"].values()), str(found["operators"])]
        for name, found in results.items()
    ]
    measure.show(f"Operators' own time in a step of {options.model}, batch {options.batch}", columns, rows)
    settings = measure.settings(options, "methods")
    file_name = f"step_profile-{options.model}-batch{options.batch}-{options.device}-{options.precision}"
    print(measure.write(options.out, file_name, settings, results, options.device))


def profiled(steps: dict[str, TrainingStep], rounds: int, device: str) -> dict[str, list[dict[str, Any]]]:
    """Measure the time of each step by kind of work, in interleaved rounds after one warm-up round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in steps}
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    order = list(steps)
    shuffle = random.Random(0).shuffle
    for number in range(-1, rounds):
        shuffle(order)
        for name in order:
            with profile(activities=activities) as recorded:
                steps[name]()
                measure.wait_for(device)
            if number >= 0:
                found[name].append(by_kind(recorded, device))
    return found


def by_kind(recorded: profile, device: str) -> dict[str, Any]:
    """Return the seconds by kind of work and the number of operators."""
    seconds: dict[str, float] = dict.fromkeys((*KINDS, OTHER), 0.0)
    operators = 0
    for event in recorded.key_averages():
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        seconds[kind_of(event.key)] += own / 1e6
        operators += event.count if event.key.startswith("aten::") else 0
    return {"seconds": seconds, "operators": operators}


def kind_of(operator: str) -> str:
    """Return the kind of work of an operator."""
    name = operator.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def median_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the rounds."""
    collected: dict[str, list[float]] = defaultdict(list)
    for found in rounds:
        for kind, seconds in found["seconds"].items():
            collected[kind].append(seconds)
    seconds = {kind: median(values) for kind, values in collected.items()}
    return {"seconds": seconds, "operators": int(median(found["operators"] for found in rounds)), "rounds": len(rounds)}


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
