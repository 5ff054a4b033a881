"""`replora-cli sweep`: many runs from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from replora.errors import RepLoRAError
from replora.io import check_output
from replora.memory import usable_cpus
from replora.run_directory import LOCK


def sweep(
    config: str,
    out: Path | None = None,
    options: dict[str, Any] | None = None,
    dry_run: bool = False,
    address: str | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    max_concurrent: int | None = None,
    max_failures: int = 1,
    select_seeds: int | None = None,
    choice: Literal["per_size", "per_method"] | None = None,
    make_report: bool = True,
) -> None:
    """Run methods, tasks, training set sizes, grids and seeds against each other.

        replora-cli sweep --config sweep/quickstart_low_data.yaml
        replora-cli sweep --config sweep/vtab_low_data.yaml --options '{"data.root": "vtab-1k"}' --gpus_per_trial 0.5

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
        max_failures: How often a failed trial is retried (>= 0).
        select_seeds: Number of seeds by whose mean options are selected (>= 1): those of the file, then the next whole
            numbers. With one seed and few validation images a selection is mostly noise; 3 triples the cost of the
            first stage. Default: the seeds of the file.
        choice: Whether each size has its own selected point, or each method and task one point for all sizes. Default:
            as the directory of the sweep records it, else per_size.
        make_report: Whether to end with a report in OUT/report. After failures it covers the finished trials.
    """
    from replora.config_files import find_config
    from replora.run_directory import left_as_found, locked
    from replora.sweeps.progress import describe_plan
    from replora.sweeps.sweep import UnfinishedSweepError, check_sweep, run_sweep
    from replora.sweeps.sweep_file import read_sweep

    plan = read_sweep(find_config(config), options)
    home = out or Path("runs") / plan.name
    _at_least(0, max_failures=max_failures, gpus_per_trial=gpus_per_trial)
    _at_least(0.01, cpus_per_trial=cpus_per_trial, max_concurrent=max_concurrent)
    _at_least(1, select_seeds=select_seeds)
    if select_seeds is not None:
        plan = plan.with_select_seeds(select_seeds)
    check_sweep(plan)
    check_output(home, None, [Path(config)], folder=True, is_own=_is_sweep)
    if dry_run:
        print(describe_plan(plan, home, *_trials_at_once(address, cpus_per_trial, gpus_per_trial, max_concurrent)))
        return
    from replora.sweeps.executor import Resources

    remedy = "Wait until it ends, stop it, or choose another directory with --out."
    with left_as_found(home, "sweep", False, lambda: False), locked(home, "A sweep", remedy):
        failure = None
        try:
            resources = Resources(cpus_per_trial, gpus_per_trial, max_concurrent, max_failures)
            run_sweep(plan, home, address, resources, choice)
        except UnfinishedSweepError as error:
            failure = error
        if make_report and any(home.rglob("results.json")):
            from replora.reports.report import write_report

            planned = [*plan.selection_trials(), *plan.planned_final_trials(), *plan.only_trials()]
            files = write_report([home], home / "report", {trial.folder for trial in planned})
            print(f"report: {files[1]}")
        if failure:
            raise failure


def _is_sweep(home: Path) -> bool:
    return (home / LOCK).exists() or any(home.rglob("trial.json"))


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
