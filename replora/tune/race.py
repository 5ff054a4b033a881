"""Measures the candidates of a plan by successive halving, within a budget.

Halving alone would drop the better of two candidates about as often as the worse one while few examples have been
measured: with two folds of ten images, a standard error is ten points. Therefore the worse half leaves only where it is
clearly worse, or where the budget does not suffice for more.

After the first division of the examples into folds, others are measured while the budget lasts. From then on, only
what is clearly worse leaves.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replora.memory import usable_cpus
from replora.reports.choice import error_behind, errors_behind, is_proportion
from replora.sweeps.local_queue import LocalQueue
from replora.sweeps.plan import Trial
from replora.sweeps.progress import Progress, value_of
from replora.sweeps.trial import finished
from replora.tune.budget import Clock, OutOfTimeError, Signals
from replora.tune.plan import Candidate, Plan
from replora.tune.probe import Facts

# By which candidates are compared, if there is one; else by the loss.
METRICS = ("val/accuracy", "val/acc_norm", "val/acc")
LOSS = "val/loss"
SAFETY = 1.2  # the time kept for the final fit, over its estimate
SECONDS = 1.0  # and in addition, for files and pictures
# Repeats use up any budget, so that more is kept from them, at little cost: pictures take longer than a second where
# other processes need the cores as well, and the final fit comes when a machine may have become busier.
SAFETY_IN_REPEATS, SECONDS_IN_REPEATS = 2.0, 3.0
CLEARLY = 2.0  # standard errors by which a candidate is clearly worse
RECENT = 5  # trials whose time counts alone if it is longer, because the machine may have become busier


@dataclass
class Race:
    """The measurements so far.

    Attributes:
        home: Directory of the trials.
        plan: What is measured.
        facts: What a trial is, and how long it takes.
        tests: What the final fit is.
        clock: The budget.
        signals: Ctrl-C and SIGTERM.
        metric: Metric of the comparison; empty until the first trial has ended.
        values: Name of a candidate -> its values, one per measurement.
        failures: Name of a candidate -> why it is out.
        alive: Candidates that took part in the last complete level, or in the first if none is complete.
        stopped: Why not all was measured; empty otherwise.
    """

    home: Path
    plan: Plan
    facts: Facts
    tests: Facts
    clock: Clock
    signals: Signals
    metric: str = ""
    values: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    alive: list[Candidate] = field(default_factory=list)
    stopped: str = ""
    taken: list[float] = field(default_factory=list)  # seconds of trials of this process

    @property
    def mode(self) -> str:
        return "min" if self.metric.endswith("loss") else "max"

    @property
    def held_out(self) -> int:
        """Number of examples of one measurement."""
        sizes = self.facts.sizes
        return (sizes["train"] + sizes["val"]) // self.plan.folds if self.plan.folds > 1 else sizes["val"]

    # --- what time allows

    def seconds_of_trial(self) -> float:
        """Expected seconds of one trial."""
        if self.taken:
            return max(statistics.fmean(self.taken), statistics.fmean(self.taken[-RECENT:]))
        return self._estimate()

    def seconds_of_final(self) -> float:
        """Expected seconds of the final fit with its test."""
        # As late as it comes, packages are imported already; only the probe waited for them.
        return self._slower() * self.tests.seconds(self.tests.steps, self.tests.sizes.get("test", 0))

    def reserve(self, repeats: bool = False) -> float:
        """Seconds that candidates, or repeats of their measurements, may not take."""
        if repeats:
            return SAFETY_IN_REPEATS * (self.seconds_of_final() + SECONDS_IN_REPEATS * self._slower())
        return SAFETY * self.seconds_of_final() + SECONDS

    def unfinished(self, candidates: Iterable[Candidate], numbers: Iterable[int]) -> int:
        """How many of these measurements are still to be made."""
        trials = (self.plan.trial(one, number) for one, number in itertools.product(candidates, numbers))
        return sum(finished(self.home, trial) is None for trial in trials)

    def _slower(self) -> float:
        return self.seconds_of_trial() / self._estimate()

    def _estimate(self) -> float:
        held = 1 / self.plan.folds if self.plan.folds > 1 else 0.0
        pool = self.facts.sizes["train"] + (self.facts.sizes["val"] if held else 0)
        part = pool * (1 - held) / self.facts.sizes["train"]
        return self.facts.seconds(self.facts.steps * part, round(pool * held) or self.facts.sizes["val"])

    # --- the race

    def run(self, repeat: int = 0) -> None:
        """Measure one division of each draw, or what the budget allows.

        Args:
            repeat: Number of the repeat; 0, the first, has all candidates.
        """
        entered = list(self.alive if repeat else self.plan.candidates)
        for number in range(repeat * self.plan.round, (repeat + 1) * self.plan.round):
            entered = self._going_on(entered, number)
            if not self._level(entered, number):
                return
            entered = [one for one in entered if one.name not in self.failures]

    def extend(self, one: Candidate) -> bool:
        """Measure one more candidate as often as those that are left; whether that could be completed."""
        self.plan = self.plan.with_candidate(one)
        measured = min((len(self.values[other.name]) for other in self.alive), default=0)
        for number in range(measured):
            if one.name in self.failures or not self._measure([one], number):
                return False
        if one.name not in self.failures:
            self.alive.append(one)
        return one.name not in self.failures

    def _level(self, entered: list[Candidate], number: int) -> bool:
        if not self._measure(entered, number):
            if number == 0:
                self.alive = [one for one in entered if self.values.get(one.name)]
            return False
        self.alive = [one for one in entered if one.name not in self.failures]
        return bool(self.alive)

    def _measure(self, entered: list[Candidate], number: int) -> bool:
        """One measurement of each candidate; whether all were made."""
        trials = {one.name: self.plan.trial(one, number) for one in entered}
        done = {name: results for name, trial in trials.items() if (results := finished(self.home, trial))}
        left = [trial for name, trial in trials.items() if name not in done]
        title = f"measurement {number + 1} of {self.plan.measurements}"
        methods = list(dict.fromkeys(one.method for one in self.plan.candidates))
        queue = LocalQueue(usable_cpus(), failures=0)
        before = [trial for trial in trials.values() if trial not in left]
        repeats = number >= self.plan.round
        with _Shown(self, title, methods, left, before) as shown:
            for one in entered:
                trial = trials[one.name]
                if one.name not in done:
                    self.signals.stop()
                    if self.clock.left(self.reserve(repeats)) < self.seconds_of_trial():
                        self.stopped = "the budget leaves no time for another trial beside the final fit"
                        return False
                    begin = self.clock.spent
                    try:
                        with self.clock.alarm(self.reserve(repeats)):
                            queue.run(self.home, self.home.name, [trial], [None], shown)
                    except KeyboardInterrupt:
                        self.signals.stop()  # with the number of the signal
                        raise
                    except OutOfTimeError:
                        self.stopped = f"the budget ended inside {trial.folder}"
                        return False
                    self.signals.stop()
                    results = finished(self.home, trial)
                    if results is None:
                        self.failures[one.name] = shown.failures.get(trial.folder, "it did not end")
                        continue
                    self.taken.append(self.clock.spent - begin)
                    done[one.name] = results
                self._record(one, number, done[one.name])
        return True

    def _record(self, one: Candidate, number: int, results: dict[str, Any]) -> None:
        self.metric = self.metric or metric_of(results)
        value = None if "failed" in results["sweep"] else value_of(results, self.metric)
        if value is None:
            self.failures[one.name] = str(results["sweep"].get("failed", f"it has no {self.metric}"))
        else:
            values = self.values.setdefault(one.name, [])
            values[number:] = [value]

    def _going_on(self, entered: list[Candidate], number: int) -> list[Candidate]:
        """The better part by the plan, and those that are not clearly worse, as far as the budget suffices for them."""
        ranked = self._best(entered, number)
        kept = self.plan.kept(number)
        if number == 0 or kept >= len(ranked):
            return ranked
        close = [one for one in ranked[kept:] if self.errors_behind(one, ranked[0]) <= CLEARLY]
        if number < self.plan.round:
            left, each, rest = self.clock.left(self.reserve()), self.seconds_of_trial(), range(number, self.plan.round)
            costs = (each * self.unfinished([one], rest) for one in [*ranked[:kept], *close])
            affordable = sum(total <= left for total in itertools.accumulate(costs))
            close = close[: max(0, affordable - kept)]
        return [*ranked[:kept], *close]

    def errors_behind(self, one: Candidate, best: Candidate) -> float:
        """By how many standard errors it is worse than the best, on the measurements that both have."""
        return errors_behind(self.values[best.name], self.values[one.name], self._examples, self.plan.division)

    def error_behind(self, one: Candidate, best: Candidate) -> float:
        """The standard error of the difference of both, on the measurements that both have."""
        return error_behind(self.values[best.name], self.values[one.name], self._examples, self.plan.division)

    @property
    def _examples(self) -> int | None:
        """Number of examples of one measurement, if the metric is the correct part of them."""
        return self.held_out if is_proportion(self.metric) else None

    def _best(self, entered: list[Candidate], number: int) -> list[Candidate]:
        """The candidates by the mean of their measurements, best first; of equal ones the middle of the grid first."""
        if not number:
            return entered
        middle = (len(self.plan.candidates) - 1) / 2
        sign = 1 if self.mode == "min" else -1

        def key(one: Candidate) -> tuple[float, float]:
            off = abs(self.plan.candidates.index(one) - middle)
            return round(sign * statistics.fmean(self.values[one.name]), 12), off

        return sorted(entered, key=key)


def metric_of(results: dict[str, Any]) -> str:
    """The metric by which candidates are compared: an accuracy, or else the loss; empty after a divergence."""
    measured = results.get("fit", {}).get("metrics", {})
    return next((name for name in METRICS if measured.get(name) is not None), LOSS if measured else "")


class _Shown(Progress):
    """The progress of one measurement of all candidates."""

    def __init__(self, race: Race, title: str, methods: list[str], trials: list[Trial], done: list[Trial]) -> None:
        super().__init__(title, methods, trials, done, race.metric or METRICS[0])

    def ended(self, trial: Trial, results: dict[str, Any]) -> None:
        self.metric = metric_of(results) or self.metric
        super().ended(trial, results)
