"""What this machine has: CPU cores for this process, and memory, which is compared with what options ask for."""

from __future__ import annotations

import math
import os
from pathlib import Path

from replora.errors import RepLoRAError

GIB = 2**30
CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds, or "max", in each period


def check_memory(size: float, what: str, remedy: str) -> None:
    """Refuse what cannot fit.

    Args:
        size: Bytes that are needed at least.
        what: What needs them, as the subject of a sentence.
        remedy: What to do, as a sentence.

    Raises:
        RepLoRAError: The machine has less memory.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > physical:
        raise RepLoRAError(
            f"{what} needs at least {size / GIB:,.0f} GiB, and this machine has {physical / GIB:,.0f} GiB. {remedy}"
        )


def usable_cpus() -> int:
    """The number of CPU cores that the system, the queue and the container leave to this process.

    `taskset` and most queues set the affinity, Slurm sets SLURM_CPUS_PER_TASK, and a container may have a share of the
    time.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if (of_queue := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdecimal():
        limits.append(int(of_queue))
    if CPU_SHARE.is_file():
        share, period = CPU_SHARE.read_text(encoding="ascii").split()
        if share != "max":
            limits.append(math.ceil(int(share) / int(period)))
    return max(1, min(limits))
