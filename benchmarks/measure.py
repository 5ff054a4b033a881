"""Shared parts of the benchmarks: interleaved timing, peak memory, results as JSON and as a table.

The speed of a machine drifts: clocks, caches and other processes change from minute to minute. The compared methods
therefore take turns, one step each, in an order drawn again for every round. The reported figure is the median over the
rounds of the *ratio* to the reference of the same round, with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from replora.io import replace_text
from replora.results import environment_info

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"
QUICK_RESULTS = Path(__file__).parents[1] / "runs" / "benchmarks"  # those of --quick measure nothing

WIDE = 0.1  # quartiles farther apart than this fraction of a ratio are inconclusive

# glibc returns large blocks to the system when they are freed, and fetching them again costs page faults. Which step
# pays for that depends on what ran before it, so the benchmarks turn it off for all methods alike.
STEADY_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**36)}
QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # PyTorch's profiler logs every start


def with_steady_malloc() -> None:
    """Restart this process with an allocator that keeps its memory, unless it already has one."""
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in STEADY_MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | STEADY_MALLOC | QUIET)


def common_options(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="number of times each method is timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder of the JSON files")
    parser.add_argument(
        "--quick",
        action=_Quick,
        help="tiny shapes and two rounds, only to check that it runs; writes to runs/benchmarks",
    )
    return parser


class _Quick(argparse.Action):
    """`--quick`, which leaves the committed results alone unless `--out` names their folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, default=False, **options)

    def __call__(self, _parser: Any, namespace: argparse.Namespace, _values: Any, _option: str | None = None) -> None:
        namespace.quick = True
        if namespace.out is RESULTS:
            namespace.out = QUICK_RESULTS


def device_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for the device of a model."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device of the model")


def device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the device and the precision of a model."""
    device_option(parser)
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16", "bf16-mixed"],
        help="precision of frozen weights and activations: bf16 keeps weights in 16 bits, bf16-mixed is autocast",
    )


def interleaved(
    steps: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure the seconds of each step in each round.

    Args:
        steps: Functions to compare, by name.
        rounds: Number of rounds (>= 1); each step runs once per round.
        device: Device of the steps; `cuda` waits for the GPU before and after a step.
        warm_up: Whether a round comes before them that does not count. Processes of their own have no use for it.
    """
    order = list(steps)
    shuffle = random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1 if warm_up else 0, rounds):
        shuffle(order)
        for name in order:
            wait_for(device)
            start = time.perf_counter()
            steps[name]()
            wait_for(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def wait_for(device: str) -> None:
    """Wait until the GPU has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def summarize(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, Any]]:
    """Return for each method median and quartiles of its seconds, and of its ratio to `reference` round by round."""
    return {
        name: {
            "seconds": median(times),
            "seconds_quartiles": _quartiles(times),
            "ratio": median(ratios),
            "ratio_quartiles": _quartiles(ratios),
            "rounds": len(times),
        }
        for name, times in seconds.items()
        for ratios in [[a / b for a, b in zip(times, seconds[reference], strict=True)]]
    }


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return [first, third]


def environment(**own: str) -> dict[str, str]:
    """The environment of a process that imports the packages of this repository, with variables of its own."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | own


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages behind `tensors`, each counted once."""
    # By identity: on the meta device no storage has an address.
    storages = {s._cdata: s.nbytes() for tensor in tensors for s in [tensor.untyped_storage()]}
    return sum(storages.values())


def peak_bytes(step: Callable[[], Any], device: str = "cpu") -> int:
    """Return the peak in bytes of what `step` allocates through PyTorch.

    On a CPU all that was allocated before stays counted where it was: that `step` frees some of it (the factors of the
    last pass, say) takes nothing off the peak. On a GPU it does.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    level = peak = 0
    allocated = set()
    for _, address, change in sorted(_allocations(profiled.profiler.kineto_results.experimental_event_tree())):
        # The profiler knows the sizes of some older blocks and not of others: of those that it saw in an earlier run.
        if change > 0:
            allocated.add(address)
        elif address in allocated:
            allocated.remove(address)
        else:
            continue
        level += change
        peak = max(peak, level)
    return peak


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Time, address, and change in bytes of what was allocated and freed in `events` and inside of them."""
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _allocations(event.children)


def peak_of_processes(target: Callable[..., None], *arguments: Any) -> int | None:
    """Return the peak memory in bytes of a new process for `target(*arguments)` and its child processes together.

    Pages that several of them share count once (`Pss` of Linux). Returns None on other systems. The allocator is the
    default one.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    steady = {name: os.environ.pop(name) for name in STEADY_MALLOC if name in os.environ}
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    os.environ.update(steady)
    peak = 0
    while process.is_alive():
        peak = max(peak, sum(map(_resident, _family(process.pid or 0))))
        time.sleep(0.05)
    if process.exitcode:
        raise RuntimeError(f"{target.__name__} ended with status {process.exitcode}")
    return peak


def _family(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent ...", where a name may contain any character
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [root]
    for process in found:  # the list grows in the loop
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _resident(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return the name of the processor."""
    names: list[str] = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "malloc": {name: os.environ[name] for name in STEADY_MALLOC if name in os.environ},
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def settings(options: argparse.Namespace, *without: str) -> dict[str, Any]:
    """The options that a results file names: all but its folder and those `without` a meaning for a single result."""
    return {key: value for key, value in vars(options).items() if key not in ("out", *without)}


def write(out: Path, name: str, options: dict[str, Any], results: dict[str, Any], device: str = "cpu") -> Path:
    """Write options, results, machine, date and versions to `out/name.json` and return the file."""
    file = out / f"{name}.json"
    content = {
        "benchmark": name,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        "results": results,
        "machine": machine(device),
        **environment_info(),
    }
    replace_text(file, json.dumps(content, indent=2) + "\n")
    return file


def show(title: str, columns: list[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def width(found: dict[str, Any]) -> float:
    """Return the distance between the quartiles of a ratio, as a fraction of the ratio."""
    low, high = found["ratio_quartiles"]
    return float((high - low) / found["ratio"])


def uncertain(found: dict[str, Any]) -> bool:
    """Return whether a ratio varied so much over the rounds that something else must have used the machine."""
    return width(found) > WIDE


def differing_text(found: dict[str, Any]) -> str:
    """Format the share of color values that differ, and by how many levels: 0.33%, by 1. Empty where none compare."""
    return f"{found['differing']:.2%}, by {found['levels']}" if "differing" in found else ""


def ratio_text(found: dict[str, Any]) -> str:
    """Format the median ratio and its quartiles: 1.012 (1.008 to 1.015)."""
    low, high = found["ratio_quartiles"]
    return f"{found['ratio']:.3f} ({low:.3f} to {high:.3f})"
