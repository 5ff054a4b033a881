"""Accuracy against the amount of training data: tables, curves, data needed, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from replora.reports.render.charts import FEW, REFERENCE, draw_curves, draw_dots
from replora.reports.render.document import Block, Heading, Paragraph, Picture, Table
from replora.reports.runs import Group, Size, spread
from replora.reports.scores import Scores
from replora.reports.statistics import Comparison, data_needed, data_needed_interval, in_percent

# The method that is compared with the reference first.
FIRST = "RepLoRA"
OF_CHOICE = (
    "Intervals hold for the options that were chosen: that other seeds might have chosen others is in none of them."
)


def low_data_section(group: Group, folder: Path, prefix: str) -> list[Block]:
    """The section of a group; empty without a test."""
    blocks: list[Block] = []
    for shots in (False, True):
        scores = Scores(group, shots)
        if scores.by_cell and scores.tasks:
            blocks += _section(scores, folder, f"{prefix}{'shots' if shots else 'size'}")
    return blocks


def _section(scores: Scores, folder: Path, name: str) -> list[Block]:
    metric = scores.runs[0].metric
    several = len(scores.sizes) > 1
    title = "Scores" if metric == "score" else "Accuracy"
    blocks: list[Block] = [Heading(3, f"{title} by amount of training data" if several else title)]
    blocks.append(_accuracies(scores, scores.panels[:1], name, metric))
    seeds = len(scores.seeds)
    repeated = f"mean over {seeds} seeds and its 95 % interval (Student's t)" if seeds > 1 else "one seed"
    caption = f"Test {metric}: {repeated}. {OF_CHOICE}"
    file = folder / f"{name}.png"
    if several and len(scores.methods) <= FEW:
        panels = {task: {m: scores.curve(m, task) for m in scores.methods} for task in scores.panels}
        panels = {task: {m: curve for m, curve in curves.items() if curve} for task, curves in panels.items()}
        draw_curves(file, panels, scores.axis, f"test {metric}, %")
    else:  # lines of many methods would cover each other
        shown = spread(scores.sizes)
        means = {
            f"{scores.panels[0]}, {scores.name(size)}": {
                m: scores.mean(m, size, scores.panels[0]) for m in scores.methods
            }
            for size in shown
        }
        dots = {title: {m: mean for m, mean in of.items() if mean is not None} for title, of in means.items()}
        draw_dots(file, dots, f"test {metric}, %")
        caption += " The gray line is LoRA's mean." if REFERENCE in scores.methods else ""
        caption += f" {len(shown)} of {len(scores.sizes)} sizes are shown." if len(shown) < len(scores.sizes) else ""
    blocks.append(Picture(file, caption))
    if scores.panels[1:]:
        blocks.append(_accuracies(scores, scores.panels[1:], f"{name}_tasks", metric))
    if several:
        blocks += _data_needed(scores, name)
    return [*blocks, *_paired(scores, name)]


def _accuracies(scores: Scores, tasks: Sequence[str], name: str, metric: str) -> Table:
    seeds = len(scores.seeds)
    rows = [
        [method, task, *(in_percent(scores.mean(method, size, task), seeds) for size in scores.sizes)]
        for task in tasks
        for method in scores.methods
    ]
    repeated = f"mean of {seeds} seeds ± half the 95 % interval" if seeds > 1 else "one seed"
    columns = ["method", "task", *(scores.name(size) for size in scores.sizes)]
    return Table(name, f"Test {metric} in %, {repeated}", columns, rows)


def _data_needed(scores: Scores, name: str) -> list[Block]:
    """The amount of data with which LoRA reaches the accuracy of RepLoRA, and the reverse."""
    if not {FIRST, REFERENCE} <= set(scores.methods):
        return []
    task = scores.panels[0]
    curves = {m: {x: mean.value for x, mean in scores.curve(m, task).items()} for m in (FIRST, REFERENCE)}
    if any(not curve for curve in curves.values()):
        return []
    by_seed = {
        m: {scores.place(size): scores.over_seeds(m, size, task) for size in scores.sizes} for m in (FIRST, REFERENCE)
    }
    rows = []
    for size in scores.sizes:
        cells = [scores.name(size)]
        for target, seeker in ((FIRST, REFERENCE), (REFERENCE, FIRST)):
            place = scores.place(size)
            accuracy = curves[target].get(place)
            if accuracy is None:
                cells += ["", "", ""]
                continue
            needed = data_needed(curves[seeker], accuracy)
            ratio = "" if needed.bound else f" ({needed.size / place:.2f} x)"
            ends = data_needed_interval(by_seed[seeker], by_seed[target][place])
            # If both ends are the same bound, it is shown once.
            interval = " to ".join(dict.fromkeys(f"{end.bound} {end.size:.3g}".strip() for end in ends or ()))
            cells += [f"{100 * accuracy:.1f}", f"{needed.bound} {needed.size:.3g}{ratio}".strip(), interval]
        rows.append(cells)
    unit = scores.axis
    columns = ["size", f"{FIRST} reaches", f"{REFERENCE} needs for that", f"95 % interval ({REFERENCE})"]
    columns += [f"{REFERENCE} reaches", f"{FIRST} needs", f"95 % interval ({FIRST})"]
    caption = (
        f"Data to reach the other's mean accuracy ({task}), in {unit}; in brackets as a multiple of what the other "
        "had. Straight lines over the logarithm of the size between measured sizes; nothing is extrapolated. Intervals "
        "are of a bootstrap over the seeds (2,000 resamples, the same seeds for both; too narrow for few); blank where "
        "a seed is missing."
    )
    return [Heading(3, "Data needed"), Table(f"{name}_data_needed", caption, columns, rows)]


def _paired(scores: Scores, name: str) -> list[Block]:
    """Each method minus LoRA on the same tasks and seeds, at each size and over all sizes."""
    reference = REFERENCE if REFERENCE in scores.methods else scores.methods[0]
    others = sorted((m for m in scores.methods if m != reference), key=lambda m: m != FIRST)
    rows = []
    least: dict[int, float] = {}
    for method in others:
        sizes = [(scores.name(size), [size]) for size in scores.sizes]
        if len(scores.sizes) > 1:
            common = scores.common_sizes(method, reference, scores.sizes)
            sizes.append((_all(scores, common), common))
        for label, chosen in sizes:
            found = scores.compare(method, reference, chosen)
            row = [f"{method} - {reference}", label, "", "", "", ""]
            if found is not None:
                least[found.units] = found.least
                row[2] = f"{100 * found.difference:+.1f}"
                row[4] = f"{found.wins} / {found.ties} / {found.losses}"
                row[5] = f"{found.p_value:.2g}"
                if found.low is not None and found.high is not None:
                    row[3] = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
            rows.append(row)
    if not rows:
        return []
    pairs = "seed" if len(scores.tasks) == 1 else "task and seed"
    most_first = sorted(least.items(), reverse=True)
    bounds = ", ".join(f"{bound:.2g} with {units} pair{'s' if units > 1 else ''}" for units, bound in most_first)
    caption = (
        f"Paired differences in percentage points: two runs of the same {pairs} have the same training data. 95 % "
        "bootstrap interval of the mean (10,000 resamples, fixed seed; too narrow for few pairs) and two-sided p value "
        f"of the sign-flip test (10,000 patterns of signs at most), which can be no less than {bounds or '1'}. "
        f"Over all sizes a {pairs} counts as one, because its training sets are nested, and only where it has a pair at"
        " every size. No correction for the number of comparisons, nor for the choice of options."
    )
    columns = ["difference", "size", "mean", "95 % interval", "wins / ties / losses", "p"]
    verdict = _verdict(scores, reference)
    return [Heading(3, "Paired differences"), *verdict, Table(f"{name}_paired", caption, columns, rows)]


def _all(scores: Scores, common: Sequence[Size]) -> str:
    """Name of a comparison over several sizes."""
    return "all sizes" if len(common) == len(scores.sizes) else f"{len(common)} of {len(scores.sizes)} sizes"


def _verdict(scores: Scores, reference: str) -> list[Block]:
    """A sentence that says whether RepLoRA is better than the reference, and the rule that decides it."""
    if FIRST not in scores.methods or reference == FIRST:
        return []
    common = scores.common_sizes(FIRST, reference, scores.sizes)
    whole = scores.compare(FIRST, reference, common)
    if whole is None or whole.low is None or whole.high is None:
        missing = "cannot be said here: too few seeds have all sizes of both."
        return [Paragraph(f"Whether {FIRST} is better than {reference} {missing}")]
    verdict = _sign(whole, "better", "worse", "not shown to be better or worse")
    interval = f"95 % interval {100 * whole.low:+.1f} to {100 * whole.high:+.1f}, p {whole.p_value:.2g}"
    means = f"{100 * whole.difference:+.1f} points ({interval})"
    text = f"{FIRST} is {verdict} than {reference} here: {means}"
    if len(scores.sizes) > 1:
        single = [found for size in common if (found := scores.compare(FIRST, reference, [size]))]
        counts = [_sign(found, "better", "worse", "undecided") for found in single]
        listed = ", ".join(f"{word} at {counts.count(word)}" for word in ("better", "worse", "undecided"))
        text += f" over {_all(scores, common)}; of {len(counts)} single sizes {listed}"
    rule = (
        "Better and worse mean: 0 lies outside the interval, and p is below 0.1, a weak rule; "
        f"with {whole.units} pairs p is at least {whole.least:.2g}."
    )
    return [Paragraph(f"{text}. {rule}")]


def _sign(found: Comparison, above: str, below: str, neither: str) -> str:
    """One of the three words for a difference. With few pairs the bootstrap interval alone would be too narrow."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high or found.p_value >= 0.1:
        return neither
    return above if found.low > 0 else below
