"""Distributes trials over processes of this machine, without Ray.

The processes are spawned, so that none has threads or a CUDA context of this one. They end with it, however it ends:
their pipe is closed then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from replora.sweeps.scheduler import Job, Outcome, Scheduler, run_in_worker


class LocalWorkers(Scheduler):
    """Processes that run trials, as a context manager.

    SIGTERM inside it ends a sweep as Ctrl-C does: by `KeyboardInterrupt`, here with the number of the signal. The first
    workers start with it and import the libraries, while this process checks the plan.

    Args:
        count: Largest number of trials at the same time (>= 1).
        threads: CPU threads of a trial (>= 1), unless OMP_NUM_THREADS is set.
        failures: How often a failed trial is retried (>= 0).
        trials: Number of trials that are known to be left (>= 0): more workers do not start early.
    """

    def __init__(self, count: int, threads: int, failures: int, trials: int) -> None:
        super().__init__(failures)
        self.count, self.threads, self.trials = count, threads, trials
        self.idle: list[_Worker] = []
        self.busy: dict[Connection, _Worker] = {}

    def __enter__(self) -> LocalWorkers:
        in_main_thread = threading.current_thread() is threading.main_thread()
        self.former_handler = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
        self.idle = [_Worker(self.threads) for _ in range(min(self.count, self.trials))]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (*self.idle, *self.busy.values()):
            worker.kill()
        if self.former_handler is not None:
            signal.signal(signal.SIGTERM, self.former_handler)

    def start(self, home: Path, sweep: str, job: Job) -> Connection:
        worker = self.idle.pop() if self.idle else _Worker(self.threads)
        self.busy[worker.connection] = worker
        worker.give(home, sweep, job)
        return worker.connection

    def wait(self) -> list[Connection]:
        return [one for one in wait(list(self.busy)) if isinstance(one, Connection)]

    def outcome(self, running: Connection) -> Outcome:
        worker = self.busy.pop(running)
        try:
            outcome: Outcome = running.recv()
        except (EOFError, OSError):  # nothing more can come
            outcome = None, "its process died (out of memory?)", []
        if outcome[0] is not None:
            self.idle.append(worker)
        else:
            worker.kill()  # an error may leave a process in any state
        return outcome

    def capacity(self) -> int:
        return self.count


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


class _Worker:
    """A process that runs one trial after the other, and the end of its pipe."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end, Path.cwd(), threads), name="trials")
        # Ctrl-C reaches all processes of a terminal, also this one while it starts; the first one decides.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        far_end.close()  # so that the pipe ends with the process

    def give(self, home: Path, sweep: str, job: Job) -> None:
        try:
            self.connection.send((home, sweep, job.trial, job.rule))
        except OSError:  # it has died while it was idle, which `outcome` says
            return

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, cwd: Path, threads: int) -> None:
    """Run the trials that come, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import replora.trainer.trainer_cli  # noqa: F401  # what every trial imports, which takes seconds

    while True:
        try:
            request: tuple[Any, ...] = connection.recv()
        except EOFError:
            return
        connection.send(run_in_worker(cwd, *request))
