"""Learning curves of the final runs, from the history in `results.json`."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

from replora.reports.render.charts import FEW, draw_curves
from replora.reports.render.document import Block, Heading, Picture
from replora.reports.runs import Group, Run, ordered, spread
from replora.reports.statistics import Mean


def learning_curve_section(group: Group, folder: Path, prefix: str) -> list[Block]:
    """Training loss, and validation accuracy if it was measured more than once; empty without a history.

    One panel per size with one line per method. With many methods, one panel per method with one line per size.
    """
    blocks: list[Block] = []
    sizes = sorted({run.size for run in group.final})
    shown = spread(sizes)
    methods = ordered({run.method for run in group.final})
    for measure, label in (("val", "validation"), ("train/loss", "training loss")):
        panels: dict[str, dict[str, dict[float, Mean]]] = {}
        for size, method in itertools.product(shown, methods):
            runs = [run for run in group.final if (run.size, run.method) == (size, method)]
            curve = _mean_curve(runs, f"val/{runs[0].metric}" if measure == "val" else measure) if runs else {}
            if len(curve) > 1:
                of_size = str(size) + ("" if size.shots else " of the data")
                panel, line = (of_size, method) if len(methods) <= FEW else (method, of_size)
                panels.setdefault(panel, {})[line] = curve
        if not panels:
            continue
        file = folder / f"{prefix}course_{measure.replace('/', '_')}.png"
        axis = f"{label} {group.final[0].metric}, %" if measure == "val" else label
        behind = (f"{group.reference}, same size", panels[group.reference]) if group.reference in panels else None
        draw_curves(file, panels, "epoch", axis, logarithmic=False, zoom=measure == "val", behind=behind)
        some = f" {len(shown)} of {len(sizes)} sizes are shown." if len(shown) < len(sizes) else ""
        caption = f"Learning curves: {label} by epoch, mean over the tasks and seeds of the final runs.{some}"
        blocks.append(Picture(file, caption))
    return [Heading(3, "Learning curves"), *blocks] if blocks else []


def _mean_curve(runs: list[Run], name: str) -> dict[float, Mean]:
    """Epoch -> mean over the runs that have a value for it; a run that diverged is in no mean."""
    points: dict[float, list[float]] = {}
    for run in (run for run in runs if not run.diverged):
        for epoch, value in run.results.get("fit", {}).get("history", {}).get(name, []):
            if value is not None:
                points.setdefault(float(epoch), []).append(value)
    return {x: Mean(statistics.fmean(v), None, None, len(v), None) for x, v in sorted(points.items())}
