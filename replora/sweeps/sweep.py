"""Runs a sweep or a part of it: the first stage, the selection, the second stage. Started again, it continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from replora.errors import RepLoRAError
from replora.progress import table_console
from replora.reports.summary import format_metric
from replora.results import stored, write_json
from replora.sweeps.part import WHOLE, Part
from replora.sweeps.plan import Cell, Point, Stage, Sweep, Trial
from replora.sweeps.progress import Progress
from replora.sweeps.select import Per, Rule, Selection, select_points, selection_rule, write_rule
from replora.sweeps.state import LOCKS, claimed, holder_of, recorded
from replora.sweeps.trial import (
    TrialError,
    at_other_point,
    check_options,
    check_same_configuration,
    finished,
    set_aside_other_point,
)

if TYPE_CHECKING:
    from replora.sweeps.local_queue import LocalQueue
    from replora.sweeps.scheduler import Scheduler


class UnfinishedSweepError(RepLoRAError):
    """Some trials failed or were not started."""


def run_sweep(
    sweep: Sweep, home: Path, queue: Scheduler | LocalQueue, choice: Per | None = None, part: Part = WHOLE
) -> None:
    """Run the trials that are not finished yet.

    Args:
        sweep: The sweep, checked by `check_sweep`.
        home: Directory of the trials. A scheduler needs it alone (`locked`); local queues share it.
        queue: Runs the trials; a scheduler is entered already.
        choice: Whether sizes share a selected point. Default: as the directory records it, else each has its own.
        part: The trials to run. Default: all.

    Raises:
        RepLoRAError: A directory holds other trials, no cluster answers, or no point can be selected.
        UnfinishedSweepError: Trials failed too often; the others are finished.
    """
    (home / LOCKS).mkdir(parents=True, exist_ok=True)  # first, so that the directory is known as that of a sweep
    failures: dict[str, str] = {}
    compared: list[_Stage] = []  # whose records are not changed yet, as the next stage may refuse the directory
    rule = selection_rule(home, choice, sweep.select.source) if sweep.select else None
    if sweep.select and rule:
        if part.stage != "final":
            will_be = {"metric": sweep.select.metric, "mode": sweep.select.mode} | asdict(rule)
            labels = {cell: will_be | rule.elsewhere(cell, sweep) for cell in sweep.cells()}
            first = _compared(sweep, home, part, part.of(sweep.selection_trials()), labels)
            if first.left:
                _record(sweep, home, [first], rule)
            else:
                compared.append(first)
            failures |= _run_stage(queue, sweep, home, first)
        if part.stage != "select" or part.shard == (1, 1):
            found = selections_so_far(sweep, home, rule, part)
            if found or part == WHOLE:
                print_selections(sweep, found, part)
    if sweep.final and part.stage != "select":
        if rule:
            chosen = {cell: selection for cell, selection in found.items() if selection}
            lost = found.keys() - chosen.keys()
            planned = {trial.folder for trial in part.of(sweep.planned_final_trials()) if trial.cell not in lost}
            selected = sweep.final_trials({cell: choice.point for cell, choice in chosen.items()})
            finals = [trial for trial in selected if trial.folder in planned]
            labels = {cell: choice.describe() | rule.elsewhere(cell, sweep) for cell, choice in chosen.items()}
            waiting = planned - {trial.folder for trial in finals}
            if waiting and part.stage == "final":
                failures |= dict.fromkeys(sorted(waiting), "no point is selected yet")
            elif waiting and part != WHOLE:
                print(
                    f"{len(waiting)} final trials wait for a selection. The same command runs them later.",
                    flush=True,
                )
        else:
            finals, labels = part.of(sweep.only_trials()), {}
        compared.append(_compared(sweep, home, part, finals, labels))
    _record(sweep, home, compared, rule)
    if compared and compared[-1].name == "final":
        failures |= _run_stage(queue, sweep, home, compared[-1])
    if failures:
        listed = _listed([f"{folder}: {reason}" for folder, reason in failures.items()])
        raise UnfinishedSweepError(
            f"{len(failures)} trials failed:{listed}\nTheir error.txt and output.log in {home} say more. The "
            "same command tries them again, and repeats nothing that is finished."
        )


def check_sweep(trials: Sequence[Trial]) -> None:
    """Parse command lines that together contain every option of the trials, as one mistake would fail many of them.

    Of an axis of numbers only one point is parsed, of an axis of names every point.

    Raises:
        TrialError: An option is not valid, or the first stage would see test images.
    """
    seen: set[tuple[str, ...]] = set()
    for trial in trials:
        parts = {"method": trial.method, "task": _kinds(trial.task), "size": _kinds(trial.size)}
        found = {(trial.stage, name, text) for name, text in parts.items()}
        found.add((trial.stage, trial.method, _kinds(trial.grid)))
        if not found <= seen:
            check_options(trial)
            seen |= found


def _kinds(point: Point) -> str:
    return str({name: "number" if isinstance(v, int | float) else v for name, v in point.options.items()})


@dataclass(frozen=True)
class _Stage:
    """What is to be done in a stage, after its directories were compared with it.

    Attributes:
        name: The stage; None if it has no trial in this part.
        labels: `Trial.cell` -> its selection, as results name it; empty without a selection.
        done: Trials that have ended.
        left: Trials to run.
        former: Those to run whose directories hold a trial at another point than the selected one.
        relabeled: Those that have ended and name another selection, or a former file, and what they are to name.
    """

    name: Stage | None
    labels: Mapping[Cell, dict[str, Any]]
    done: list[Trial]
    left: list[Trial]
    former: list[Trial]
    relabeled: list[tuple[Trial, dict[str, Any]]]


def _compared(
    sweep: Sweep, home: Path, part: Part, trials: Sequence[Trial], labels: Mapping[Cell, dict[str, Any]]
) -> _Stage:
    """Compare the trials of a part in one stage with what their directories hold. Nothing is changed.

    Raises:
        TrialError: The directory holds trials with other options or defaults.
    """
    trials = part.left(home, trials)
    stage = _Stage(trials[0].stage if trials else None, labels, [], [], [], [])
    grids = {method.name: method.grid for method in sweep.methods}
    for trial in trials:
        if trial.stage == "final" and at_other_point(home, trial, grids[trial.method]):
            stage.former.append(trial)
            stage.left.append(trial)
        elif results := finished(home, trial):
            stage.done.append(trial)
            named = {"name": sweep.name} | ({"chosen_by": labels[trial.cell]} if trial.cell in labels else {})
            if results["sweep"] != results["sweep"] | named:
                stage.relabeled.append((trial, named))
        else:
            stage.left.append(trial)
    for method in dict.fromkeys(trial.method for trial in stage.left):
        # New trials must have the defaults of the finished ones, of which one is enough; the part may have none.
        if one := _finished_one(sweep, home, trials[0].stage, method):
            check_same_configuration(home, one)
    return stage


def _record(sweep: Sweep, home: Path, stages: Sequence[_Stage], rule: Rule | None) -> None:
    """Record the rule, set former final trials aside, and let finished trials name the sweep and selection of now."""
    grids = {method.name: method.grid for method in sweep.methods}
    if rule and any(stage.name for stage in stages):
        write_rule(home, rule)
    for stage in stages:
        for trial in stage.former:
            _set_aside_other_point(home, trial, grids[trial.method])
        for trial, named in stage.relabeled:
            _relabel(home, trial, named)


def _run_stage(queue: Scheduler | LocalQueue, sweep: Sweep, home: Path, stage: _Stage) -> dict[str, str]:
    """Run the trials of a stage that are left. Returns directory -> reason of each trial that failed."""
    done, left = stage.done, stage.left
    there = {trial.method for trial in (*done, *left)}
    if not there:
        return {}
    names = [method.name for method in sweep.methods if method.name in there]
    metric = sweep.select.metric if sweep.select else None
    metric = metric.replace("val/", "test/", 1) if metric and stage.name == "final" else metric
    with Progress(f"{sweep.name}, {stage.name}", names, left, done, metric) as progress:
        if done:
            progress.console.print(f"{stage.name}: {len(done)} of {len(done) + len(left)} trials are finished already")
        if left:
            labels = [stage.labels.get(trial.cell) for trial in left]
            queue.run(home, sweep.name, left, labels, progress)
    missing = [trial for trial in left if not finished(home, trial)]
    others = {trial.folder: holder for trial in missing if (holder := holder_of(home, trial))}
    for folder, holder in others.items():
        print(f"{folder} is being run by {holder}", flush=True)
    missing = [trial for trial in missing if trial.folder not in others]
    return {trial.folder: progress.failures.get(trial.folder, "was not reached") for trial in missing}


def selections_so_far(sweep: Sweep, home: Path, rule: Rule, part: Part = WHOLE) -> dict[Cell, Selection | None]:
    """`Trial.cell` -> selection, for the cells of the part whose deciding trials of the first stage have all ended.

    It is None where each point of the grid has a run that diverged. Prints these cells, and the missing trials of the
    other ones: without them a grid would have fewer points than the other grids.
    """
    found, missing = _selections(sweep, home, rule, part)
    count = sum(part.has(cell) for cell in sweep.cells())
    if missing:
        print(
            f"Nothing is chosen, and no final trial starts, for {count - len(found)} of {count} combinations of "
            f"method, task and size, because trials of their grids did not end:{_listed(missing)}",
            flush=True,
        )
    if lost := [", ".join(filter(None, cell)) for cell, selection in found.items() if selection is None]:
        print(
            f"No point is left for {len(lost)} of {count} combinations of method, task and size, which have no final "
            f"trial: each point of their grids has a run that diverged.{_listed(lost)}",
            flush=True,
        )
    return found


def _selections(sweep: Sweep, home: Path, rule: Rule, part: Part) -> tuple[dict[Cell, Selection | None], Sequence[str]]:
    """What `selections_so_far` returns, and the directories of the missing trials."""
    assert sweep.select is not None
    cells = sweep.cells()
    deciding = {cell: rule.deciding(cell, cells) for cell in cells if part.has(cell)}
    needed = set[Cell]().union(*deciding.values())
    trials = [trial for trial in sweep.selection_trials() if trial.cell in needed or part.has(trial.cell)]
    results = [(trial, finished(home, trial)) for trial in trials]
    missing = [trial for trial, result in results if result is None and trial.cell in needed]
    lacking = {trial.cell for trial in missing}
    chosen = select_points(sweep.select, results, rule)
    ready = {cell: chosen.get(cell) for cell, others in deciding.items() if lacking.isdisjoint(others)}
    return ready, [trial.folder for trial in missing]


def _listed(names: Sequence[str]) -> str:
    more = f"\n  and {len(names) - 10} more" if len(names) > 10 else ""
    return "".join(f"\n  {name}" for name in names[:10]) + more


def without_point(sweep: Sweep, home: Path, choice: Per | None = None) -> set[Cell]:
    """The cells that have no final trial, because each point of their grids has a run that diverged.

    None are known in a directory that the sweep is refused in.
    """
    if sweep.select and sweep.final:
        with suppress(RepLoRAError):
            found, _ = _selections(sweep, home, selection_rule(home, choice, sweep.select.source), WHOLE)
            return {cell for cell, selection in found.items() if selection is None}
    return set()


def has_ended(sweep: Sweep, home: Path, choice: Per | None = None) -> bool:
    """Whether no trial of the sweep is left to run or running."""
    left = [trial for trial in WHOLE.planned(sweep) if recorded(home, trial) is None]
    if any(trial.stage == "select" for trial in left):
        return False
    return not left or {trial.cell for trial in left} <= without_point(sweep, home, choice)


def _finished_one(sweep: Sweep, home: Path, stage: Stage, method: str) -> Trial | None:
    """A finished trial of a method with its configuration, at the point that it has been run at; None if none has it.

    One with other options, which the whole sweep would be refused for, is left to the part that it belongs to.
    """
    (grid,) = (one.grid for one in sweep.methods if one.name == method)
    for trial in sweep.selection_trials() if stage == "select" else sweep.planned_final_trials():
        if trial.method == method and (home / trial.folder / "fit.yaml").is_file() and (there := recorded(home, trial)):
            of_point = [{trial.cell: point} for point in grid if point.options == there["sweep"].get("grid")]
            at_point = [one for selected in of_point for one in sweep.final_trials(selected)]
            for one in [trial] if stage == "select" else at_point:
                with suppress(TrialError):
                    if one.folder == trial.folder and finished(home, one):
                        return one
    return None


def _set_aside_other_point(home: Path, trial: Trial, grid: Sequence[Point]) -> None:
    with claimed(home, trial) as mine:
        moved = set_aside_other_point(home, trial, grid) if mine else None
    if moved:
        print(f"{trial.folder}: {trial.grid.name} is chosen now; the former choice's is {moved}", flush=True)


def _relabel(home: Path, trial: Trial, named: Mapping[str, Any]) -> None:
    """Let a finished trial name the sweep and the selection of now: reports go by them.

    The file may have been renamed. More seeds, another rule for sizes, or other tasks may select the same point by
    other means. The first stage is the same for every rule.
    """
    with claimed(home, trial) as mine:
        if mine and (results := finished(home, trial)):
            write_json(home / trial.folder / "results.json", stored(results | {"sweep": results["sweep"] | named}))


def print_selections(sweep: Sweep, found: Mapping[Cell, Selection | None], part: Part) -> None:
    """Print one row per method, task and size of the part. Ties, noise and edges of a grid are marked."""
    if all(len(method.grid) == 1 for method in sweep.methods):
        return
    elsewhere = " of the other tasks" if sweep.select and sweep.select.source == "other_tasks" else ""
    table = Table(title=f"chosen on the validation images{elsewhere}", title_style="bold", title_justify="left")
    for column in ("task", "size", "method", "chosen", "mean"):
        table.add_column(column, no_wrap=column == "method")
    for cell in filter(part.has, sweep.cells()):
        method, task, size = cell
        choice = found.get(cell)
        if choice is None:
            why = "every point diverged" if cell in found else "trials are missing"
            table.add_row(task, size, method, f"nothing: {why}", "")
            continue
        assert sweep.select is not None
        mean = format_metric(sweep.select.metric, choice.mean)
        table.add_row(task, size, method, choice.point.name + choice.remarks(), mean)
    table_console().print(table)
