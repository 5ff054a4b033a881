"""`replora-cli sweep`: many runs from one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from replora.cli.commands.report import report
from replora.errors import RepLoRAError


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
    make_report: bool = True,
) -> None:
    """Run methods, tasks, training set sizes, grids and seeds against each other.

        replora-cli sweep --config sweep/quickstart_low_data.yaml
        replora-cli sweep --config sweep/vtab_low_data.yaml --options '{"data.root": "vtab-1k"}' --gpus_per_trial 0.5

    Every trial is a run of fit in a directory of its own. The same command goes on after an interruption and repeats
    nothing that is finished. Ends with a page of curves and tables (replora-cli report). The form of the file:
    docs/sweeps.md.

    Args:
        config: The sweep's file, a local one or one that ships with the package.
        out: Directory of the trials; on a cluster a path that all machines resources. Default: runs/NAME.
        options: Options of every trial beyond those of the file, as on the command line of fit without the dashes.
        dry_run: Print the trials and what they are expected to cost, and run nothing.
        address: Of a Ray cluster, HOST:PORT or auto. Default: this machine alone.
        cpus_per_trial: CPU cores of a trial.
        gpus_per_trial: GPUs of a trial; 0.5 lets two trials resources one. The file's base must train on a GPU then.
        max_concurrent: Trials at the same time at most. Default: as many as there is room for.
        max_failures: How often a failed trial is tried again, at least 0.
        make_report: Whether to end with a report in OUT/report, of what there is also after failures.
    """
    from replora.config_files import find_config
    from replora.run_directory import locked
    from replora.sweeps.progress import describe_plan
    from replora.sweeps.sweep import check_sweep, run_sweep
    from replora.sweeps.sweep_file import read_sweep

    plan = read_sweep(find_config(config), options)
    home = out or Path("runs") / plan.name
    _at_least(0, max_failures=max_failures, gpus_per_trial=gpus_per_trial)
    _at_least(0.01, cpus_per_trial=cpus_per_trial, max_concurrent=max_concurrent)
    check_sweep(plan)
    if dry_run:
        print(describe_plan(plan, home, *_trials_at_once(address, cpus_per_trial, gpus_per_trial, max_concurrent)))
        return
    from replora.sweeps.executor import Resources

    remedy = "Wait until it ends, stop it, or choose another directory with --out."
    with locked(home, "A sweep", remedy):
        try:
            run_sweep(plan, home, address, Resources(cpus_per_trial, gpus_per_trial, max_concurrent, max_failures))
        finally:
            if make_report and any(home.rglob("results.json")):
                report([str(home)], home / "report")


def _trials_at_once(
    address: str | None, cpus_per_trial: float, gpus_per_trial: float, most: int | None
) -> tuple[int | None, str]:
    """How many trials there is room for, None if that is not known, and why not."""
    if address is not None:
        return most, f"how many the cluster at {address} has room for is not known before it is asked"
    room = int((os.cpu_count() or 1) / cpus_per_trial)
    if gpus_per_trial:
        from torch import cuda

        if not cuda.is_available():
            return most, "this machine has no GPU, and how many there will be is not known"
        room = min(room, int(cuda.device_count() / gpus_per_trial))
    return max(1, min(room, most or room)), ""


def _at_least(least: float, **options: float | None) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            raise RepLoRAError(f"--{name} {value:g} is too small: it is at least {least:g}.")
