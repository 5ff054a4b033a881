"""Write the tables of docs/benchmarks.md from the JSON files in results/benchmarks.

    python benchmarks/tables.py

Everything below the marker in that page is generated; a test checks that page and files agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measure import differing_text, uncertain
from measure import ratio_text as ratio

from replora.io import replace_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "results" / "benchmarks"
MARKER = "<!-- Below this line everything is written by `python benchmarks/tables.py`. -->\n"


def main() -> None:
    replace_text(PAGE, rendered(PAGE.read_text(encoding="utf-8"), RESULTS))
    print(PAGE)


def rendered(page: str, results: Path) -> str:
    """Return the page with a section for every results file."""
    text, marker, _ = page.partition(MARKER)
    if not marker:
        raise SystemExit(f"{PAGE} has no line {MARKER.strip()!r}.")
    files = [*sorted(results.glob("*.json")), *sorted((results.parent / "gpu").glob("*.json"))]
    return text + marker + "".join("\n" + section(file) for file in files)


def section(file: Path) -> str:
    """Return heading, environment and tables of one results file."""
    found = json.loads(file.read_text(encoding="utf-8"))
    kind = found["benchmark"].split("-")[0]
    parts = [f"### {found['benchmark']}", environment_info(found, file), *TABLES[kind](found["results"])]
    if (picture := file.with_suffix(".png")).exists():
        parts.append(f"![Curves of the tables above: {picture.stem}]({_link(picture)})")
    return "\n\n".join(parts) + "\n"


def environment_info(found: dict[str, Any], file: Path) -> str:
    """Return command, date, machine and versions."""
    machine, versions = found["machine"], found["versions"]
    device = f"{machine['gpu']} (CUDA {machine['cuda']})" if "gpu" in machine else machine["cpu"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "peft") if versions.get(name))
    command = re.sub(r" --out[ =]\S+", "", found["command"])  # a folder of the measuring machine
    return (
        f"`python benchmarks/{command}` on {found['date'][:10]}; {device}, {machine['threads']} CPU threads; "
        f"Python {versions['python']}, {libraries}. [All figures]({_link(file)})."
    )


def training_step(results: dict[str, Any]) -> list[str]:
    peft = results.get("peft_lora")
    rows = [
        [
            name,
            f"{found['seconds']:.3f}",
            ratio(found),
            f"{found['ratio_to_peft_lora']:.3f}" if peft else "",
            f"{found['peak_bytes'] / 2**20:,.0f}",
            f"{found['peak_bytes'] / peft['peak_bytes']:.3f}" if peft else "",
            f"{found['trained']:,}",
        ]
        for name, found in results.items()
    ]
    head = ["method", "seconds", "time / floor", "time / PEFT LoRA", "peak MiB", "memory / PEFT LoRA", "trained"]
    return [table(head, rows)]


def evaluation(results: dict[str, Any]) -> list[str]:
    rows = [[name, f"{found['seconds']:.3f}", ratio(found)] for name, found in results.items()]
    return [table(["model", "seconds", "time / base"], rows)]


def loading(results: dict[str, Any]) -> list[str]:
    rows = [[name, f"{found['images_per_second']:,.0f}", ratio(found)] for name, found in results.items()]
    return [table(["loader", "images/s", "speed / plain loader"], rows)]


def image_decoding(results: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{1000 * found['seconds']:.2f}", ratio(found), differing_text(found)] for name, found in results.items()
    ]
    return [table(["way", "ms per image", "time / Pillow", "color values that differ"], rows)]


def video_decoding(results: dict[str, Any]) -> list[str]:
    memory = any(found.get("peak_bytes") for found in results.values())  # measured only on Linux
    rows = [
        [
            *(name, f"{found['clips_per_second']:,.1f}", ratio(found)),
            *([f"{(found['peak_bytes'] or 0) / 1e6:,.0f}"] if memory else []),
        ]
        for name, found in results.items()
    ]
    return [table(["loader", "clips/s", "speed / no loader processes", *(["memory, MB"] if memory else [])], rows)]


def startup(results: dict[str, Any]) -> list[str]:
    rows = [[f"`{name}`", f"{found['seconds']:.2f}", ratio(found)] for name, found in results.items()]
    return [table(["command", "seconds", "time / import torch"], rows)]


def compilation(results: dict[str, Any]) -> list[str]:
    rows = [
        [batch, *(f"{found[batch]['seconds']:.2f} ({found[batch]['graphs']})" for found in results.values())]
        for batch in next(iter(results.values()))
    ]
    return [
        "Processor seconds of each batch, and in parentheses the graphs compiled so far.",
        table(["batch", *results], rows),
    ]


def record_memory(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{name} ({found['commit']})",
            f"{found['records']:,}",
            f"{found['grown'] / 1e6:,.1f}",
            f"{found['grown'] / found['records']:,.0f}",
            f"{found['training_process'] / 1e6:,.0f}",
        ]
        for name, found in results.items()
    ]
    head = ["records (commit)", "number", "growth of each loader process, MB", "bytes per record"]
    return [table([*head, "training process, MB"], rows)]


def memory(results: dict[str, Any]) -> list[str]:
    return [part for title, head, rows in memory_tables(results) for part in (f"{title}:", table(head, rows))]


def memory_tables(results: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, head and rows of each table, in MiB."""
    tables = []
    if weights := results.get("weights"):
        targets = list(weights["fp32"]["copy_bytes"])
        rows = [
            [kind, *_sizes(found, "frozen"), *(mebibytes(found.get("copy_bytes", {}).get(t, 0)) for t in targets)]
            for kind, found in weights.items()
        ]
        title = "Frozen weights of a Llama of 7 billion parameters, and the copy of a merged evaluation, MiB"
        tables.append((title, ["weights", "frozen", *(f"copy, {t}" for t in targets)], rows))
    if adapters := results.get("adapters"):
        rows = [
            [
                f"{found['targets']}; {found['rank']}; {found['method']}",
                *_sizes(found, "trained", "gradient", "optimizer", "kept", "file"),
                *map(mebibytes, found["peak_bytes"].values()),
            ]
            for found in adapters
        ]
        title = "What an adapter of it adds, and the peak of a training step of one text, MiB"
        head = ["targets; rank; method", "trained", "gradients", "AdamW", "kept of the last pass", "file"]
        tables.append((title, [*head, *(f"peak, {kind}" for kind in adapters[0]["peak_bytes"])], rows))
    if steps := results.get("steps"):
        rows = [
            [f"{model}: {method}", *_sizes(found, "held", "kept", "peak")]
            for model, methods in steps.items()
            for method, found in methods.items()
        ]
        head = ["model: method", "held between steps", "kept of the last pass", "peak"]
        tables.append(("Training steps on this machine, MiB", head, rows))
    if evaluation := results.get("evaluation"):
        rows = [
            [f"{model}: {way}", *_sizes(found, "held", "copy", "peak"), "equal" if found["restored"] else "changed"]
            for model, ways in evaluation.items()
            for way, found in ways.items()
        ]
        head = ["model: method", "held", "copy", "peak", "frozen weights afterwards"]
        tables.append(("Evaluation of one batch on this machine, MiB", head, rows))
    if loaders := results.get("loaders"):
        rows = [
            [
                f"`{found['options']}`",
                *_sizes(found, "cache"),
                *(mebibytes(max(found[f"{part}_bytes"], default=0)) for part in ("loader", "grown")),
                mebibytes(found["training_process"]),
                mebibytes(found["together"]),
            ]
            for found in loaders
        ]
        title = "Own memory of loader processes after two epochs (`benchmarks/loader_processes.py`), MiB"
        head = ["options", "images in memory", "each loader process", "its growth", "training process", "together"]
        tables.append((title, head, rows))
    return tables


def _sizes(found: dict[str, Any], *parts: str) -> list[str]:
    return [mebibytes(found[f"{part}_bytes"]) for part in parts]


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def scaling(results: dict[str, Any]) -> list[str]:
    tables = []
    for varied, points in results.items():
        methods = [name for name in points[0]["methods"] if name != "floor"]
        rows = [
            [
                ", ".join(point["value"]) if isinstance(point["value"], list) else str(point["value"]),
                *(ratio(found) + " *" * uncertain(found) for method in methods for found in [point["methods"][method]]),
            ]
            for point in points
        ]
        tables.append(table([varied, *(f"{method} / floor" for method in methods)], rows))
    if any(" *" in text for text in tables):
        tables.append("\\* The quartiles lie farther apart than a tenth of the ratio: something else used the machine.")
    return tables


def step_profile(results: dict[str, Any]) -> list[str]:
    kinds = list(next(iter(results.values()))["seconds"])
    rows = [
        [name, *(f"{1000 * found['seconds'][kind]:,.1f}" for kind in kinds), f"{found['operators']:,}"]
        for name, found in results.items()
    ]
    return [table(["method", *(f"{kind}, ms" for kind in kinds), "operators"], rows)]


def sweep_throughput(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            name,
            f"{found['seconds']:,.1f}",
            f"{found['trial_seconds']:,.1f}",
            f"{found['busy']:.1%}",
            f"{found['useful_seconds']:,.1f}",
            f"{found['share']:.1%}",
            f"{found['start_up']:.2f}",
            f"{found['plain_start_up']:.2f}",
        ]
        for name, found in results.items()
    ]
    head = ["queue", "wall time, s", "sum of trials, s", "busy workers", "of these fits and tests, s", "useful share"]
    return [table([*head, "start-up of a trial, s", "start-up of a plain fit, s"], rows)]


def inference(results: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{found['per_second']:,.1f}", f"{found['plain_per_second']:,.1f}", ratio(found)]
        for name, found in results.items()
    ]
    return [table(["task", "per second", "plain loop, per second", "speed / plain loop"], rows)]


def device_sync(results: dict[str, Any]) -> list[str]:
    rows = [
        [name, str(found["steps"]), f"{found['count'] / found['steps']:.2f}", ", ".join(found["where"])]
        for name, found in results.items()
    ]
    return [table(["run", "steps", "synchronizations per step", "where"], rows)]


def strategies(results: dict[str, Any]) -> list[str]:
    rows = []
    for name, found in results.items():
        measured = ["", "", ""]
        if "seconds" in found:
            peak = (found["peak_memory_bytes"] or {}).get("cuda", 0)
            measured = [f"{found['seconds']:.1f}", f"{peak / 2**20:,.0f}", f"{found['accuracy']:.1%}"]
        rows.append([name, found["status"], *measured])
    return [table(["run", "status", "seconds of the fit", "peak MiB", "test accuracy"], rows)]


def whole_run(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            way,
            f"{found['seconds']:.1f}",
            ratio(found),
            f"{found['cpu_seconds']:.1f}",
            f"{found['cpu_ratio']:.3f}",
            f"{found['accuracy']:.1%}",
        ]
        for way, found in results.items()
    ]
    head = ["run", "seconds", "time / plain loop", "processor seconds", "processor time / plain loop", "test accuracy"]
    return [table(head, rows)]


TABLES = {
    "device_sync": device_sync,
    "inference": inference,
    "strategies": strategies,
    "whole_run": whole_run,
    "training_step": training_step,
    "evaluation": evaluation,
    "loading": loading,
    "image_decoding": image_decoding,
    "video_decoding": video_decoding,
    "startup": startup,
    "memory": memory,
    "record_memory": record_memory,
    "compilation": compilation,
    "scaling": scaling,
    "step_profile": step_profile,
    "sweep_throughput": sweep_throughput,
}


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Format a table in Markdown, with numbers aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _link(file: Path) -> str:
    return f"../{file.relative_to(ROOT).as_posix()}" if file.is_relative_to(ROOT) else file.as_posix()


if __name__ == "__main__":
    main()
