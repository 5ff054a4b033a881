"""The first stage: validation scores over the grid of learning rates and weight decays, and the selected points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from replora.reports.render.charts import FEW, draw_curves, draw_heat_maps
from replora.reports.render.document import Block, Heading, Paragraph, Picture, Table
from replora.reports.runs import HEADLINES, Group, Run, Size, ordered, spread
from replora.reports.selected import Selected, find_selected
from replora.reports.statistics import Mean, mean_over_seeds
from replora.reports.tasks import ordered_tasks

TUNED_ACTIVATION = "tanh"  # with a width of twice the rank, the default that the ablation selected
TUNED_ON = {  # data set -> tasks whose validation images selected it
    "Digits": {"digits"},
    "SmallImages": {"digits", "fashion_mnist", "sprites_location", "sprites_orientation"},
}
FRACTIONS = {f"val/{name}" for name in HEADLINES}  # metrics in [0, 1]


def learning_rate_section(group: Group, folder: Path, prefix: str) -> list[Block]:
    """Curves over the learning rate, heat maps, and the table of selected points; empty without a first stage."""
    runs = [run for run in group.selection if run.rate is not None]
    if len({run.rate for run in runs}) < 2:
        return []
    metric = f"validation {next(run.metric for run in runs)}, %"
    sizes = sorted({run.size for run in runs})
    methods = ordered({run.method for run in runs})
    tasks = ordered_tasks({run.task for run in runs})
    found = selections(group)
    # Each task has its own selected point; a mean over several tasks has none.
    ringed = {
        (method, size): choice for (method, _, size), choice in found.items() if choice is not None and len(tasks) == 1
    }
    ring = "A ring marks the selection." if len(tasks) == 1 else "Each task has its own selections: the table has them."
    over = f"Mean over {len(tasks)} tasks" if len(tasks) > 1 else f"Task {tasks[0]}"
    blocks: list[Block] = [
        Heading(3, "Learning rates"),
        Paragraph(
            "Selected on validation examples alone. Methods are compared at their own selected rates, from grids with "
            "equal numbers of points; at one shared rate any of them can be made to look better. A selection at the "
            f"edge of its grid may have a better one beyond.{tuned_alone(group)}"
        ),
        _curves(
            runs,
            methods,
            sizes,
            ringed,
            group.reference,
            folder / f"{prefix}learning_rate.png",
            metric,
            f"{over}, at the best weight decay of each rate. {ring} Arrows: less than half of the panel's best, the "
            "value beside them.",
        ),
        *_heat_maps(runs, methods, sizes, ringed, folder, prefix, metric),
        _choices(runs, found, f"{prefix}choices"),
    ]
    return blocks


def selections(group: Group) -> dict[tuple[str, str, Size], Selected | None]:
    """The selected point of each method, task and size; as final runs record it for a task without a first stage."""
    own = {run.task for run in group.selection}
    recorded = [run for run in group.final if run.task not in own and run.chosen_by.get("means")]
    runs = [run for run in (*group.selection, *recorded) if run.rate is not None]
    return {
        (method, task, size): find_selected(group, method, task, size)
        for task in ordered_tasks({run.task for run in runs})
        for size in sorted({run.size for run in runs})
        for method in ordered({run.method for run in runs})
    }


def tuned_alone(group: Group) -> str:
    """A sentence on tuning that RepLoRA alone had, if a run has its tuned defaults."""
    options = [run.results.get("options", {}) for run in group.runs]
    tuned = any(
        o.get("factors") == "mlp"
        and o.get("activation") == TUNED_ACTIVATION
        and o.get("hidden") == 2 * o.get("rank", 0)
        for o in options
    )
    if not tuned:
        return ""
    tasks = {run.task for run in group.runs}
    same = tasks & TUNED_ON.get(str(group.conditions.get("dataset")), set())
    if same == tasks:
        images = "these validation images"
    elif same:
        images = f"validation images of {len(same)} of these tasks, {', '.join(ordered_tasks(same))}"
    else:
        images = f"validation images of other data ({', '.join(TUNED_ON)})"
    return (
        f" RepLoRA alone was tuned further: its default width and activation were selected on {images} "
        "(sweep/ablation.yaml, sweep/transfer_low_data.yaml), which equal grids do not make up for."
    )


def _curves(
    runs: Sequence[Run],
    methods: Sequence[str],
    sizes: Sequence[Size],
    ringed: Mapping[tuple[str, Size], Selected],
    reference: str,
    file: Path,
    label: str,
    note: str,
) -> Picture:
    """One panel per size with a line per method; with many methods, one per method, the reference in gray behind."""
    names = {size: str(size) + (" of the data" if not size.shots else "") for size in sizes}
    if len(methods) <= FEW:
        panels = {names[size]: {method: _over_rates(_of(runs, method, size)) for method in methods} for size in sizes}
        rings = {(names[size], method): choice.rate for (method, size), choice in ringed.items()}
        draw_curves(file, panels, "learning rate (peak)", label, marked=rings, clip=True)
        return Picture(file, "Validation score against the learning rate", note)
    shown = spread(sizes)
    panels = {method: {names[size]: _over_rates(_of(runs, method, size)) for size in shown} for method in methods}
    rings = {(method, names[size]): choice.rate for (method, size), choice in ringed.items()}
    behind = (f"{reference}, same size", panels[reference]) if reference in panels else None
    draw_curves(file, panels, "learning rate (peak)", label, marked=rings, clip=True, behind=behind)
    some = f", {len(shown)} of {len(sizes)} sizes" if len(shown) < len(sizes) else ""
    gray = f", {reference}'s curves in gray" if behind else ""
    return Picture(file, f"Validation score against the learning rate, one panel per method{some}{gray}", note)


def _of(runs: Iterable[Run], method: str, size: Size) -> list[Run]:
    return [run for run in runs if run.method == method and run.size == size]


def _over_rates(runs: Sequence[Run]) -> dict[float, Mean]:
    """Learning rate -> mean validation score at its best weight decay. Learning rates that diverged are left out."""
    curve: dict[float, Mean] = {}
    for rate in sorted({run.rate for run in runs if run.rate is not None}):
        decays = {run.decay for run in runs if run.rate == rate}
        found = [_mean([run for run in runs if (run.rate, run.decay) == (rate, decay)]) for decay in decays]
        known = [mean for mean in found if mean is not None]
        if known:
            curve[rate] = max(known, key=lambda mean: mean.value)
    return curve


def _mean(runs: Sequence[Run]) -> Mean | None:
    """Mean validation score over tasks and seeds; None if a run diverged."""
    values = [run.validation for run in runs]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean = mean_over_seeds(known)
    # Scores on several tasks are not repeated measurements, so they have no interval.
    return mean if len({run.task for run in runs}) == 1 else Mean(mean.value, None, None, mean.count, None)


def _heat_maps(
    runs: Sequence[Run],
    methods: Sequence[str],
    sizes: Sequence[Size],
    ringed: Mapping[tuple[str, Size], Selected],
    folder: Path,
    prefix: str,
    label: str,
) -> list[Block]:
    """Learning rate by weight decay for each size if weight decays vary, otherwise learning rate by size."""
    blocks: list[Block] = []
    frame = "; a frame marks the selection" if ringed else ""
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
            framed = {
                m: {(f"{c.decay:g}", f"{c.rate:g}")}
                for (m, s), c in ringed.items()
                if s == size and c.decay is not None
            }
            file = folder / f"{prefix}grid_{'shots' if size.shots else 'part'}_{size.amount:g}.png"
            draw_heat_maps(file, cells, "weight decay", "learning rate", label, framed)
            blocks.append(Picture(file, f"Validation score over the grid, {size} of the data; X diverged{frame}"))
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
        return []  # the curves show the same
    framed = {m: {(str(s), f"{c.rate:g}") for (other, s), c in ringed.items() if other == m} for m in methods}
    file = folder / f"{prefix}grid.png"
    draw_heat_maps(file, by_rate, "training data", "learning rate", label, framed)
    caption = f"Validation score over learning rate and amount of training data; X diverged{frame}"
    return [Picture(file, caption)]


def _value(runs: Sequence[Run]) -> float | None:
    mean = _mean(runs)
    return mean.value if mean else None


def _choices(runs: Sequence[Run], found: Mapping[tuple[str, str, Size], Selected | None], name: str) -> Table:
    """The selected point of each method, task and size, and whether its learning rate is at an edge of the grid."""
    rows = []
    for (method, task, size), choice in found.items():
        row = [task, str(size), method]
        if choice is None:
            points = {(run.rate, run.decay) for run in _of(runs, method, size) if run.task == task}
            rows.append([*row, "", "", "", "", "", str(len(points))])
            continue
        value = f"{100 * choice.value:.1f}" if choice.metric in FRACTIONS else f"{choice.value:.4g} ({choice.metric})"
        decay = "" if choice.decay is None else f"{choice.decay:g}"
        noise = f"tie of {choice.tied + 1}" if choice.tied else "noise" if choice.noise else ""
        apart = "" if choice.elsewhere is None else "other tasks"
        remark = ", ".join(filter(None, [noise, choice.edge, "all sizes" if choice.shared else "", apart]))
        seeds = "" if choice.seeds is None else str(choice.seeds)
        rows.append([*row, f"{choice.rate:g}", remark, decay, value, seeds, str(choice.points)])
    metrics = sorted({choice.metric for choice in found.values() if choice})
    recorded = {choice.recorded for choice in found.values() if choice}
    source = {
        frozenset([True]): "as the final runs record it",
        frozenset([False]): "as the best of the points with all seeds, because no final run records one",
    }.get(
        frozenset(recorded), "as the final runs record it; where there are none, the best of the points with all seeds"
    )
    caption = f"The selected point of each grid by {' or '.join(metrics) or 'validation'}"
    note = (
        "Remarks: tie, other points are equally good (where they are, sweeps select the one nearest the middle of the "
        "grid; formerly they selected the lowest rate); noise, the next best point lies within one standard error (of "
        "the paired difference over the seeds, or of the accuracy on the validation examples if there is one seed); "
        "lowest or highest, the rate is at an edge of its grid; all sizes, they share the selection. Seeds are those "
        "of the first stage. "
        f"Selections are shown {source}."
    )
    if any(choice and choice.elsewhere is not None for choice in found.values()):
        note += (
            " Other tasks: the point with the best mean over all tasks but this one, which is that of the least mean "
            "regret; the validation score is that mean, and noise is that of the paired difference over those tasks."
        )
    columns = ["task", "size", "method", "learning rate", "remark", "weight decay", "validation, %", "seeds"]
    return Table(name, caption, [*columns, "points tried"], rows, note)
