"""Which trials of a sweep one process is asked to run: a stage, a shard, a single trial, the failed ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from replora.errors import nearest
from replora.sweeps.plan import Stage, Sweep, Trial
from replora.sweeps.state import state_of
from replora.sweeps.sweep_file import SweepError


@dataclass(frozen=True)
class Part:
    """A part of a sweep; by default the whole of it.

    Attributes:
        stage: The only stage to run; None for both.
        shard: `(i, n)`: every n-th trial of a stage, from the i-th on.
        folder: Directory of the only trial to run; None for all.
        failed: Whether only trials that have failed before are run.
    """

    stage: Stage | None = None
    shard: tuple[int, int] = (1, 1)
    folder: str | None = None
    failed: bool = False

    def of(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials of the part, from all trials of one stage: the same in every process."""
        number, count = self.shard
        return [trial for trial in trials[number - 1 :: count] if self.folder in (None, trial.folder)]

    def left(self, home: Path, trials: Sequence[Trial]) -> list[Trial]:
        """Those of these trials that the part does not leave out for their state."""
        return [trial for trial in trials if not self.failed or state_of(home, trial) == "failed"]

    def planned(self, sweep: Sweep) -> list[Trial]:
        """The trials of the part in both stages, with those of the second at `ONLY` before points are selected."""
        finals = sweep.planned_final_trials() if sweep.select else sweep.only_trials()
        stages = {"select": sweep.selection_trials(), "final": finals}
        return [one for stage, trials in stages.items() if self.stage in (None, stage) for one in self.of(trials)]


def find_trial(sweep: Sweep, name: str) -> Trial:
    """The trial with a number or a directory.

    Args:
        sweep: The sweep.
        name: Number from 1 in the order of `Part().planned`, or directory below that of the sweep.

    Raises:
        SweepError: There is none.
    """
    trials = Part().planned(sweep)
    if re.fullmatch(r"[+-]?\d+", name):
        if 1 <= int(name) <= len(trials):
            return trials[int(name) - 1]
        raise SweepError(f"--trial {name}: the trials have the numbers 1 to {len(trials)}, which --list true shows.")
    wanted = name.strip("/")
    found = [trial for trial in trials if trial.folder == wanted]
    if not found:
        close = nearest(wanted, [trial.folder for trial in trials])
        raise SweepError(f"--trial {name}: there is no such trial. {close} --list true shows all {len(trials)}.")
    return found[0]


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8).

    Raises:
        SweepError: It is not of this form, or the first number is not between 1 and the second.
    """
    form = re.fullmatch(r"(\d+)/(\d+)", text)
    if form is None:
        raise SweepError(f"--shard {text} is not of the form i/n, such as 2/8 for the second of eight shards.")
    number, count = int(form[1]), int(form[2])
    if not 1 <= number <= count:
        valid = f"1/{count} to {count}/{count}" if count else "1/1"
        hint = f" Number the tasks of a job array from 1: --array=1-{count}." if number == 0 and count else ""
        raise SweepError(f"--shard {text} is out of range: it must be {valid}.{hint}")
    return number, count
