"""Distributes trials over the cores and GPUs of one machine or of a cluster, with Ray.

A worker is a Ray actor that runs one trial after the other, so that it imports the libraries only once. This process
hands out the trials: Ray starts the workers and reports the ones that die. The state of a trial is in its own directory
(`trial.py`), so a sweep continues after an interruption without any state of Ray.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from filelock import FileLock

from replora.errors import RepLoRAError
from replora.memory import usable_cpus
from replora.sweeps.plan import Trial
from replora.sweeps.scheduler import Job, Outcome, Scheduler, run_in_worker

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
        'A sweep needs Ray. Install it: pip install "replora[sweep]". Without it, --workers 4 runs the trials in four '
        "processes of this machine, and --shard 1/1 one after the other, beside any number of other processes."
    ) from error


START = (
    "Start one with `ray start --head` on one machine and `ray start --address HEAD:6379` on the others, or leave "
    "--address out."
)


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


class Cluster(Scheduler):
    """A Ray cluster, as a context manager: the one at an address, or a new one on this machine.

    SIGTERM inside it ends a sweep as Ctrl-C does: by `KeyboardInterrupt`, here with the number of the signal.

    The first workers start with it and import the libraries, while this process checks the plan.

    Args:
        address: `HOST:PORT`, `auto` for the cluster that this machine belongs to, or None to start one here.
        resources: Resources of a trial.
        trials: Number of trials that are known to be left (>= 0): more workers do not start early.

    Raises:
        RepLoRAError: There is no cluster at the address, or it is too small for a single trial.
    """

    def __init__(self, address: str | None, resources: Resources, trials: int) -> None:
        super().__init__(resources.failures)
        self.address, self.resources, self.trials = address, resources, trials
        self.busy: dict[Any, Any] = {}  # reference to an outcome -> its worker
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
        self.idle = [self._new_worker() for _ in range(min(self.trials, self.capacity()))]
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

    def start(self, home: Path, sweep: str, job: Job) -> Any:
        actor = self.idle.pop() if self.idle else self._new_worker()
        reference = actor.run.remote(home, sweep, job.trial, job.rule)
        self.busy[reference] = actor
        return reference

    def wait(self) -> list[Any]:
        ended, _ = ray.wait(list(self.busy), timeout=10)  # looks again whether the cluster has grown
        return ended

    def outcome(self, running: Any) -> Outcome:
        actor = self.busy.pop(running)
        outcome = _outcome(running)
        if outcome[0] is not None:
            self.idle.append(actor)
        else:
            ray.kill(actor)  # an error may leave a process or its GPU in any state
        return outcome

    def capacity(self) -> int:
        room, most = self._room_of_machines(), self.resources.at_once
        return room if most is None else min(room, most)

    def _new_worker(self) -> Any:
        worker: Any = ray.remote(_Worker).options(num_cpus=self.resources.cpus, num_gpus=self.resources.gpus)
        return worker.remote(Path.cwd())

    def _room_of_machines(self) -> int:
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
        return run_in_worker(self.cwd, home, sweep, trial, rule)


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
