"""Hands out trials to workers and tries again what failed, whatever starts the workers."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError
from replora.sweeps.plan import Trial
from replora.sweeps.progress import Progress
from replora.sweeps.state import claimed
from replora.sweeps.trial import leave_reason, run_trial

Outcome = tuple[dict[str, Any] | None, str, list[str]]  # results or None, why it failed, and what was corrupt before


@dataclass
class Job:
    """A trial in the queue.

    Attributes:
        trial: The trial.
        rule: Rule of its selection.
        failures: How often it has failed.
        at_once: Largest number of trials while it runs, itself included; None for no limit of its own.
    """

    trial: Trial
    rule: dict[str, Any] | None
    failures: int = 0
    at_once: int | None = None


class Scheduler(ABC):
    """Runs trials in workers, which are processes that run one trial after the other.

    Args:
        failures: How often a failed trial is retried (>= 0).
    """

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def run(
        self,
        home: Path,
        sweep: str,
        trials: Sequence[Trial],
        rules: Sequence[dict[str, Any] | None],
        progress: Progress,
    ) -> None:
        """Run each trial until it has ended or failed too often. Trials start in the order of the list.

        A trial that failed is retried after the others, with half as many at the same time as when it failed, because
        what kills a process is most often a lack of memory.

        Args:
            home: Directory of the sweep; the same path on every machine.
            sweep: Name of the sweep.
            trials: Trials to run.
            rules: Rule by which each trial's point was or will be selected; None without a selection.
            progress: Receives the events.

        Raises:
            RepLoRAError: No machine has room for a trial any more.
        """
        waiting = deque(Job(trial, rule) for trial, rule in zip(trials, rules, strict=True))
        running: dict[Any, Job] = {}
        while waiting or running:
            while waiting and len(running) < self._room([waiting[0], *running.values()]):
                job = waiting.popleft()
                running[self.start(home, sweep, job)] = job
                progress.started(job.trial)
            for one in self.wait():
                at_once = len(running)
                job = running.pop(one)
                results, reason, notes = self.outcome(one)
                for note in notes:
                    progress.noted(job.trial, note)
                if results is not None:
                    progress.ended(job.trial, results)
                    continue
                job.failures += 1
                if job.failures > self.failures:
                    with suppress(OSError), claimed(home, job.trial) as mine:  # a full disk fails no other trial
                        if mine:
                            leave_reason(home, job.trial, reason)
                    progress.failed(job.trial, reason)
                else:
                    job.at_once = max(1, at_once // 2)
                    waiting.append(job)
                    progress.retried(job.trial, reason, job.at_once)

    def _room(self, jobs: Sequence[Job]) -> int:
        """How many trials may run at the same time, if these are among them."""
        return min([self.capacity(), *(job.at_once for job in jobs if job.at_once is not None)])

    @abstractmethod
    def start(self, home: Path, sweep: str, job: Job) -> Any:
        """Let an idle or a new worker run a trial; what `wait` and `outcome` know it by."""

    @abstractmethod
    def wait(self) -> list[Any]:
        """The running trials that have ended, by what `start` returned. It may return none after a while."""

    @abstractmethod
    def outcome(self, running: Any) -> Outcome:
        """What became of a trial that has ended. Its worker is idle then, or gone if the trial failed."""

    @abstractmethod
    def capacity(self) -> int:
        """How many trials there are workers, or room for workers, for."""


def run_in_worker(cwd: Path, home: Path, sweep: str, trial: Trial, rule: dict[str, Any] | None) -> Outcome:
    """Run a trial in the process of a worker.

    Args:
        cwd: Directory in which the sweep was started, to which relative paths refer.
        home: Directory of the sweep.
        sweep: Name of the sweep.
        trial: The trial.
        rule: Rule of its selection.
    """
    import torch  # not for a plan that is only checked

    notes: list[str] = []
    try:
        if cwd.is_dir():
            os.chdir(cwd)
        elif not home.is_absolute():
            raise RepLoRAError(
                f"{cwd} does not exist on {platform.node()}, so {home} has no place there. On a cluster give --out as "
                "a path that all machines share."
            )
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        with claimed(home, trial, wait=True):  # what another process runs is finished after it
            return run_trial(home, sweep, trial, rule, notes.append), "", notes
    except Exception as error:  # an error of a library may not survive the way to the other process
        return None, (str(error).strip() or type(error).__name__).splitlines()[0], notes
