"""What a learning rate costs that was not tuned on the task: at the selected rate, around it on average, at worst."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from replora.reports.render.charts import FEW, draw_curves, draw_dots
from replora.reports.render.document import Block, Heading, Paragraph, Picture, Table
from replora.reports.runs import Group, Run, Size
from replora.reports.scores import Scores
from replora.reports.sections.comparisons import RULE, compared, comparison_cells
from replora.reports.statistics import Mean, compare_paired, in_percent, mean_over_seeds

WINDOW = 4  # factor by which a rate may be lower or higher than the selected one
MEASURES = {"selected": "at the selected rate", "average": "mean over the window", "worst": "worst of the window"}


@dataclass(frozen=True)
class Untuned:
    """Mean scores over the draws, for one method, task and size.

    Attributes:
        best: At the point that is best in hindsight.
        selected: At the selected point.
        average: Mean over the points whose rates lie within a factor of `WINDOW` of the selected one.
        worst: The lowest of these.
        points: Number of these.
    """

    best: float
    selected: float
    average: float
    worst: float
    points: int


class Regrets:
    """What is lost without tuning, by method, size and task.

    Args:
        group: Runs of one table.
        shots: As for `Scores`.
    """

    def __init__(self, group: Group, shots: bool) -> None:
        self.scores = Scores(group, shots)
        self.found = {
            (method, size, task): untuned
            for method in self.scores.methods
            for size in self.scores.sizes
            for task in self.scores.averaged
            if (untuned := _untuned(_final_runs(group, method, size, task))) is not None
        }
        self.methods = [method for method in self.scores.methods if any(key[0] == method for key in self.found)]
        self.sizes = {self.scores.name(size): [size] for size in self.scores.sizes}
        if len(self.sizes) > 1:
            self.sizes["all sizes"] = self.scores.sizes

    def by_task(self, method: str, sizes: Sequence[Size], measure: str) -> dict[str, float]:
        """Task -> score, as the mean over the sizes, for tasks that have all of them. `measure`: field of `Untuned`."""
        return {
            task: statistics.fmean(getattr(self.found[method, size, task], measure) for size in sizes)
            for task in self.scores.averaged
            if all((method, size, task) in self.found for size in sizes)
        }

    def mean(self, method: str, sizes: Sequence[Size], measure: str) -> Mean | None:
        """Mean over the tasks."""
        values = list(self.by_task(method, sizes, measure).values())
        return mean_over_seeds(values) if values else None

    def lost(self, method: str, sizes: Sequence[Size], measure: str) -> Mean | None:
        """Mean over the tasks of the best score in hindsight minus this one."""
        best, own = (self.by_task(method, sizes, name) for name in ("best", measure))
        return mean_over_seeds([best[task] - own[task] for task in best]) if best else None

    def points(self, method: str, sizes: Sequence[Size]) -> str:
        """Numbers of rates in the windows: `5`, or `3 to 5`."""
        counts = [untuned.points for (name, size, _), untuned in self.found.items() if name == method and size in sizes]
        return " to ".join(map(str, dict.fromkeys((min(counts), max(counts))))) if counts else ""


def regret_section(group: Group, folder: Path, prefix: str) -> list[Block]:
    """A figure and two tables, with tasks as units; empty without final runs at points that are not selected."""
    if not any(run.stage == "unselected" for run in group.runs):
        return []
    blocks: list[Block] = []
    for shots in (False, True):
        regrets = Regrets(group, shots)
        if regrets.found:
            name = f"{prefix}{'shots' if shots else 'size'}_regret"
            blocks += [_figure(regrets, folder / f"{name}.png"), _table(regrets, name), *_paired(regrets, name)]
    if not blocks:
        return []
    elsewhere = any(run.from_other_tasks for run in group.final)
    source = "on the other tasks, by no validation label of its own" if elsewhere else "on its own validation labels"
    words = (
        f"The learning rate of a task was selected {source}. The window holds the rates of the grid within a factor of "
        f"{WINDOW} of the selected one. Each counts equally, which on a geometric grid is a log-uniform prior."
    )
    return [Heading(3, "Regret without tuning"), Paragraph(words), *blocks]


def _table(regrets: Regrets, name: str) -> Table:
    rows = []
    for label, sizes in regrets.sizes.items():
        for method in regrets.methods:
            best = regrets.mean(method, sizes, "best")
            shown = [best, *(regrets.lost(method, sizes, measure) for measure in MEASURES)]
            tasks = "" if best is None else str(best.count)
            cells = (in_percent(mean, seeds=0) for mean in shown)  # their number has a column
            rows.append([method, label, *cells, tasks, regrets.points(method, sizes)])
    note = (
        "Lost is the score at the rate that is best in hindsight, by the mean test score over the draws, minus the one "
        "named. Hindsight flatters the best rate, more so with few draws and many rates; all methods have as many of "
        "both. A run that diverged counts as 0. Means over the tasks ± half the 95 % interval by Student's t, with "
        "tasks as units. Over all sizes a task counts once, with its mean over them, if it has all. There are fewer "
        "rates in the window where it reaches beyond the grid."
    )
    columns = ["method", "size", "best in hindsight", *(f"lost, {title}" for title in MEASURES.values())]
    caption = f"Test {regrets.scores.runs[0].metric} lost without tuning, in percentage points"
    return Table(name, caption, [*columns, "tasks", "rates in the window"], rows, note)


def _figure(regrets: Regrets, file: Path) -> Picture:
    scores = regrets.scores
    metric, several = scores.runs[0].metric, len(scores.sizes) > 1
    over = f"mean over {len(scores.averaged)} tasks and its 95 % interval (Student's t)"
    caption = f"Test {metric} lost against the method's best rate in hindsight, {over}."
    if several and len(regrets.methods) <= FEW:
        panels = {
            title: {
                method: {
                    scores.place(size): lost
                    for size in scores.sizes
                    if (lost := regrets.lost(method, [size], measure)) is not None
                }
                for method in regrets.methods
            }
            for measure, title in MEASURES.items()
        }
        draw_curves(file, panels, scores.axis.replace(" (+", "\n(+"), f"{metric} lost, %", zoom=False)
        return Picture(file, caption)
    dots = {
        title: {
            method: lost
            for method in regrets.methods
            if (lost := regrets.lost(method, scores.sizes, measure)) is not None
        }
        for measure, title in MEASURES.items()
    }
    draw_dots(file, dots, f"{metric} lost, %", scores.reference)
    caption += " Mean over all sizes." if several else ""
    caption += f" The gray line is {scores.reference}'s mean." if scores.reference in regrets.methods else ""
    return Picture(file, caption)


def _paired(regrets: Regrets, name: str) -> list[Block]:
    """Each method minus the reference in the score itself, paired by task."""
    reference, others = compared(regrets.scores)
    rows = []
    for method in (m for m in others if {m, reference} <= set(regrets.methods)):
        for label, sizes in regrets.sizes.items():
            for measure, title in MEASURES.items():
                one, other = (regrets.by_task(m, sizes, measure) for m in (method, reference))
                units = [[one[task] - other[task]] for task in one if task in other]
                cells = comparison_cells(compare_paired(units) if units else None, "task")
                rows.append([f"{method} - {reference}", label, title, *cells[:3], *cells[4:]])
    if not rows:
        return []
    note = (
        f"Differences of the scores themselves, not of what is lost. {RULE}. Tasks are the units, so it speaks about "
        "tasks like these. p is of the two-sided sign-flip test. No correction is made for the number of comparisons."
    )
    columns = ["difference", "size", "score", "units", "mean", "95 % interval", "wins / ties / losses", "p", "least p"]
    caption = "Paired differences without tuning, in percentage points"
    return [Table(f"{name}_paired", caption, columns, rows, note)]


def _final_runs(group: Group, method: str, size: Size, task: str) -> list[Run]:
    """Those at all points."""
    return [r for r in group.runs if r.stage != "select" and (r.method, r.size, r.task) == (method, size, task)]


def _untuned(runs: Sequence[Run]) -> Untuned | None:
    """The scores of one method, task and size over the draws that all its points have; None without such draws."""
    rates: dict[str, float] = {}
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        score = 0.0 if run.diverged else run.score
        if run.rate is not None and score is not None:
            rates[_point(run)] = run.rate
            values.setdefault(_point(run), {})[run.seed] = score
    selected = {_point(run) for run in runs if run.stage == "final"}
    if len(selected) != 1 or not selected <= values.keys():
        return None
    (chosen,) = selected
    draws = values[chosen].keys() & set.intersection(*map(set, values.values()))
    if not draws:
        return None
    means = {point: statistics.fmean(of_point[draw] for draw in draws) for point, of_point in values.items()}
    window = [means[point] for point, rate in rates.items() if _within(rate, rates[chosen])]
    return Untuned(max(means.values()), means[chosen], statistics.fmean(window), min(window), len(window))


def _within(rate: float, chosen: float) -> bool:
    return chosen / WINDOW <= rate * (1 + 1e-9) and rate <= chosen * WINDOW * (1 + 1e-9)


def _point(run: Run) -> str:
    grid: Mapping[str, object] = run.results["sweep"]["grid"]
    return json.dumps(grid, sort_keys=True)
