"""What a sweep will cost, before it runs and while it is half done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replora.reports.results import read_results
from replora.sweeps.plan import Sweep, Trial
from replora.sweeps.progress import duration


def describe_plan(sweep: Sweep, home: Path, at_once: int | None, unsure: str = "") -> str:
    """The trials of a sweep and what they will cost, for `--dry_run`.

    Args:
        sweep: What would run.
        home: Directory of the trials; finished ones are not counted again, and their time is the estimate.
        at_once: Trials at the same time, None if that is not known.
        unsure: Why it is not known, or may be fewer.
    """
    measured: dict[tuple[str, ...], list[float]] = {}
    lines: list[str] = []
    left: list[Trial] = []
    finals = sweep.planned_final_trials() if sweep.select else sweep.only_trials()
    for trial in [*sweep.selection_trials(), *finals]:
        done = _results_there(home, trial)
        lines.append(f"{'finished' if done else 'to run':<9} {trial.folder}")
        if done is None:
            left.append(trial)
        elif "failed" not in done["sweep"]:
            for alike in _alike(trial):
                measured.setdefault(alike, []).append(_seconds(done))
    stages = [f"{len(sweep.selection_trials())} to select" if sweep.select else ""]
    stages += [f"{len(finals)} final" if sweep.final else ""]
    total = " + ".join(stage for stage in stages if stage)
    return "\n".join(
        [*lines, f"{len(lines)} trials ({total}), {len(left)} to run: {_cost(sweep, left, measured, at_once, unsure)}"]
    )


def _cost(
    sweep: Sweep,
    left: Sequence[Trial],
    measured: Mapping[tuple[str, ...], list[float]],
    at_once: int | None,
    unsure: str,
) -> str:
    if not left:
        return "nothing to do"
    means = {alike: statistics.fmean(seconds) for alike, seconds in measured.items()}
    guesses = [
        next((means[alike] for alike in _alike(trial) if alike in means), sweep.seconds_per_trial) for trial in left
    ]
    known = [guess for guess in guesses if guess is not None]
    if len(known) < len(left):
        return "cost unknown: run one trial of it, or write seconds_per_trial into the sweep's file"
    source = "the sweep's file"
    if () in measured:
        source = f"from {len(measured[()])} finished ones, of the same stage, size and method where there are any"
    mean = f"{statistics.fmean(known):.1f} seconds a trial, {source}"
    if at_once is None:
        return f"about {duration(sum(known))} one after the other ({mean}); {unsure}"
    return f"about {duration(sum(known) / at_once)} with {at_once} at once ({mean})" + (f"; {unsure}" if unsure else "")


def _alike(trial: Trial) -> list[tuple[str, ...]]:
    """Names of the groups of trials that may take as long, from the narrowest to all."""
    of_size = (trial.stage, trial.size.name)
    return [(*of_size, trial.method, trial.task.name), (*of_size, trial.method), of_size, (trial.stage,), ()]


def _results_there(home: Path, trial: Trial) -> dict[str, Any] | None:
    """As `finished`, but of final trials whose point is not known yet."""
    file = home / trial.folder / "results.json"
    results = read_results(file) if file.is_file() else {}
    return results if "sweep" in results else None


def _seconds(results: dict[str, Any]) -> float:
    return sum(float(results.get(verb, {}).get("seconds", 0.0)) for verb in ("fit", "test"))
