"""Learning curves of the final runs, from the course that `results.json` keeps."""

from __future__ import annotations

import statistics
from pathlib import Path

from replora.reports.charts import draw_curves
from replora.reports.document import Block, Heading, Picture
from replora.reports.gather import Group, Run, ordered, spread
from replora.reports.statistics import Mean


def course_section(group: Group, folder: Path, prefix: str) -> list[Block]:
    """Training loss, and validation accuracy where it was measured more than once; empty without a course."""
    blocks: list[Block] = []
    for measure, label in (("val", "validation"), ("train/loss", "training loss")):
        panels = {}
        sizes = sorted({run.size for run in group.final})
        for size in spread(sizes):
            runs = [run for run in group.final if run.size == size]
            name = f"val/{runs[0].metric}" if measure == "val" else measure
            curves = {m: _mean_course([r for r in runs if r.method == m], name) for m in _methods(runs)}
            curves = {method: curve for method, curve in curves.items() if len(curve) > 1}
            if curves:
                panels[str(size) + ("" if size.shots else " of the data")] = curves
        if not panels:
            continue
        file = folder / f"{prefix}course_{measure.replace('/', '_')}.png"
        shown = f"{label} {group.final[0].metric}, %" if measure == "val" else label
        draw_curves(file, panels, "epoch", shown, logarithmic=False, zoom=measure == "val")
        some = f" {len(spread(sizes))} of {len(sizes)} sizes are shown." if len(spread(sizes)) < len(sizes) else ""
        caption = f"Learning curves: {label} by epoch, mean over the tasks and seeds of the final runs.{some}"
        blocks.append(Picture(file, caption))
    return [Heading(3, "Learning curves"), *blocks] if blocks else []


def _methods(runs: list[Run]) -> list[str]:
    return ordered({run.method for run in runs})


def _mean_course(runs: list[Run], name: str) -> dict[float, Mean]:
    """Epoch -> mean of the runs that have a value there."""
    points: dict[float, list[float]] = {}
    for run in runs:
        for epoch, value in run.results.get("fit", {}).get("history", {}).get(name, []):
            if value is not None:
                points.setdefault(float(epoch), []).append(value)
    return {x: Mean(statistics.fmean(v), None, None, len(v), None) for x, v in sorted(points.items())}
