"""Trials are not the tasks of a SLURM job: each is a process of its own, whatever `--ntasks` is."""

from __future__ import annotations

import os

# Lightning reads the first two of these, and takes every process that has them for one of a distributed run.
TASK_VARIABLES = (
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_NPROCS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE",
)


def drop_task_variables() -> None:
    """Remove the variables that describe SLURM's tasks from the environment of this process.

    Lightning reads some of them when it is imported, so this comes first. Those of the job, of its array and of its
    cores and GPUs stay.
    """
    for name in TASK_VARIABLES:
        os.environ.pop(name, None)
