"""`replora-cli sweep`: many runs from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from replora.errors import RepLoRAError
from replora.io import check_output
from replora.memory import usable_cpus
from replora.run_directory import LOCK, files_named

if TYPE_CHECKING:
    from replora.sweeps.executor import Cluster
    from replora.sweeps.plan import Sweep


def sweep(
    config: str,
    out: Path | None = None,
    options: dict[str, Any] | None = None,
    dry_run: bool = False,
    address: str | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    max_concurrent: int | None = None,
    workers: int | None = None,
    max_failures: int = 1,
    select_seeds: int | None = None,
    choice: Literal["per_size", "per_method"] | None = None,
    source: Literal["own_task", "other_tasks"] | None = None,
    make_report: bool = True,
    methods: list[str] | None = None,
    tasks: list[str] | None = None,
    sizes: list[str | int | float] | None = None,
    only_these: bool = False,
    stage: Literal["select", "final"] | None = None,
    retry_failed: bool = False,
    shard: str | None = None,
    trial: str | None = None,
    list: bool = False,
    status: bool = False,
) -> None:
    """Run methods, tasks, training set sizes, grids and seeds against each other.

        replora-cli sweep --config sweep/quickstart_low_data.yaml
        replora-cli sweep --config sweep/quickstart_low_data.yaml --workers 4
        replora-cli sweep --config sweep/vtab_low_data.yaml --options '{"data.root": "vtab-1k"}' --gpus_per_trial 0.5
        replora-cli sweep --config sweep/digits_low_data.yaml --shard "$SLURM_ARRAY_TASK_ID/8"
        replora-cli sweep --config sweep/digits_low_data.yaml --status true

    Every trial is a run of fit in its own directory. After an interruption, the same command continues the sweep and
    repeats nothing that is finished. A sweep ends with a page of curves and tables (replora-cli report). docs/sweeps.md
    describes the file.

    Args:
        config: File of the sweep: a local file or one that ships with the package.
        out: Directory of the trials; on a cluster, a path that all machines share. Default: runs/NAME.
        options: Additional options of every trial, as on the command line of fit without the dashes.
        dry_run: Print the trials and their expected cost, and run nothing.
        address: Address of a Ray cluster, HOST:PORT or auto. Default: this machine alone.
        cpus_per_trial: Number of CPU cores per trial (>= 0.01).
        gpus_per_trial: Number of GPUs per trial (>= 0); with 0.5, two trials share one GPU. The base configuration of
            the sweep must then train on a GPU.
        max_concurrent: Largest number of trials at the same time. Default: as many as the machines have room for.
        workers: Number of processes of this machine that run the trials, without Ray and without GPUs of their own
            (>= 1). Default: with Ray, as many as there is room for.
        max_failures: How often a failed trial is retried (>= 0).
        select_seeds: Number of seeds by whose mean options are selected (>= 1): those of the file, then the next whole
            numbers. With one seed and few validation images a selection is mostly noise; 3 triples the cost of the
            first stage. Default: the seeds of the file.
        choice: Whether each size has its own selected point, or each method and task one point for all sizes. Default:
            as the directory of the sweep records it, else per_size.
        source: Whether the point of a task is selected by its own runs, or by those of all other tasks, which leaves
            the validation labels of the task alone. Default: that of the file.
        make_report: Whether to end with a report in OUT/report. After failures it covers the finished trials. With
            --shard or --trial it is made by the process after which no trial is left.
        methods: Names of the only methods to run, such as [LoRA,RepLoRA]. Default: all.
        tasks: The only tasks to run, such as [dtd,eurosat]. Default: all.
        sizes: The only sizes of training sets to run, such as [0.01,0.1]. Default: all.
        only_these: Treat what --methods, --tasks and --sizes name as the whole sweep, also for the numbers of --trial.
            Without it, what they leave out is to be run as well: a selection over several tasks or sizes waits for it.
        stage: The only stage to run. Default: both.
        retry_failed: Run only the trials that failed before. Without it, they are run with all others that are left.
        shard: i/n, such as 2/8: run every 8th trial of a stage from the 2nd on, in this process and without Ray. 1/1
            means all trials. Any number of processes may share a directory: what one runs, the others leave out.
        trial: Number or directory of the only trial to run, as --list shows them; in this process and without Ray.
        list: Print the number, state and directory of each trial, and run nothing.
        status: Print how many trials are done, running, failed and waiting, and run nothing.
    """
    from replora.sweeps.slurm import drop_task_variables

    drop_task_variables()  # before anything imports Lightning
    from replora.config_files import find_config
    from replora.reports.runs import ReportError
    from replora.run_directory import locked_workplace
    from replora.sweeps.part import Part, find_trial, named_cells, only_named, parse_shard
    from replora.sweeps.state import recorded
    from replora.sweeps.sweep import UnfinishedSweepError, check_sweep, has_ended, run_sweep, without_point
    from replora.sweeps.sweep_file import read_sweep
    from replora.sweeps.trial import check_options

    _at_least(0, max_failures=max_failures, gpus_per_trial=gpus_per_trial)
    _at_least(0.01, cpus_per_trial=cpus_per_trial)
    _at_least(1, max_concurrent=max_concurrent, workers=workers, select_seeds=select_seeds)
    _not_together(dry_run=dry_run, list=list, status=status, trial=trial, shard=None if list else shard)
    _not_together(address=address, trial=trial, shard=shard)
    others: dict[str, Any] = {"address": address, "max_concurrent": max_concurrent, "trial": trial, "shard": shard}
    for name, value in others.items():
        _not_together(workers=workers, **{name: value})
    if workers and gpus_per_trial:
        raise RepLoRAError(
            "--workers cannot be combined with --gpus_per_trial: which GPU a trial has is decided by Ray. Leave "
            "--workers out; --max_concurrent limits the number of trials."
        )
    named: dict[str, Any] = {"methods": methods, "tasks": tasks, "sizes": sizes}
    parts = {"stage": stage, "retry_failed": retry_failed} | ({} if only_these else named)
    for name, value in parts.items():
        _not_together(trial=trial, **{name: value})
    plan = read_sweep(find_config(config), options, source)
    if only_these:
        if methods is tasks is sizes is None:
            raise RepLoRAError("--only_these names nothing. Add --methods, --tasks or --sizes, or leave it out.")
        plan = only_named(plan, methods, tasks, sizes)
        methods = tasks = sizes = None
    home = out or Path("runs") / plan.name
    if select_seeds is not None:
        plan = plan.with_select_seeds(select_seeds)
    if stage and not getattr(plan, stage):
        raise RepLoRAError(f"--stage {stage}: {config} has no such stage.")
    if trial is None:
        of_all = (1, 1) if shard is None else parse_shard(shard)
        part = Part(stage, of_all, failed=retry_failed, cells=named_cells(plan, methods, tasks, sizes))
    else:
        one = find_trial(plan, trial)
        part = Part(one.stage, folder=one.folder)
    asked = Part(cells=part.cells).planned(plan)
    if list or status:
        from replora.sweeps.status import show_list, show_status

        lost = without_point(plan, home, choice)
        shown = part.left(home, part.planned(plan, lost))
        show_list(home, plan, shown) if list else show_status(home, shown, filter(part.has, lost))
        return
    scheduled = trial is None and shard is None and not dry_run
    if not scheduled:
        check_sweep(asked) if trial is None else check_options(one)
    check_output(home, None, [Path(config)], folder=True, is_own=_is_sweep)
    if dry_run:
        from replora.sweeps.cost import describe_plan

        room = (workers, "") if workers else _trials_at_once(address, cpus_per_trial, gpus_per_trial, max_concurrent)
        lost = without_point(plan, home, choice)
        print(describe_plan(plan, home, *room, part=part, gpus_per_trial=gpus_per_trial, lost=lost))
    elif scheduled:
        remedy = "Wait until it ends, stop it, or choose another directory with --out."
        with locked_workplace(home, "A sweep", remedy):
            failure = None
            left = [one for one in part.left(home, part.planned(plan)) if recorded(home, one) is None]
            if workers:
                from replora.sweeps.local_workers import LocalWorkers

                threads = max(1, round(cpus_per_trial))
                scheduler: LocalWorkers | Cluster = LocalWorkers(workers, threads, max_failures, len(left))
            else:
                from replora.sweeps.executor import Cluster, Resources

                resources = Resources(cpus_per_trial, gpus_per_trial, max_concurrent, max_failures)
                scheduler = Cluster(address, resources, len(left))
            with scheduler:
                check_sweep(asked)
                try:
                    run_sweep(plan, home, scheduler, choice, part)
                except UnfinishedSweepError as error:
                    failure = error
            if make_report and any(files_named("results.json", home)):
                try:
                    _report(plan, home)
                except ReportError as error:
                    if failure is None:
                        raise
                    print(f"There is no report: {error}", file=sys.stderr)  # the failures are why
            if failure:
                raise failure
    else:
        from replora.sweeps.local_queue import LocalQueue

        run_sweep(plan, home, LocalQueue(max(1, round(cpus_per_trial)), max_failures), choice, part)
        if make_report and has_ended(plan, home, choice):
            _report(plan, home)


def _report(sweep: Sweep, home: Path) -> None:
    from replora.reports.report import write_report
    from replora.sweeps.part import WHOLE

    files = write_report([home], home / "report", {trial.folder for trial in WHOLE.planned(sweep)})
    print(f"report: {files[1]}")


def _is_sweep(home: Path) -> bool:
    from replora.sweeps.state import LOCKS

    return (home / LOCK).exists() or (home / LOCKS).exists() or any(files_named("trial.json", home))


def _trials_at_once(
    address: str | None, cpus_per_trial: float, gpus_per_trial: float, most: int | None
) -> tuple[int | None, str]:
    """Number of trials that there is room for, None if it is not known, and the reason why not."""
    if address is not None:
        return most, f"the number of trials that the cluster at {address} has room for is not known yet"
    room = int(usable_cpus() / cpus_per_trial)
    if gpus_per_trial:
        from torch import cuda

        if not cuda.is_available():
            return most, "this machine has no GPU, and the number of GPUs that trials will have is not known"
        room = min(room, int(cuda.device_count() / gpus_per_trial))
    return max(1, min(room, most or room)), ""


def _at_least(least: float, **options: float | None) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            raise RepLoRAError(f"--{name} {value:g} is too small. It must be at least {least:g}.")


def _not_together(**options: Any) -> None:
    given = [f"--{name}" for name, value in options.items() if value not in (None, False)]
    if len(given) > 1:
        raise RepLoRAError(f"{given[0]} cannot be combined with {' and '.join(given[1:])}. Leave one of them out.")
