"""Runs trials one after the other in this process, without Ray, beside any number of other processes.

Each trial is run under its lock (`state.py`). Processes that share the directory therefore also share the trials: what
one of them runs or has finished, the others leave out.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replora.sweeps.plan import Trial
from replora.sweeps.progress import Progress
from replora.sweeps.state import claimed
from replora.sweeps.trial import TrialError, finished, leave_reason, reason_of_failure, run_trial


@dataclass(frozen=True)
class LocalQueue:
    """Runs trials in this process.

    Attributes:
        threads: CPU threads of a trial, unless OMP_NUM_THREADS is set.
        failures: How often a failed trial is retried.
    """

    threads: int
    failures: int

    def run(
        self,
        home: Path,
        sweep: str,
        trials: Sequence[Trial],
        rules: Sequence[dict[str, Any] | None],
        progress: Progress,
    ) -> None:
        """Run each trial until it has ended or failed too often, in the order of the list.

        Returns when the only trials left are those that other processes run.

        Args:
            home: Directory of the sweep.
            sweep: Name of the sweep.
            trials: Trials to run.
            rules: Rule by which each trial's point was or will be selected; None without a selection.
            progress: Receives the events.

        Raises:
            KeyboardInterrupt: Ctrl-C ended a trial.
            SystemExit: SIGTERM ended a trial.
        """
        import torch  # not for a list or the status of trials

        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(self.threads)
        earlier = {trial.folder: _time_of_error(home, trial) for trial in trials}
        left = list(zip(trials, rules, strict=True))
        while left:
            elsewhere = []
            for trial, rule in left:
                with claimed(home, trial) as mine:
                    if not mine:
                        elsewhere.append((trial, rule))
                    elif _time_of_error(home, trial) != earlier[trial.folder] and finished(home, trial) is None:
                        progress.failed(trial, reason_of_failure(home, trial))  # in another process, meanwhile
                    else:
                        self._run(home, sweep, trial, rule, progress)
            if len(elsewhere) == len(left):
                return
            left = elsewhere

    def _run(self, home: Path, sweep: str, trial: Trial, rule: dict[str, Any] | None, progress: Progress) -> None:
        progress.started(trial)
        for _ in range(self.failures + 1):
            try:
                results = run_trial(home, sweep, trial, rule, lambda note: progress.noted(trial, note))
            except Exception as error:
                if isinstance(error, TrialError) and isinstance(error.__cause__, SystemExit):
                    _stop_if_signaled(error.__cause__)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            else:
                progress.ended(trial, results)
                return
        leave_reason(home, trial, reason)
        progress.failed(trial, reason)


def _stop_if_signaled(ended: SystemExit) -> None:
    """Stop the whole queue where a signal ended the trial: nothing else begins."""
    if ended.code == 128 + signal.SIGINT:
        raise KeyboardInterrupt from ended
    if ended.code == 128 + signal.SIGTERM:
        raise ended


def _time_of_error(home: Path, trial: Trial) -> int | None:
    """When the trial has failed last; None if it has not."""
    try:
        return (home / trial.folder / "error.txt").stat().st_mtime_ns
    except FileNotFoundError:
        return None
