"""Accuracy against the amount of training data: tables, curves, data needed, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from replora.reports.render.charts import FEW, draw_curves, draw_dots
from replora.reports.render.document import Block, Heading, Picture, Table
from replora.reports.runs import REFERENCE, Group, spread
from replora.reports.scores import Scores
from replora.reports.sections.comparisons import FIRST, paired_section
from replora.reports.sections.provenance import origins
from replora.reports.statistics import data_needed, data_needed_interval, half_widths, in_percent


def low_data_section(group: Group, prefix: str) -> list[Block]:
    """The section of a group; empty without a test."""
    blocks: list[Block] = []
    for shots in (False, True):
        scores = Scores(group, shots)
        if scores.by_cell and scores.tasks:
            blocks += _section(scores, f"{prefix}{'shots' if shots else 'size'}")
    return blocks


def low_data_figure(group: Group, folder: Path, prefix: str) -> list[Block]:
    """The figure of a group's test scores; empty without a test."""
    return [
        _figure(scores, folder / f"{prefix}{'shots' if shots else 'size'}.png")
        for shots in (False, True)
        if (scores := Scores(group, shots)).by_cell and scores.tasks
    ]


def _section(scores: Scores, name: str) -> list[Block]:
    metric = scores.runs[0].metric
    several = len(scores.sizes) > 1
    title = "Scores" if metric == "score" else "Accuracy"
    blocks: list[Block] = [Heading(3, f"{title} by amount of training data" if several else title)]
    blocks.append(_accuracies(scores, scores.panels[:1], name, metric))
    if scores.panels[1:]:
        blocks.append(_accuracies(scores, scores.panels[1:], f"{name}_tasks", metric))
    blocks += _intervals(scores, name)
    if several:
        blocks += _data_needed(scores, name)
    return [*blocks, *paired_section(scores, name)]


def _figure(scores: Scores, file: Path) -> Picture:
    metric, seeds, several = scores.runs[0].metric, len(scores.seeds), len(scores.sizes) > 1
    repeated = f"mean over {seeds} seeds and its 95 % interval (Student's t)" if seeds > 1 else "one seed"
    caption = f"Test {metric}: {repeated}."
    if several and len(scores.methods) <= FEW:
        panels = {task: {m: scores.curve(m, task) for m in scores.methods} for task in scores.panels}
        panels = {task: {m: curve for m, curve in curves.items() if curve} for task, curves in panels.items()}
        label = scores.axis.replace(" (+", "\n(+") if len(panels) > 1 else scores.axis  # panels are narrow
        draw_curves(file, panels, label, f"test {metric}, %")
    else:  # lines of many methods would cover each other
        shown = spread(scores.sizes)
        means = {
            f"{scores.panels[0]}, {scores.name(size)}": {
                m: scores.mean(m, size, scores.panels[0]) for m in scores.methods
            }
            for size in shown
        }
        dots = {title: {m: mean for m, mean in of.items() if mean is not None} for title, of in means.items()}
        draw_dots(file, dots, f"test {metric}, %", scores.reference)
        caption += f" The gray line is {scores.reference}'s mean." if scores.reference in scores.methods else ""
        caption += f" {len(shown)} of {len(scores.sizes)} sizes are shown." if len(shown) < len(scores.sizes) else ""
    return Picture(file, caption)


def _accuracies(scores: Scores, tasks: Sequence[str], name: str, metric: str) -> Table:
    seeds = len(scores.seeds)
    origin = origins(scores.runs)
    code = len(set(origin.values())) > 1
    rows = [
        [
            method,
            task,
            *(in_percent(scores.mean(method, size, task), seeds) for size in scores.sizes),
            *([origin.get(method, "")] if code else []),
        ]
        for task in tasks
        for method in scores.methods
    ]
    repeated = f"mean of {seeds} seeds ± half the 95 % interval" if seeds > 1 else "one seed"
    columns = ["method", "task", *(scores.name(size) for size in scores.sizes), *(["made with"] if code else [])]
    labels = any(scores.counted and scores.labels(size) for size in scores.sizes)
    note = "In brackets: training labels + validation labels by which options were selected. " if labels else ""
    if labels and any(run.results["data"].get("protocol") == "final" for run in scores.runs):
        note += "Under the protocol final, examples may be among both. "
    if seeds > 1:
        note += (
            "The interval contains the draw of the training data and the seed. It does not contain the choice of the "
            "test examples (the next table has it), nor that of the options. "
            + ("That of a mean over tasks holds for these tasks." if tasks[0] == scores.average else "")
        )
    return Table(name, f"Test {metric} in %, {repeated}", columns, rows, note.strip())


def _intervals(scores: Scores, name: str) -> list[Block]:
    """What the intervals of the accuracies contain; empty where the number of test examples is not known."""
    rows = []
    for task in scores.panels:
        for method in scores.methods:
            for size in scores.sizes:
                mean, error = scores.mean(method, size, task), scores.sampling_error([method], [size], task)
                if mean is None or mean.low is None or mean.high is None or error is None:
                    continue
                halves = (f"{100 * half:.1f}" for half in half_widths(mean.low, mean.high, error))
                rows.append([method, task, scores.name(size), f"{100 * mean.value:.1f}", *halves])
    if not rows:
        return []
    note = (
        "Half the 95 % interval: of the draw of the training data and the seed (Student's t over seeds), of the choice "
        "of the test examples (binomial; at most, reached if all seeds err on the same ones), and of both together."
    )
    columns = ["method", "task", "size", "mean", "± draw and seed", "± test examples", "± total"]
    caption = "What the intervals of the accuracies contain, in percentage points"
    return [Table(f"{name}_intervals", caption, columns, rows, note, folded=True)]


def _data_needed(scores: Scores, name: str) -> list[Block]:
    """The amount of data with which the reference reaches the accuracy of RepLoRA, and the reverse."""
    first, reference = FIRST, scores.reference if scores.reference != FIRST else REFERENCE
    if not {first, reference} <= set(scores.methods):
        return []
    task = scores.panels[0]
    curves = {m: {x: mean.value for x, mean in scores.curve(m, task).items()} for m in (first, reference)}
    if any(not curve for curve in curves.values()):
        return []
    by_seed = {
        m: {scores.place(size): scores.over_seeds(m, size, task) for size in scores.sizes} for m in (first, reference)
    }
    rows = []
    for size in scores.sizes:
        cells = [scores.name(size)]
        for target, seeker in ((first, reference), (reference, first)):
            place = scores.place(size)
            accuracy = curves[target].get(place)
            if accuracy is None:
                cells += ["", "", ""]
                continue
            needed = data_needed(curves[seeker], accuracy)
            ratio = "" if needed.bound else f" ({needed.size / place:.2f} x)"
            ends = data_needed_interval(by_seed[seeker], by_seed[target][place])
            # If both ends are the same bound, it is shown once.
            interval = " to ".join(dict.fromkeys(f"{end.bound} {_rounded(end.size)}".strip() for end in ends or ()))
            cells += [f"{100 * accuracy:.1f}", f"{needed.bound} {_rounded(needed.size)}{ratio}".strip(), interval]
        rows.append(cells)
    unit = scores.axis.partition(" (+")[0]
    columns = ["size", f"{first} reaches", f"{reference} needs for that", f"95 % interval ({reference})"]
    columns += [f"{reference} reaches", f"{first} needs", f"95 % interval ({first})"]
    note = (
        "In brackets as a multiple of what the other had. Straight lines over the logarithm of the size between "
        "measured sizes; nothing is extrapolated. The interval holds the amounts at which the paired difference of the "
        "two has a 95 % interval by Student's t over the seeds that contains 0; blank where a seed is missing."
    )
    caption = f"Data to reach the other's mean accuracy ({task}), in {unit}"
    return [Heading(3, "Data needed"), Table(f"{name}_data_needed", caption, columns, rows, note)]


def _rounded(amount: float) -> str:
    """Three digits, and from 100 on a whole number: 2251 examples, not 2.25e+03."""
    return f"{amount:.3g}" if amount < 100 else f"{amount:.0f}"
