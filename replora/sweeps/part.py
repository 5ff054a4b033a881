"""Which trials of a sweep one process is asked to run: some methods, tasks or sizes, a stage, a shard, a single one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from replora.errors import nearest
from replora.sweeps.plan import ONLY, Cell, Point, Stage, Sweep, Trial, shown
from replora.sweeps.state import state_of
from replora.sweeps.sweep_file import SweepError, check_tasks


@dataclass(frozen=True)
class Part:
    """A part of a sweep; by default the whole of it.

    Attributes:
        stage: The only stage to run; None for both.
        shard: `(i, n)`: every n-th trial of a stage, from the i-th on.
        folder: Directory of the only trial to run; None for all.
        failed: Whether only trials that have failed before are run.
        cells: `Trial.cell` of the only trials to run; None for all.
    """

    stage: Stage | None = None
    shard: tuple[int, int] = (1, 1)
    folder: str | None = None
    failed: bool = False
    cells: frozenset[Cell] | None = None

    def has(self, cell: Cell) -> bool:
        """Whether trials of the cell belong to the part."""
        return self.cells is None or cell in self.cells

    def of(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials of the part, from all trials of one stage: the same in every process."""
        number, count = self.shard
        of_cells = [trial for trial in trials if self.has(trial.cell)]
        return [trial for trial in of_cells[number - 1 :: count] if self.folder in (None, trial.folder)]

    def left(self, home: Path, trials: Sequence[Trial]) -> list[Trial]:
        """Those of these trials that the part does not leave out for their state."""
        return [trial for trial in trials if not self.failed or state_of(home, trial) == "failed"]

    def planned(self, sweep: Sweep, lost: Collection[Cell] = ()) -> list[Trial]:
        """The trials of the part in both stages, with those of the second at `ONLY` before points are selected.

        Args:
            sweep: The sweep.
            lost: Cells that have no final trial, because each point of their grids has a run that diverged.
        """
        finals = sweep.planned_final_trials() if sweep.select else sweep.only_trials()
        stages = {
            "select": self.of(sweep.selection_trials()),
            "final": [trial for trial in self.of(finals) if trial.cell not in lost],
        }
        return [one for stage, trials in stages.items() if self.stage in (None, stage) for one in trials]


WHOLE = Part()


def named_cells(
    sweep: Sweep,
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    sizes: Sequence[str | float] | None = None,
) -> frozenset[Cell] | None:
    """`Trial.cell` of these methods, tasks and sizes; None if all three are None.

    A point of an axis goes by its value, such as `dtd` or `0.1`, or by its name in tables, such as
    `train_fraction=0.1`.

    Raises:
        SweepError: A list is empty, or the sweep has nothing of that name.
    """
    if methods is tasks is sizes is None:
        return None
    return frozenset(itertools.product(*_names(sweep, methods, tasks, sizes)))


def only_named(
    sweep: Sweep,
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    sizes: Sequence[str | float] | None = None,
) -> Sweep:
    """The sweep of these methods, tasks and sizes alone: unlike in a `Part`, no others take part in a selection.

    Raises:
        SweepError: A list is empty, the sweep has nothing of that name, or too few tasks remain to select for each
            other.
    """
    of_methods, of_tasks, of_sizes = _names(sweep, methods, tasks, sizes)
    small = replace(
        sweep,
        methods=[method for method in sweep.methods if method.name in of_methods],
        tasks=[task for task in sweep.tasks if task.name in of_tasks],
        sizes=[size for size in sweep.sizes if size.name in of_sizes],
    )
    check_tasks("--only_these", small)
    return small


def _names(
    sweep: Sweep, methods: Sequence[str] | None, tasks: Sequence[str] | None, sizes: Sequence[str | float] | None
) -> tuple[list[str], list[str], list[str]]:
    return (
        _named(sweep, "method", methods, {method.name: method.name for method in sweep.methods}),
        _named(sweep, "task", tasks, _spellings(sweep.tasks)),
        _named(sweep, "size", sizes, _spellings(sweep.sizes)),
    )


def _named(sweep: Sweep, kind: str, wanted: Sequence[str | float] | None, spellings: Mapping[str, str]) -> list[str]:
    """The names of what the option --methods, --tasks or --sizes wants; all names if nothing is said."""
    if wanted is None:
        return list(spellings.values())
    if list(spellings) == [ONLY.name]:
        raise SweepError(f"--{kind}s: the sweep {sweep.name!r} has no axis {kind}s. Leave the option out.")
    known = list(spellings)
    if not wanted:
        raise SweepError(f"--{kind}s names no {kind}. {nearest('', known)}")
    texts = [shown(value) for value in wanted]
    found = {**spellings, **{name: name for name in spellings.values()}}
    for text in texts:
        if text not in found:
            raise SweepError(f"--{kind}s: the sweep {sweep.name!r} has no {kind} {text!r}. {nearest(text, known)}")
    return [found[text] for text in texts]


def _spellings(points: Sequence[Point]) -> dict[str, str]:
    """Value of a point, such as `dtd`, `0.1`, or `ARC-Easy` for `tasks=["ARC-Easy"]` -> its name.

    A value that two points share, such as `shots=1` and `train_fraction=1`, would not tell them apart: their names do.
    """
    values = [re.sub(r'^\["([^"]*)"\]$', r"\1", point.name.partition("=")[2]) for point in points]
    return {
        value if values.count(value) == 1 and "=" not in value else point.name: point.name
        for value, point in zip(values, points, strict=True)
    }


def find_trial(sweep: Sweep, name: str) -> Trial:
    """The trial with a number or a directory.

    Args:
        sweep: The sweep.
        name: Number from 1 in the order of `WHOLE.planned`, or directory below that of the sweep.

    Raises:
        SweepError: There is none.
    """
    trials = WHOLE.planned(sweep)
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
