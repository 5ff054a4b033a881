"""How does the cost of a training step grow with rank, number of targets, batch size and depth?

    python benchmarks/scaling.py                         ViT-S/16 on this machine's CPU; a table, a JSON file, a picture

One of them varies at a time; the others stay at rank 8, targets q and v, batch size 4 and 6 blocks. The plots show time
and peak memory of a step relative to the floor's: 1 means that a method adds no cost to the frozen backbone. A setting
at which the quartiles of a method lie farther apart than a tenth of its median is measured again, at most twice, and
the narrowest attempt counts. A setting that is still that wide is marked in the table and the plot.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import measure
import torch
from contenders import METHODS, TITLES, WORKLOADS, TrainingStep, batch_for, build, contenders

STYLES = {
    "replora": ("#D55E00", "^"),
    "lora": ("#0072B2", "o"),
    "peft_lora": ("#009E73", "s"),
    "naive_replora": ("#CC79A7", "D"),
}
BASE: dict[str, Any] = {"rank": 8, "targets": ("q", "v"), "batch": 4, "depth": 6}
SWEEPS: dict[str, list[Any]] = {
    "rank": [2, 8, 32, 128],
    "targets": [("q",), ("q", "v"), ("q", "k", "v", "out"), ("q", "k", "v", "out", "fc1", "fc2")],
    "batch": [1, 4, 16],
    "depth": [2, 6, 12],
}
LABELS = {"rank": "rank", "targets": "targets in a block", "batch": "images in a batch", "depth": "blocks"}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=10)
    measure.device_options(parser)
    parser.add_argument("--model", default="vit_small", choices=list(WORKLOADS), help="model to adapt")
    parser.add_argument("--vary", nargs="+", default=list(SWEEPS), choices=list(SWEEPS), help="quantities to vary")
    parser.add_argument("--methods", nargs="+", default=list(STYLES), choices=list(METHODS), help="methods to compare")
    options = parser.parse_args(arguments)
    base, sweeps = dict(BASE), SWEEPS
    if options.quick:
        options.model, options.rounds = "tiny", 2
        base |= {"batch": 2, "depth": 2}
        sweeps = {"rank": [2, 4], "targets": [("q",), ("q", "v")], "batch": [1, 2], "depth": [1, 2]}
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {}
    for varied in options.vary:
        results[varied] = [
            {"value": value, "methods": settled(base | {varied: value}, options)} for value in sweeps[varied]
        ]
        measure.show(
            f"Training step of {options.model} over the floor's, by {LABELS[varied]}",
            [varied, *(TITLES[m] for m in options.methods)],
            [
                [
                    _short(point["value"]),
                    *(
                        measure.ratio_text(found) + " *" * measure.uncertain(found)
                        for found in map(point["methods"].get, options.methods)
                    ),
                ]
                for point in results[varied]
            ],
        )
    name = f"scaling-{options.model}-{options.device}-{options.precision}"
    settings = measure.settings(options)
    file = measure.write(options.out, name, {**settings, "base": base}, results, options.device)
    draw(results, options.methods, options.rounds, file.with_suffix(".png"))
    print(file)
    print(file.with_suffix(".png"))


def settled(setting: dict[str, Any], options: Any) -> dict[str, Any]:
    """Measure one setting in up to three attempts and return the narrowest."""

    def widest(results: dict[str, Any]) -> float:
        return max(measure.width(found) for found in results.values())

    attempts = [measured(setting, options)]
    while widest(attempts[-1]) > measure.WIDE and len(attempts) < (1 if options.quick else 3):
        attempts.append(measured(setting, options))
    return min(attempts, key=widest)


def measured(setting: dict[str, Any], options: Any) -> dict[str, Any]:
    """Measure time and peak memory of each method at one setting."""
    workload = WORKLOADS[options.model]
    model = build(workload, setting["depth"], options.device, options.precision)
    batch = batch_for(workload, setting["batch"], options.device, options.precision)
    adapted = contenders(model, workload, ["floor", *options.methods], setting["rank"], setting["targets"])
    steps = {name: TrainingStep(method, *batch, options.precision) for name, method in adapted.items()}
    results = measure.summarize(measure.interleaved(steps, options.rounds, options.device), "floor")
    for name, step in steps.items():
        held = measure.bytes_held(step.tensors())
        results[name]["peak_bytes"] = held + measure.peak_bytes(step, options.device)
    return results


def draw(results: dict[str, Any], methods: list[str], rounds: int, file: Path) -> None:
    """Plot a panel of time and one of memory for each varied quantity."""
    from matplotlib.figure import Figure

    from replora.io import replacing

    figure = Figure(figsize=(4 * len(results), 6.4), layout="constrained")
    panels = figure.subplots(2, len(results), sharey="row", sharex="col", squeeze=False)
    for (time, memory), (varied, points) in zip(panels.T, results.items(), strict=True):
        values = [len(p["value"]) if isinstance(p["value"], tuple) else p["value"] for p in points]
        for method in methods:
            color, marker = STYLES.get(method, ("#000000", "x"))
            found = [p["methods"][method] for p in points]
            time.plot(values, [f["ratio"] for f in found], color=color, marker=marker, label=TITLES[method])
            low, high = zip(*(f["ratio_quartiles"] for f in found), strict=True)
            time.fill_between(values, low, high, color=color, alpha=0.2, linewidth=0)
            wide = [(value, f["ratio"]) for value, f in zip(values, found, strict=True) if measure.uncertain(f)]
            time.plot(*zip(*wide, strict=True) if wide else ([], []), marker + "w", markeredgecolor=color)
            peaks = [p["methods"][method]["peak_bytes"] / p["methods"]["floor"]["peak_bytes"] for p in points]
            memory.plot(values, peaks, color=color, marker=marker)
        for panel in (time, memory):
            panel.axhline(1, color="black", linewidth=0.8)
            if varied != "targets":
                panel.set_xscale("log", base=2)
            panel.set_xticks(values, [str(value) for value in values])
        memory.set_xlabel(LABELS[varied])
    panels[0, 0].set_ylabel("time of a step / floor")
    panels[1, 0].set_ylabel("peak memory / floor")
    columns = min(len(methods), 2 * len(results))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    explanation = (
        f"Time: medians of {rounds} rounds; bands from the first to the third quartile; "
        "hollow markers where these lie farther apart than a tenth of the median"
    )
    figure.suptitle(textwrap.fill(explanation, 45 * len(results)), fontsize="medium")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _short(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
