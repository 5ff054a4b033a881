"""Distributes trials over the cores and GPUs of one machine or of a cluster, with Ray.

A worker is a Ray actor that runs one trial after the other, so that it imports the libraries only once. This process
hands out the trials: Ray starts the workers and reports the ones that die. The state of a trial is in its own directory
(`trial.py`), so a sweep continues after an interruption without any state of Ray.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from filelock import FileLock

from replora.errors import RepLoRAError
from replora.memory import usable_cpus
from replora.sweeps.plan import Trial
from replora.sweeps.state import claimed
from replora.sweeps.trial import run_trial

TOKEN = Path(os.environ.get("HOME", "/"), ".ray", "auth_token")

# Ray reads these when it is imported and when it starts. By its default, workers have nearly the lowest priority, and
# get next to nothing of a machine on which anything else runs.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A cluster asks for the token of the user who started it, and Ray sends it by itself only to a cluster that it finds.
# Where Ray is imported already, only what it starts would ask for one.
if "ray" not in sys.modules and ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or TOKEN.is_file()):
    os.environ.setdefault("RAY_AUTH_MODE", "token")

try:
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError
except ImportError as error:
    raise RepLoRAError(
        'A sweep needs Ray. Install it: pip install "replora[sweep]". Without it, '
        "--shard 1/1 runs the trials one after the other, in any number of processes side by side."
    ) from error


START = (
    "Start one with `ray start --head` on one machine and `ray start --address HEAD:6379` on the others, or leave "
    "--address out."
)
Outcome = tuple[dict[str, Any] | None, str, list[str]]  # results or None, why it failed, and what was corrupt before


@dataclass(frozen=True)
class Resources:
    """Resources of a trial, and limits on the number of trials.

    Attributes:
        cpus: CPU cores per trial.
        gpus: GPUs per trial; with a fraction, several trials share one GPU.
        at_once: Largest number of trials at the same time; None for as many as the machines have room for.
        failures: How often a failed trial is retried.
    """

    cpus: float
    gpus: float
    at_once: int | None
    failures: int


class ProgressCallback(Protocol):
    """Receives the events of a sweep in the order in which they happen."""

    def started(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, results: dict[str, Any]) -> None: ...

    def failed(self, trial: Trial, reason: str) -> None: ...

    def noted(self, trial: Trial, note: str) -> None: ...

    def retried(self, trial: Trial, reason: str, at_once: int) -> None: ...


@dataclass
class _Job:
    """A trial in the queue.

    Attributes:
        trial: The trial.
        rule: Rule of its selection.
        failures: How often it has failed.
        at_once: Largest number of trials while it runs, itself included; None for no limit of its own.
    """

    trial: Trial
    rule: dict[str, Any] | None
    failures: int = 0
    at_once: int | None = None


class Cluster:
    """A Ray cluster, as a context manager: the one at an address, or a new one on this machine.

    SIGTERM inside it ends a sweep as Ctrl-C does: by `KeyboardInterrupt`, here with the number of the signal.

    The first workers start with it and import the libraries, while this process checks the plan.

    Args:
        address: `HOST:PORT`, `auto` for the cluster that this machine belongs to, or None to start one here.
        resources: Resources of a trial.
        trials: Number of trials that are left to run (>= 0): more workers are of no use.

    Raises:
        RepLoRAError: There is no cluster at the address, or it is too small for a single trial.
    """

    def __init__(self, address: str | None, resources: Resources, trials: int) -> None:
        self.address, self.resources, self.trials = address, resources, trials
        self.idle: list[Any] = []
        self.terminated = False

    def __enter__(self) -> Cluster:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:  # trials exchange only a few kilobytes
            options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20, "num_cpus": usable_cpus()}
        else:
            _check_address(self.address)
        in_main_thread = threading.current_thread() is threading.main_thread()
        self.former_handler = signal.getsignal(signal.SIGTERM) if in_main_thread else None
        try:
            TOKEN.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(f"{TOKEN}.lock") if self.address is None and not TOKEN.is_file() else nullcontext():
                ray.init(address=self.address or "local", **options)  # the first one of a user makes the token
        except (ConnectionError, RuntimeError, ValueError) as error:
            if self.address is None:
                raise RepLoRAError(f"Ray does not start on this machine: {error}") from error
            raise RepLoRAError(f"No Ray cluster answers at {self.address}: {error}. {START}") from error
        if in_main_thread:
            signal.signal(signal.SIGTERM, self._terminate)  # Ray has set its own, which ends with status 15
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, wanted in (("CPU", self.resources.cpus), ("GPU", self.resources.gpus)):
            if wanted > there.get(name, 0):
                self.__exit__()
                raise RepLoRAError(
                    f"A trial needs {wanted:g} {name}, but there are only {there.get(name, 0):g} in total, so it would "
                    f"never start. Lower --{name.lower()}s_per_trial."
                )
        self.idle = [self._new_worker() for _ in range(min(self.trials, self._room([])))]
        for actor in self.idle:
            actor.import_libraries.remote()
        return self

    def __exit__(self, _kind: object = None, error: object = None, _traceback: object = None) -> None:
        ray.shutdown()
        if self.terminated and isinstance(error, KeyboardInterrupt):
            error.args = (signal.SIGTERM,)  # Ray raises an error of its own, without the number
        if self.former_handler is not None:
            signal.signal(signal.SIGTERM, self.former_handler)

    def _terminate(self, number: int, _frame: FrameType | None) -> NoReturn:
        self.terminated = True
        raise KeyboardInterrupt(number)

    def run(
        self,
        home: Path,
        sweep: str,
        trials: Sequence[Trial],
        rules: Sequence[dict[str, Any] | None],
        progress: ProgressCallback,
    ) -> None:
        """Run each trial until it has ended or failed too often. Trials start in the order of the list.

        A trial that failed is retried after the others, with half as many at the same time as when it failed, because
        what kills a process is most often a lack of memory.

        Args:
            home: Directory of the sweep; the same path on every machine.
            sweep: Name of the sweep.
            trials: Trials to run.
            rules: Rule by which each trial's point was or will be selected; None without a selection.
            progress: Receives the events.

        Raises:
            RepLoRAError: No machine has room for a trial any more.
        """
        waiting = deque(_Job(trial, rule) for trial, rule in zip(trials, rules, strict=True))
        running: dict[Any, tuple[_Job, Any]] = {}  # reference to the outcome -> job and its worker
        while waiting or running:
            while waiting and len(running) < self._room([waiting[0], *(job for job, _ in running.values())]):
                job = waiting.popleft()
                actor = self.idle.pop() if self.idle else self._new_worker()
                running[actor.run.remote(home, sweep, job.trial, job.rule)] = job, actor
                progress.started(job.trial)
            ended, _ = ray.wait(list(running), timeout=10)  # looks again whether the cluster has grown
            for reference in ended:
                at_once = len(running)
                job, actor = running.pop(reference)
                results, reason, notes = _outcome(reference)
                for note in notes:
                    progress.noted(job.trial, note)
                if results is not None:
                    self.idle.append(actor)
                    progress.ended(job.trial, results)
                    continue
                ray.kill(actor)  # an error may leave a process or its GPU in any state
                job.failures += 1
                if job.failures > self.resources.failures:
                    progress.failed(job.trial, reason)
                else:
                    job.at_once = max(1, at_once // 2)
                    waiting.append(job)
                    progress.retried(job.trial, reason, job.at_once)

    def _new_worker(self) -> Any:
        worker: Any = ray.remote(_Worker).options(num_cpus=self.resources.cpus, num_gpus=self.resources.gpus)
        return worker.remote(Path.cwd())

    def _room(self, jobs: Sequence[_Job]) -> int:
        """How many trials may run at the same time, if these are among them."""
        limits = [self._capacity(), self.resources.at_once, *(job.at_once for job in jobs)]
        return min(limit for limit in limits if limit is not None)

    def _capacity(self) -> int:
        """Number of trials that the machines of the cluster have room for.

        Raises:
            RepLoRAError: No machine is left that has room for one.
        """
        cpus, gpus = self.resources.cpus, self.resources.gpus
        room = 0
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            there = node["Resources"] if node["Alive"] else {}
            counts = [int(there.get("CPU", 0) / cpus)]
            if gpus:  # one trial never has parts of two GPUs
                counts.append(int(int(there.get("GPU", 0)) * int(1 / gpus) if gpus < 1 else there.get("GPU", 0) / gpus))
            room += min(counts)
        if not room:
            raise RepLoRAError(
                "No machine of the Ray cluster that has room for a trial is alive any more. Start the cluster, where "
                "--address names one, and the same command again; it repeats nothing that is finished."
            )
        return room


def _check_address(address: str) -> None:
    """Raise unless something listens there: Ray itself ends this process after a while, with lines of its own."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host) or not re.fullmatch(r"\d{1,5}", port):
        raise RepLoRAError(f"--address {address} is neither HOST:PORT, such as node1:6379, nor auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RepLoRAError(f"No Ray cluster answers at {address}: {error}. {START}") from error


class _Worker:
    """A process that runs trials one after the other.

    Args:
        cwd: Directory in which the sweep was started, to which relative paths refer.
    """

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd

    def import_libraries(self) -> None:
        """Import what every trial does, which takes seconds."""
        import replora.trainer.trainer_cli  # noqa: F401  # not for a plan that is only checked

    def run(self, home: Path, sweep: str, trial: Trial, rule: dict[str, Any] | None) -> Outcome:
        """Run a trial of a sweep, whose directory and name come first."""
        import torch  # not for a plan that is only checked

        notes: list[str] = []
        try:
            if self.cwd.is_dir():
                os.chdir(self.cwd)
            elif not home.is_absolute():
                raise RepLoRAError(
                    f"{self.cwd} does not exist on {platform.node()}, so {home} has no place there. On a cluster "
                    "give --out as a path that all machines share."
                )
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            with claimed(home, trial, wait=True):  # what another process runs is finished after it
                return run_trial(home, sweep, trial, rule, notes.append), "", notes
        except Exception as error:  # an error of a library may not survive the way to the other process
            return None, (str(error).strip() or type(error).__name__).splitlines()[0], notes


def _outcome(reference: Any) -> Outcome:
    """What `_Worker.run` returned, or why there is nothing."""
    try:
        outcome: Outcome = ray.get(reference)
    except OutOfMemoryError:
        return None, "Ray ended its process, because the memory of its machine was used up", []
    except RayActorError:
        return None, "its process died (out of memory?)", []
    except RayError as error:
        return None, str(error).strip().splitlines()[0], []
    return outcome
