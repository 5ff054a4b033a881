"""Shows the progress of a sweep: a live table on a terminal, otherwise one line per trial."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from replora.reports.runs import headline
from replora.reports.summary import format_metric
from replora.results import status_of
from replora.sweeps.plan import Trial

STATES = ("waiting", "running", "done", "failed")


class Progress:
    """Shows the trials of one stage, as a context manager that receives what happens to them.

    Args:
        stage: Name of the stage, for the title.
        methods: Names of all methods, in the order of the rows.
        trials: Trials that will run.
        done: Trials that were finished before.
        metric: Metric whose newest value is shown; None for the one that reports compare the tests of a run by.
    """

    def __init__(
        self, stage: str, methods: Sequence[str], trials: Sequence[Trial], done: Sequence[Trial], metric: str | None
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
        test = results.get("test", {})
        metric = self.metric or f"test/{headline(test.get('metrics', {}))}"
        value = value_of(results, metric)
        status = status_of(results, test.get("partial", [])).partition(":")[0]
        shown = format_metric(metric, value) if value is not None else "no value"
        shown = {"complete": shown, "partial": f"{shown}, partial"}.get(status, status)
        self.newest[trial.method] = shown
        self._tell(f"{trial.folder}  {metric} {shown}")

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
        table.add_column(f"newest {self.metric or 'test'}", justify="right")
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
