"""Distributes trials over the cores and GPUs of one machine or of a cluster, with Ray Tune.

Ray starts the trials, retries failed ones, and keeps as many workers as the resources allow. A worker runs one trial
after the other, so that it imports the libraries only once. The state of a trial is in its own directory (`trial.py`),
so a sweep continues after an interruption without any state of Ray.
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
from replora.sweeps.state import claimed
from replora.sweeps.trial import reason_of_failure, run_trial

# Ray Tune reads these when it is imported: write no files into the directories of trials, and send no statistics.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray import tune
except ImportError as error:
    raise RepLoRAError(
        'A sweep needs Ray Tune. Install it: pip install "replora[sweep]". Without it, '
        "--shard 1/1 runs the trials one after the other, in any number of processes side by side."
    ) from error


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


class Cluster:
    """A Ray cluster, as a context manager: the one at an address, or a new one on this machine.

    Args:
        address: `HOST:PORT`, `auto` for the cluster that this machine belongs to, or None to start one here.
        resources: Resources of a trial.

    Raises:
        RepLoRAError: There is no cluster at the address, or it is too small for a single trial.
    """

    def __init__(self, address: str | None, resources: Resources) -> None:
        self.address, self.resources = address, resources

    def __enter__(self) -> Cluster:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:  # trials exchange only a few kilobytes
            options |= {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        try:
            ray.init(address=self.address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RepLoRAError(
                f"No Ray cluster answers at {self.address}: {error}. Start one with `ray start --head` on one machine "
                "and `ray start --address HEAD:6379` on the others, or leave --address out."
            ) from error
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `ProgressCallback.failed` reports failures
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, wanted in (("CPU", self.resources.cpus), ("GPU", self.resources.gpus)):
            if wanted > there.get(name, 0):
                ray.shutdown()
                raise RepLoRAError(
                    f"A trial needs {wanted:g} {name}, but there are only {there.get(name, 0):g} in total, so it would "
                    f"never start. Lower --{name.lower()}s_per_trial."
                )
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def run(
        self,
        home: Path,
        sweep: str,
        trials: Sequence[Trial],
        rules: Sequence[dict[str, Any] | None],
        progress: ProgressCallback,
    ) -> None:
        """Run each trial until it has ended or failed too often. Trials start in the order of the list.

        Args:
            home: Directory of the sweep; the same path on every machine.
            sweep: Name of the sweep.
            trials: Trials to run.
            rules: Rule by which each trial's point was or will be selected; None without a selection.
            progress: Receives the events.
        """
        with tempfile.TemporaryDirectory(prefix="replora-sweep-") as scratch:
            jobs = [
                {"home": home, "sweep": sweep, "trial": trial, "rule": rule, "cwd": Path.cwd()}
                for trial, rule in zip(trials, rules, strict=True)
            ]
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(Worker, jobs=jobs), {"cpu": self.resources.cpus, "gpu": self.resources.gpus}
                ),
                param_space={"number": tune.grid_search(list(range(len(jobs))))},
                tune_config=tune.TuneConfig(max_concurrent_trials=self.resources.at_once, reuse_actors=True),
                run_config=tune.RunConfig(
                    # With a remote cluster the scratch folder must be on storage that all machines share.
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
        import torch  # not for a plan that is only checked

        job = self.jobs[self.number]
        if not job["cwd"].is_dir() and not job["home"].is_absolute():
            raise RepLoRAError(
                f"{job['cwd']} does not exist on {platform.node()}, so {job['home']} has no place there. On a cluster "
                "give --out as a path that all machines share."
            )
        if job["cwd"].is_dir():  # relative paths refer to the directory in which the sweep was started
            os.chdir(job["cwd"])
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        with claimed(job["home"], job["trial"], wait=True):  # what another process runs is finished after it
            return {"done": True, "results": run_trial(job["home"], job["sweep"], job["trial"], job["rule"])}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing: the state of a trial is in its directory."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Does nothing."""


class _ForwardProgress(tune.Callback):
    """Forwards the reports of Ray Tune to a `ProgressCallback`."""

    def __init__(self, home: Path, trials: Sequence[Trial], progress: ProgressCallback) -> None:
        self.home, self.trials, self.progress = home, trials, progress

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks to resume by itself, which sweeps do not use."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self.progress.started(self.trials[trial.config["number"]])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **_: Any) -> None:  # noqa: ARG002
        self.progress.ended(self.trials[trial.config["number"]], result["results"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        failed = self.trials[trial.config["number"]]
        self.progress.failed(failed, reason_of_failure(self.home, failed))
