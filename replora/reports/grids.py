"""The first stage: validation accuracy over the grid of learning rates and weight decays, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from replora.reports.charts import draw_curves, draw_heat_maps
from replora.reports.document import Block, Heading, Paragraph, Picture, Table
from replora.reports.gather import Group, Run, Size, ordered, ordered_tasks
from replora.reports.statistics import Mean, mean_over_seeds


def grid_section(group: Group, folder: Path, prefix: str) -> list[Block]:
    """Curves over the learning rate, heat maps and the table of choices; empty without a first stage."""
    runs = [run for run in group.selection if run.rate is not None]
    if len({run.rate for run in runs}) < 2:
        return []
    metric = next(run.metric for run in runs)
    sizes = sorted({run.size for run in runs})
    methods = ordered({run.method for run in runs})
    panels, marked = {}, {}
    for size in sizes:
        title = str(size) + (" of the data" if not size.shots else "")
        panels[title] = {method: _over_rates(_of(runs, method, size)) for method in methods}
        for method, curve in panels[title].items():
            if curve:
                marked[title, method] = max(sorted(curve), key=lambda rate, c=curve: c[rate].value)  # type: ignore[misc]
    rates_file = folder / f"{prefix}learning_rate.png"
    draw_curves(rates_file, panels, "learning rate (peak)", f"validation {metric.replace('_', ' ')}, %", marked=marked)
    tasks = len({run.task for run in runs})
    over = f"mean over {tasks} tasks" if tasks > 1 else f"task {runs[0].task}"
    blocks: list[Block] = [
        Heading(3, "Learning rates"),
        Paragraph(
            "Chosen on validation images alone. Methods are compared at their own best rates, from grids with equal "
            "numbers of points; at one shared rate any of them can be made to look better. A choice at the edge of its "
            "grid may have a better one beyond."
        ),
        Picture(
            rates_file,
            f"Validation accuracy against the learning rate ({over}; at the best weight decay of each rate). "
            "A ring marks the best rate.",
        ),
        *_heat_maps(runs, methods, sizes, folder, prefix),
        _choices(runs, methods, sizes, f"{prefix}choices"),
    ]
    return blocks


def _of(runs: Iterable[Run], method: str, size: Size) -> list[Run]:
    return [run for run in runs if run.method == method and run.size == size]


def _over_rates(runs: Sequence[Run]) -> dict[float, Mean]:
    """Learning rate -> validation accuracy at its best weight decay, over tasks and seeds; without diverged rates."""
    curve: dict[float, Mean] = {}
    for rate in sorted({run.rate for run in runs if run.rate is not None}):
        decays = {run.decay for run in runs if run.rate == rate}
        found = [_mean([run for run in runs if (run.rate, run.decay) == (rate, decay)]) for decay in decays]
        known = [mean for mean in found if mean is not None]
        if known:
            curve[rate] = max(known, key=lambda mean: mean.value)
    return curve


def _mean(runs: Sequence[Run]) -> Mean | None:
    """None where a run diverged."""
    values = [run.validation for run in runs]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean = mean_over_seeds(known)
    # Several tasks are no repetitions of one measurement: no interval.
    return mean if len({run.task for run in runs}) == 1 else Mean(mean.value, None, None, mean.count, None)


def _heat_maps(
    runs: Sequence[Run], methods: Sequence[str], sizes: Sequence[Size], folder: Path, prefix: str
) -> list[Block]:
    """Learning rate by weight decay for each size where decays vary, else learning rate by size."""
    blocks: list[Block] = []
    if len({run.decay for run in runs if run.decay is not None}) > 1:
        for size in sizes:
            cells = {
                method: {
                    (f"{decay:g}", f"{rate:g}"): _value([r for r in there if (r.decay, r.rate) == (decay, rate)])
                    for there in [_of(runs, method, size)]
                    for decay in {r.decay for r in there if r.decay is not None}
                    for rate in {r.rate for r in there if r.rate is not None}
                }
                for method in methods
            }
            file = folder / f"{prefix}grid_{'shots' if size.shots else 'part'}_{size.amount:g}.png"
            draw_heat_maps(file, cells, "weight decay", "learning rate", "validation accuracy, %")
            blocks.append(Picture(file, f"Validation accuracy over the grid, {size} of the data; X diverged."))
        return blocks
    by_rate = {
        method: {
            (str(size), f"{rate:g}"): _value([run for run in _of(runs, method, size) if run.rate == rate])
            for size in sizes
            for rate in sorted({r.rate for r in _of(runs, method, size) if r.rate is not None})
        }
        for method in methods
    }
    if len(sizes) == 1:
        return []  # the curves say it all
    file = folder / f"{prefix}grid.png"
    draw_heat_maps(file, by_rate, "training data", "learning rate", "validation accuracy, %")
    return [Picture(file, "Validation accuracy over learning rate and amount of training data; X diverged.")]


def _value(runs: Sequence[Run]) -> float | None:
    mean = _mean(runs)
    return mean.value if mean else None


def _choices(runs: Sequence[Run], methods: Sequence[str], sizes: Sequence[Size], name: str) -> Table:
    """The best point of each method, task and size, as a sweep chooses it; of equal ones that of the lowest rate."""
    tasks = ordered_tasks({run.task for run in runs})
    rows = []
    for task in tasks:
        for size in sizes:
            for method in methods:
                there = [run for run in _of(runs, method, size) if run.task == task]
                points = list(dict.fromkeys((run.rate, run.decay) for run in there if run.rate is not None))
                values = {p: _value([run for run in there if (run.rate, run.decay) == p]) for p in points}
                usable = {point: value for point, value in values.items() if value is not None}
                if not usable:
                    rows.append([task, str(size), method, "", "", "", f"{len(points)}"])
                    continue
                rate, decay = best = max(sorted(usable, key=_ascending), key=lambda point: usable[point])
                rates = sorted({point[0] for point in points if point[0] is not None})
                edge = "lowest" if rate == rates[0] else "highest" if rate == rates[-1] else ""
                edge = edge if len(rates) > 1 else ""
                shown = [f"{rate:g}", "" if decay is None else f"{decay:g}", f"{100 * usable[best]:.1f}"]
                rows.append([task, str(size), method, *shown[:1], edge, shown[1], shown[2], f"{len(points)}"])
    rows = [row if len(row) == 8 else [*row[:3], "", "", "", "", row[-1]] for row in rows]
    columns = ["task", "size", "method", "learning rate", "edge", "weight decay", "validation, %", "points tried"]
    return Table(name, "The best point of each grid on the validation images", columns, rows)


def _ascending(point: tuple[float, float | None]) -> tuple[float, float]:
    rate, decay = point
    return rate, -1.0 if decay is None else decay
