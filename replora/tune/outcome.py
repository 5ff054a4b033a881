"""Which candidate is chosen, how surely, and the picture of it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from replora.progress import table_console
from replora.reports.choice import choose, edges_of, is_proportion, mean_behind
from replora.reports.render.charts import Curve, draw_curves
from replora.reports.statistics import Mean, mean_over_divisions
from replora.reports.summary import format_metric
from replora.tune.curve import smoothed
from replora.tune.plan import RATE, Candidate, candidate
from replora.tune.race import Race

PICTURE = "tune.png"


@dataclass(frozen=True)
class Outcome:
    """The choice.

    Attributes:
        candidate: The chosen candidate.
        best: That with the best mean.
        expected: Name of a candidate -> the accuracy that the curve through all rates expects of it. Empty for a loss.
        mean: The mean of the chosen one over the measurements, with a 95 % interval over them.
        alike: Other candidates within one standard error of the best, on the measurements that both have.
        edge: Whether its learning rate is the lowest or highest of its method, and no other candidate is as good.
        draws: Mean of each draw.
    """

    candidate: Candidate
    best: Candidate
    expected: dict[str, float]
    mean: Mean
    alike: list[Candidate]
    edge: bool
    draws: list[float]


def outcome_of(race: Race) -> Outcome | None:
    """The choice among the candidates that are left; None if none is.

    The best of a few noisy means is mostly noise. Of accuracies, therefore, the best on a curve through the means of
    all rates is chosen (`curve.py`). How a loss changes with the rate is known of no loss in general, so there the rule
    is that of one standard error (Breiman et al., Classification and Regression Trees, 1984): of the rates that cannot
    be distinguished from the best, the one nearest the middle of the grid. By default that is the configured one, which
    was measured on other data.
    """
    grid = {one.name: {"method": one.method} | one.point.options for one in race.plan.candidates}
    count = min((len(race.values[one.name]) for one in race.alive), default=0)
    values = {one.name: race.values[one.name][:count] for one in race.alive}
    found = choose(values, grid, race.metric, race.mode, "middle", race.held_out)
    if found is None:
        return None
    best = next(one for one in race.plan.candidates if one.name == found.point)
    measured = [one for one in race.plan.candidates if race.values.get(one.name) and one.name not in race.failures]
    close = [one for one in measured if race.errors_behind(one, best) <= 1]
    expected = _expected(race, best, measured) if is_proportion(race.metric) else {}
    if expected:
        chosen = max(race.alive, key=lambda one: (round(expected[one.name], 12), -abs(one.octaves)))
    else:
        other_rates = [one for one in close if one in race.alive and _line_of(one) == _line_of(best)]
        chosen = min(other_rates, key=lambda one: (abs(one.octaves), race.errors_behind(one, best)))
    alike = [one for one in close if one is not chosen]
    same = [one.point.options for one in race.plan.candidates if one.method == chosen.method]
    edge = edges_of(chosen.point.options, same).get(RATE, False) and not found.tied
    own, folds, number = values[chosen.name], race.plan.folds, race.plan.draws
    means = [statistics.fmean(own[i : i + folds]) for i in range(0, len(own) - folds + 1, folds)]
    draws = [statistics.fmean(means[draw::number]) for draw in range(min(number, len(means)))]
    return Outcome(chosen, best, expected, mean_over_divisions(own, race.plan.division), alike, edge, draws)


def _expected(race: Race, best: Candidate, measured: list[Candidate]) -> dict[str, float]:
    """Name of a measured candidate -> what the curve of its line expects, also of those that have left the race."""
    # Half of the variance of a difference is that of each mean.
    errors = {one.name: race.error_behind(one, best) / math.sqrt(2) for one in measured if one is not best}
    errors[best.name] = min(errors.values(), default=0.0)
    level = statistics.fmean(race.values[best.name])
    lines: dict[str, list[Candidate]] = {}
    for one in measured:
        lines.setdefault(_line_of(one), []).append(one)
    expected: dict[str, float] = {}
    for line in lines.values():
        means = [level - mean_behind(race.values[best.name], race.values[one.name]) for one in line]
        curve = smoothed([one.octaves for one in line], means, [errors[one.name] for one in line])
        expected |= {one.name: value for one, value in zip(line, curve, strict=True)}
    return expected


def beyond(race: Race, chosen: Candidate) -> Candidate | None:
    """The candidate beyond a rate at the edge of its grid, by the grid's own factor; None for a single rate."""
    options = chosen.point.options
    rates = sorted({one.point.options[RATE] for one in race.plan.candidates if one.method == chosen.method})
    if len(rates) < 2:
        return None
    lowest = options[RATE] == rates[0]
    rate = rates[0] ** 2 / rates[1] if lowest else rates[-1] ** 2 / rates[-2]
    octaves = chosen.octaves + math.log2(rate / options[RATE])
    return candidate(chosen.method, chosen.config, options | {RATE: float(f"{rate:.3g}")}, octaves)


def describe(race: Race, outcome: Outcome) -> str:
    """The choice and its uncertainty, in sentences."""
    plan, mean = race.plan, outcome.mean
    counted = f"{mean.count} measurement{'s' if mean.count > 1 else ''} on {_divisions(race, mean.count)}"
    interval = ""
    if mean.low is not None and mean.high is not None:
        low, high = (format_metric(race.metric, end) for end in _bounded(race, mean))
        interval = f" (95 % interval {low} to {high})"
    lines = [
        f"Chosen: {outcome.candidate.name}. Its {race.metric} is {format_metric(race.metric, mean.value)}, the mean of "
        f"{counted}{interval}. As the choice of several it is somewhat optimistic; the test is the measurement."
    ]
    if outcome.best is not outcome.candidate:
        best = format_metric(race.metric, statistics.fmean(race.values[outcome.best.name][: mean.count]))
        why = (
            "A single mean is noisy: the choice is the best on a curve through the means of all rates (tune.png)."
            if outcome.expected
            else "Of the rates within one standard error of it, the one nearest the middle of the grid is chosen, by "
            "default the configured one: the difference may be noise."
        )
        lines.append(f"The best mean is that of {outcome.best.name}, {best}. {why}")
    if outcome.alike:
        named = "; ".join(one.name for one in outcome.alike)
        lines.append(f"No significant difference, within one standard error of the best: {named}.")
    elif any(one is not outcome.candidate and one.name not in race.failures for one in plan.candidates):
        lines.append("All others are worse by more than one standard error.")
    else:
        lines.append("No other candidate could be measured, so it was not compared with anything.")
    if outcome.edge:
        lines.append("It is at the edge of the grid: a better rate may lie beyond. Name others with --rates.")
    if len(outcome.draws) > 1:
        spread = ", ".join(format_metric(race.metric, value) for value in outcome.draws)
        deviation = format_metric(race.metric, statistics.stdev(outcome.draws))
        lines.append(f"By draw (subset_seed {plan.subset_seed} and on): {spread}; standard deviation {deviation}.")
    if race.stopped and mean.count >= plan.round:
        lines.append("The budget allowed no more divisions. The same command measures more.")
    elif race.stopped:
        lines.append(f"Not everything was measured: {race.stopped}. The same command measures more.")
    return "\n".join(lines)


def _divisions(race: Race, measured: int) -> str:
    folds = race.plan.folds
    if folds == 1:
        return "the validation data"
    if measured <= folds:
        return f"{folds} folds"
    complete, more = divmod(measured, folds)
    divisions = f"{complete} division{'s' if complete > 1 else ''} into {folds} folds"
    return f"{divisions} and a part of another" if more else divisions


def _bounded(race: Race, mean: Mean) -> tuple[float | None, float | None]:
    if race.mode == "min" or mean.low is None or mean.high is None:
        return mean.low, mean.high
    return max(0.0, mean.low), min(1.0, mean.high)


def show(race: Race, outcome: Outcome) -> None:
    """Print a row for each candidate."""
    table = Table(title="candidates", title_style="bold", title_justify="left")
    for column in ("candidate", race.metric, "measured", ""):
        table.add_column(column, justify="right" if column == race.metric else "left")
    for one in race.plan.candidates:
        values = race.values.get(one.name, [])
        shown = format_metric(race.metric, statistics.fmean(values)) if values else ""
        note = "chosen" if one is outcome.candidate else "as good" if one in outcome.alike else ""
        if one.name in race.failures:
            note = f"out: {race.failures[one.name].splitlines()[0]}"
        table.add_row(one.name, shown, f"{len(values)} of {race.plan.measurements}", note)
    table_console().print(table)


def draw(race: Race, outcome: Outcome) -> Path:
    """Draw the metric over the learning rate, one line per method and further options, the choice with a ring."""
    lines: dict[str, dict[float, Mean]] = {}
    for one in race.plan.candidates:
        if race.values.get(one.name):
            mean = mean_over_divisions(race.values[one.name], race.plan.division)
            lines.setdefault(_line_of(one), {})[one.point.options[RATE]] = mean
    for one in race.plan.candidates:
        if one.name in outcome.expected:
            value = Mean(outcome.expected[one.name], None, None, 1, None)
            lines.setdefault(f"{_line_of(one)}, curve", {})[one.point.options[RATE]] = value
    curves: dict[str, Curve] = {name: dict(sorted(curve.items())) for name, curve in lines.items()}
    title = f"mean of the measurements, 95 % intervals; the ring is chosen ({outcome.candidate.name})"
    accuracy = race.mode == "max"
    return draw_curves(
        race.home / PICTURE,
        {title: curves},
        "learning rate",
        "validation accuracy in %" if accuracy else race.metric,
        marked={(title, _line_of(outcome.candidate)): outcome.candidate.point.options[RATE]},
    )


def _line_of(one: Candidate) -> str:
    others = [f"{name.rpartition('.')[2].removeprefix('max_')} {value:g}" for name, value in one.point.options.items()]
    return ", ".join([one.method, *(text for text in others if not text.startswith("lr "))])


def record(race: Race, outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values."""
    return {
        "metric": race.metric,
        "mode": race.mode,
        "chosen": outcome.candidate.name,
        "best": outcome.best.name,
        "options": {"config": outcome.candidate.config} | outcome.candidate.point.options,
        "measurements": outcome.mean.count,
        "folds": race.plan.folds,
        "mean": outcome.mean.value,
        "interval": None if outcome.mean.low is None else [outcome.mean.low, outcome.mean.high],
        "within_one_standard_error": [one.name for one in outcome.alike],
        "at_edge": outcome.edge,
        "draws": outcome.draws,
        "stopped": race.stopped or None,
        "candidates": {
            one.name: {
                "values": race.values.get(one.name, []),
                "expected": outcome.expected.get(one.name),
                "failed": race.failures.get(one.name),
            }
            for one in race.plan.candidates
        },
    }
