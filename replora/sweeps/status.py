"""Shows what has become of the trials, to any process that sees the directory, for `--list` and `--status`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from rich.table import Table

from replora.progress import table_console
from replora.sweeps.part import WHOLE
from replora.sweeps.plan import Cell, Sweep, Trial
from replora.sweeps.state import State, holder_of, state_of
from replora.sweeps.trial import reason_of_failure


def show_list(home: Path, sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Print the number in the sweep, the state and the directory of each trial, for `--list`."""
    shown = {trial.folder for trial in trials}
    numbered = enumerate(WHOLE.planned(sweep), start=1)
    for number, trial in numbered:
        if trial.folder in shown:
            print(f"{number:>5}  {state_of(home, trial):<7}  {trial.folder}")


def show_status(home: Path, trials: Sequence[Trial], lost: Iterable[Cell] = ()) -> None:
    """Print how many trials of each stage are done, running, failed and waiting, for `--status`.

    Args:
        home: Directory of the sweep, which need not exist.
        trials: Trials of both stages.
        lost: Cells that have no final trial, because each point of their grids has a run that diverged.
    """
    states = {trial.folder: state_of(home, trial) for trial in trials}
    title = str(home) if home.is_dir() else f"{home} does not exist yet"
    table = Table(title=title, title_style="bold", title_justify="left")
    table.add_column("stage")
    for state in get_args(State):
        table.add_column(state, justify="right")
    for stage in dict.fromkeys(trial.stage for trial in trials):
        found = [states[trial.folder] for trial in trials if trial.stage == stage]
        table.add_row(stage, *(str(found.count(state)) for state in get_args(State)))
    table_console().print(table)
    for trial in trials:
        if states[trial.folder] == "running":
            print(f"running: {trial.folder}, {holder_of(home, trial) or 'ended just now'}")
        elif states[trial.folder] == "failed":
            print(f"failed: {trial.folder}: {reason_of_failure(home, trial)}")
    for cell in sorted(lost):
        print(f"no final trial: {', '.join(filter(None, cell))}: each point of its grid has a run that diverged")
