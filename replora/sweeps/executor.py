"""Shares trials out among the cores and GPUs of one machine or of a cluster, by Ray Tune.

Ray starts the trials, puts a failed one on the list again, and keeps as many workers as there is room for; a worker
takes one trial after the other, so that the libraries are imported once a worker. What a trial has done is in its own
directory (`trial.py`), so nothing of Ray's own state is needed to go on after an interruption.
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from replora.errors import RepLoRAError
from replora.sweeps.plan import Trial
from replora.sweeps.trial import reason_of_failure, run_trial

# Read when Ray Tune is imported: no files of its own in the trials' directories, no statistics to Ray's makers.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray import tune
except ImportError as error:
    raise RepLoRAError('A sweep needs Ray Tune. Install it: pip install "replora[sweep]"') from error


@dataclass(frozen=True)
class Resources:
    """What a trial gets, and how many there are.

    Attributes:
        cpus: Cores of a trial.
        gpus: GPUs of a trial; a part of one lets several share it.
        at_once: Most trials at the same time, None for as many as there is room for.
        failures: How often a failed trial is tried again.
    """

    cpus: float
    gpus: float
    at_once: int | None
    failures: int


class ProgressCallback(Protocol):
    """Is told what happens, in the order in which it does."""

    def started(self, trial: Trial) -> None: ...

    def ended(self, trial: Trial, results: dict[str, Any]) -> None: ...

    def failed(self, trial: Trial, reason: str) -> None: ...


class Cluster:
    """A Ray cluster for the time of a `with`: the one at an address, or one of this machine alone.

    Args:
        address: `HOST:PORT`, `auto` for the one that this machine belongs to, None to start one here.
        resources: What a trial gets.

    Raises:
        RepLoRAError: There is no cluster at the address, or it could never run a trial with those resources.
    """

    def __init__(self, address: str | None, resources: Resources) -> None:
        self.address, self.resources = address, resources

    def __enter__(self) -> Cluster:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:  # a little memory for objects: trials hand over a few kilobytes
            options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        try:
            ray.init(address=self.address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RepLoRAError(
                f"No Ray cluster answers at {self.address}: {error}. Start one with `ray start --head` on one machine "
                "and `ray start --address HEAD:6379` on the others, or leave --address out."
            ) from error
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by `ProgressCallback.failed`
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, wanted in (("CPU", self.resources.cpus), ("GPU", self.resources.gpus)):
            if wanted > there.get(name, 0):
                ray.shutdown()
                raise RepLoRAError(
                    f"A trial is to get {wanted:g} {name}, but there are {there.get(name, 0):g} in all, so it would "
                    f"wait for ever. Lower --{name.lower()}s_per_trial."
                )
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def run(
        self,
        home: Path,
        sweep: str,
        trials: Sequence[Trial],
        choices: Sequence[dict[str, Any] | None],
        progress: ProgressCallback,
    ) -> None:
        """Run the trials, each until it has ended or failed too often. The order of their start is that of the list.

        Args:
            home: The sweep's directory, the same path on every machine.
            sweep: The sweep's name.
            trials: What to run.
            choices: By what each one's point was chosen, or will be; None without a choice.
            progress: Is told.
        """
        with tempfile.TemporaryDirectory(prefix="replora-sweep-") as scratch:
            jobs = [
                {"home": home, "sweep": sweep, "trial": trial, "choice": choice, "cwd": Path.cwd()}
                for trial, choice in zip(trials, choices, strict=True)
            ]
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(Worker, jobs=jobs), {"cpu": self.resources.cpus, "gpu": self.resources.gpus}
                ),
                param_space={"number": tune.grid_search(list(range(len(jobs))))},
                tune_config=tune.TuneConfig(max_concurrent_trials=self.resources.at_once, reuse_actors=True),
                run_config=tune.RunConfig(
                    # With a cluster elsewhere the scratch folder must be on what all machines share: the sweep's.
                    storage_path=scratch if self.address is None else str((home / ".ray").resolve()),
                    failure_config=tune.FailureConfig(max_failures=self.resources.failures),
                    callbacks=[_ForwardProgress(home, trials, progress)],
                    verbose=0,
                ),
            ).fit()


class Worker(tune.Trainable):
    """A process that runs trials one after the other."""

    def setup(self, config: dict[str, Any], jobs: list[dict[str, Any]]) -> None:  # type: ignore[override]
        self.jobs, self.number = jobs, config["number"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.number = new_config["number"]
        return True

    def step(self) -> dict[str, Any]:
        import torch

        job = self.jobs[self.number]
        if not job["cwd"].is_dir() and not job["home"].is_absolute():
            raise RepLoRAError(
                f"{job['cwd']} does not exist on {platform.node()}, so {job['home']} has no place there. On a cluster "
                "give --out as a path that all machines share."
            )
        if job["cwd"].is_dir():  # relative paths are those of the sweep's start
            os.chdir(job["cwd"])
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        return {"done": True, "results": run_trial(job["home"], job["sweep"], job["trial"], job["choice"])}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial's directory holds its state."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class _ForwardProgress(tune.Callback):
    """Passes on what Ray Tune reports."""

    def __init__(self, home: Path, trials: Sequence[Trial], progress: ProgressCallback) -> None:
        self.home, self.trials, self.progress = home, trials, progress

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks to go on by itself, which is not asked of it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self.progress.started(self.trials[trial.config["number"]])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:  # noqa: ARG002
        self.progress.ended(self.trials[trial.config["number"]], result["results"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        failed = self.trials[trial.config["number"]]
        self.progress.failed(failed, reason_of_failure(self.home, failed))
