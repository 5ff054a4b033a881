"""What a sweep will cost, for `--dry_run`: from finished trials, the sweep's file, or a step that is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from replora.sweeps.part import WHOLE, Part
from replora.sweeps.plan import Cell, Sweep, Trial
from replora.sweeps.progress import duration
from replora.sweeps.state import recorded
from replora.sweeps.step_time import NotMeasuredError, measure_steps
from replora.sweeps.trial import finished


def describe_plan(
    sweep: Sweep,
    home: Path,
    at_once: int | None,
    unsure: str = "",
    part: Part = WHOLE,
    gpus_per_trial: float = 0,
    lost: Collection[Cell] = (),
) -> str:
    """The trials of a sweep and their expected cost by stage and in all.

    Args:
        sweep: The sweep.
        home: Directory of the trials. The durations of finished trials are the basis of the estimate.
        at_once: Number of trials at the same time; None if it is not known.
        unsure: Reason why that number is not known or may be smaller.
        part: The part of it that would run. Default: all.
        gpus_per_trial: GPUs of a trial.
        lost: Cells that have no final trial, because each point of their grids has a run that diverged.

    Raises:
        TrialError: The directory holds trials with other options.
    """
    trials = part.planned(sweep, lost)
    runs = {trial.folder for trial in part.left(home, trials)}
    measured: dict[tuple[str, ...], list[float]] = {}
    lines: list[str] = []
    left: list[Trial] = []
    for trial in trials:
        # A final trial is at a point that is not selected yet. Of the others, one with other options is refused.
        done = recorded(home, trial) if sweep.select and trial.stage == "final" else finished(home, trial)
        lines.append(f"{'finished' if done else 'to run':<9} {trial.folder}")
        if done is None and trial.folder in runs:
            left.append(trial)
        elif done is not None and "failed" not in done["sweep"]:
            for alike in _similar(trial):
                measured.setdefault(alike, []).append(_seconds(done))
    counts = {stage: sum(trial.stage == stage for trial in trials) for stage in ("select", "final")}
    names = {"select": "to select", "final": "final"}
    total = " + ".join(f"{count} {names[stage]}" for stage, count in counts.items() if count)
    text = f"{len(lines)} trials ({total}), {len(left)} to run: "
    if not left:
        return "\n".join([*lines, f"{text}nothing to do"])
    try:
        seconds, source = _expected(sweep, left, measured)
    except NotMeasuredError as error:
        remedy = "Run one trial of it, or write seconds_per_trial into the sweep's file."
        return "\n".join([*lines, f"{text}cost unknown. {remedy} No step could be measured here: {error}"])
    for stage in counts:
        of_stage = [one for trial, one in zip(left, seconds, strict=True) if trial.stage == stage]
        if of_stage:
            lines.append(f"{stage}: {len(of_stage)} trials, {_hours(sum(of_stage), at_once, gpus_per_trial)}")
    mean = f"{statistics.fmean(seconds):.1f} seconds per trial, {source}"
    if at_once is None:
        cost = f"about {duration(sum(seconds))} one after the other ({mean}); {unsure}"
    else:
        cost = f"about {duration(sum(seconds) / at_once)} with {at_once} at once ({mean})"
        cost += f"; {unsure}" if unsure else ""
    return "\n".join([*lines, text + cost])


def _expected(
    sweep: Sweep, left: Sequence[Trial], measured: Mapping[tuple[str, ...], list[float]]
) -> tuple[list[float], str]:
    """Seconds of each trial that is left to run, and where they come from.

    Raises:
        NotMeasuredError: There is nothing to estimate them by.
    """
    means = {alike: statistics.fmean(seconds) for alike, seconds in measured.items()}
    # The narrowest group comes last and counts.
    seconds = {trial.folder: means[alike] for trial in left for alike in reversed(_similar(trial)) if alike in means}
    unknown = [trial for trial in left if trial.folder not in seconds]
    count = sum(len(of_size) for alike, of_size in measured.items() if len(alike) == 1)
    finished_ones = f"from {count} finished ones, of the same stage, size and method"
    if not unknown:
        return [seconds[trial.folder] for trial in left], f"{finished_ones} where there are any"
    if sweep.seconds_per_trial is None:
        others, source = measure_steps(unknown)
    else:
        others, source = [sweep.seconds_per_trial] * len(unknown), "the sweep's file"
    if seconds:
        source = f"{finished_ones}, and for sizes without any {source}"
    seconds.update(zip((trial.folder for trial in unknown), others, strict=True))
    return [seconds[trial.folder] for trial in left], source


def _hours(seconds: float, at_once: int | None, gpus_per_trial: float) -> str:
    spent = {"one after the other": seconds}
    if at_once is not None:
        spent[f"on this machine with {at_once} at once"] = seconds / at_once
    if gpus_per_trial:
        spent["of one GPU"] = seconds * gpus_per_trial
    return ", ".join(f"{max(0.01, value / 3600):.2f} hours {where}" for where, value in spent.items())


def _similar(trial: Trial) -> list[tuple[str, ...]]:
    """Names of groups of trials with similar durations that a trial belongs to, from the narrowest to those of a size.

    Other sizes say nothing: an epoch of all examples takes fifty times as long as one of 2 % of them.
    """
    size, method = trial.size.name, trial.method
    return [(trial.stage, size, method, trial.task.name), (trial.stage, size, method), (trial.stage, size), (size,)]


def _seconds(results: dict[str, Any]) -> float:
    return sum(float(results.get(verb, {}).get("seconds", 0.0)) for verb in ("fit", "test"))
