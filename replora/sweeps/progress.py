"""Shows the progress of a sweep (a live table on a terminal, otherwise one line per trial) and estimates its cost."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from replora.io import UnreadableFileError
from replora.reports.summary import format_metric
from replora.results import status_of
from replora.sweeps.plan import Sweep, Trial
from replora.sweeps.trial import results_there

STATES = ("waiting", "running", "done", "failed")


class Progress:
    """Shows the trials of one stage, as a context manager and a `ProgressCallback`.

    Args:
        stage: Name of the stage, for the title.
        methods: Names of all methods, in the order of the rows.
        trials: Trials that will run.
        done: Trials that were finished before.
        metric: Metric whose newest value is shown.
    """

    def __init__(
        self, stage: str, methods: Sequence[str], trials: Sequence[Trial], done: Sequence[Trial], metric: str
    ) -> None:
        self.stage, self.methods, self.metric = stage, methods, metric
        self.state = {trial.folder: "waiting" for trial in trials} | {trial.folder: "done" for trial in done}
        self.method = {trial.folder: trial.method for trial in (*trials, *done)}
        self.newest: dict[str, str] = {}
        self.failures: dict[str, str] = {}  # directory -> reason
        self.left = len(trials)
        self.ended_now = 0
        self.begin = time.monotonic()
        self.console = Console(force_terminal=sys.stdout.isatty())  # a log gets no table, whatever is forced
        self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=2, transient=False)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def started(self, trial: Trial) -> None:
        self.state[trial.folder] = "running"

    def ended(self, trial: Trial, results: dict[str, Any]) -> None:
        self._count(trial, "done")
        value = value_of(results, self.metric)
        status = status_of(results, results.get("test", {}).get("partial", [])).partition(":")[0]
        shown = format_metric(self.metric, value) if value is not None else "no value"
        shown = {"complete": shown, "partial": f"{shown}, partial"}.get(status, status)
        self.newest[trial.method] = shown
        self._tell(f"{trial.folder}  {self.metric} {shown}")

    def failed(self, trial: Trial, reason: str) -> None:
        self._count(trial, "failed")
        self.failures[trial.folder] = reason
        self._tell(f"{trial.folder}  failed: {reason}")

    def noted(self, trial: Trial, note: str) -> None:
        self.console.print(f"{trial.folder}  {note}", markup=False, highlight=False, soft_wrap=True)

    def retried(self, trial: Trial, reason: str, at_once: int) -> None:
        self.state[trial.folder] = "waiting"
        self._tell(f"{trial.folder}  {reason}; it is tried again after the others, with at most {at_once} at once")

    def table(self) -> Table:
        """The state of every method."""
        title = f"{self.stage}: {self._remaining()}"
        table = Table(title=title, title_style="bold", title_justify="left")
        table.add_column("method", no_wrap=True)
        for column in STATES:
            table.add_column(column, justify="right")
        table.add_column(f"newest {self.metric}", justify="right")
        for method in self.methods:
            counts = Counter(self.state[folder] for folder, name in self.method.items() if name == method)
            table.add_row(method, *(str(counts[state]) for state in STATES), self.newest.get(method, ""))
        return table

    def _count(self, trial: Trial, state: str) -> None:
        self.state[trial.folder] = state
        self.ended_now += 1

    def _tell(self, line: str) -> None:
        if not self.console.is_terminal:
            print(f"[{self.ended_now}/{self.left}, {self._remaining()}] {line}", flush=True)

    def _remaining(self) -> str:
        if not self.ended_now:
            return f"{self.left} trials to run"
        seconds = (time.monotonic() - self.begin) / self.ended_now * (self.left - self.ended_now)
        return f"about {duration(seconds)} left"


def value_of(results: dict[str, Any], metric: str) -> float | None:
    """Value of a metric in the results of `fit` or `test`; None if neither has it."""
    for verb in ("fit", "test"):
        value: float | None = results.get(verb, {}).get("metrics", {}).get(metric)
        if value is not None:
            return value
    return None


def duration(seconds: float) -> str:
    """90 -> `2 minutes`, 7300 -> `2.0 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def describe_plan(sweep: Sweep, home: Path, at_once: int | None, unsure: str = "") -> str:
    """The trials of a sweep and their expected cost, for `--dry_run`.

    Args:
        sweep: The sweep.
        home: Directory of the trials. The durations of finished trials are the basis of the estimate.
        at_once: Number of trials at the same time; None if it is not known.
        unsure: Reason why that number is not known or may be smaller.
    """
    measured: dict[tuple[str, ...], list[float]] = {}
    lines: list[str] = []
    left: list[Trial] = []
    finals = sweep.planned_final_trials() if sweep.select else sweep.only_trials()
    for trial in [*sweep.selection_trials(), *finals]:
        done = _recorded(home, trial)
        lines.append(f"{'finished' if done else 'to run':<9} {trial.folder}")
        if done is None:
            left.append(trial)
        elif "failed" not in done["sweep"]:
            for alike in _similar(trial):
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
        next((means[alike] for alike in _similar(trial) if alike in means), sweep.seconds_per_trial) for trial in left
    ]
    known = [guess for guess in guesses if guess is not None]
    if len(known) < len(left):
        return "cost unknown: run one trial of it, or write seconds_per_trial into the sweep's file"
    source = "the sweep's file"
    if () in measured:
        source = f"from {len(measured[()])} finished ones, of the same stage, size and method where there are any"
    mean = f"{statistics.fmean(known):.1f} seconds per trial, {source}"
    if at_once is None:
        return f"about {duration(sum(known))} one after the other ({mean}); {unsure}"
    return f"about {duration(sum(known) / at_once)} with {at_once} at once ({mean})" + (f"; {unsure}" if unsure else "")


def _similar(trial: Trial) -> list[tuple[str, ...]]:
    """Names of groups of trials with similar durations that a trial belongs to, from the narrowest group to all."""
    of_size = (trial.stage, trial.size.name)
    return [(*of_size, trial.method, trial.task.name), (*of_size, trial.method), of_size, (trial.stage,), ()]


def _recorded(home: Path, trial: Trial) -> dict[str, Any] | None:
    """Like `finished`, but also for final trials whose point is not selected yet."""
    try:
        results = results_there(home / trial.folder)
    except UnreadableFileError:  # the trial will run again
        return None
    return results if "sweep" in results else None


def _seconds(results: dict[str, Any]) -> float:
    return sum(float(results.get(verb, {}).get("seconds", 0.0)) for verb in ("fit", "test"))
