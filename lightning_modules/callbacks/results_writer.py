"""Writes `results.json` and `adapter.safetensors` into the run's directory."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import uuid
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

import replora
from lightning_modules.callbacks.last_checkpoint import averages_weights
from replora.adapters.fingerprint import state_sha256
from replora.errors import RepLoRAError
from replora.identity import MEASURED_WITH, compared_options, configuration_sha256
from replora.results import (
    UNTRAINED,
    check_same_run,
    describe_training_data,
    environment_info,
    peak_memory,
    read_results,
    record_evaluation,
    record_fit,
    status_of,
)
from replora.resuming import check_resumed, read_checkpoint

HISTORY = 50  # maximum number of epochs that a results file keeps of each metric


@runtime_checkable
class Described(Protocol):
    """A module with results to write; others are ignored."""

    def describe(self) -> dict[str, Any]: ...

    def measured(self, verb: str) -> dict[str, Any]: ...


class ResultsWriter(Callback):
    """Keeps the record of a run, `results.json`, and writes the trained adapter at the end of a fit.

    A fit is recorded when it ends, each evaluation when it ends (docs/results.md). Nothing is written for
    `fast_dev_run`, or if a verb does not complete.

    Args:
        run_dir: Directory of the run.
        untrained: Whether the model is measured before any training.
        configuration: Resolved options of the fit, by their dotted names; empty if there is no command line.
    """

    def __init__(self, run_dir: Path, untrained: bool = False, configuration: dict[str, Any] | None = None) -> None:
        self.run_dir = run_dir
        self.untrained = untrained
        self.configuration = configuration or {}
        self.run_id = uuid.uuid4().hex
        self.fitted = False
        self.diverged = False
        self.started = 0.0
        self.environment: dict[str, Any] = {}
        self.begun: dict[str, int] = {}
        self.trained_on: dict[str, Any] | None = None
        self.validated = -1  # epoch of the last validation
        self.history: dict[str, dict[int, float]] = {}  # metric -> epoch from 1 -> value
        self.processes: list[dict[str, Any]] = []  # what trained before this process

    @property
    def file(self) -> Path:
        return self.run_dir / "results.json"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if trainer.is_global_zero and self.file.exists() and isinstance(pl_module, Described):
            check_same_run(self.file, read_results(self.file), pl_module.describe())
        self.started = time.monotonic()
        self.environment = environment_info()  # once: it asks git, and every checkpoint holds it

    # --- the fit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.begun = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.trained_on = _trained_on(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        for name, value in _metrics(trainer).items():
            # If there was no validation in this epoch, Lightning still holds the metrics of the previous one.
            if not name.startswith("val/") or self.validated == trainer.current_epoch:
                self.history.setdefault(name, {})[trainer.current_epoch + 1] = value

    def state_dict(self) -> dict[str, Any]:
        """What a run that resumes, or an evaluation, must know of the training so far."""
        return {
            "run_id": self.run_id,
            "history": self.history,
            "processes": [*self.processes, self._process()],
            "configuration": compared_options(self.configuration),
            "trained_on": self.trained_on,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Check what is resumed or measured against what the checkpoint was trained with (docs/results.md).

        Raises:
            ResumeError: A fit would go on with other data or options.
            RepLoRAError: The data that are measured have classes that the run does not know.
        """
        state = checkpoint.get("callbacks", {}).get(type(self).__qualname__, {})
        trained_on = state.get("trained_on")
        if trained_on is None:  # a checkpoint of an earlier release
            return
        if trainer.state.fn == TrainerFn.FITTING:
            check_resumed(
                state["configuration"], compared_options(self.configuration), trained_on, _trained_on(trainer)
            )
        elif hasattr(trainer.datamodule, "map_labels_to"):  # type: ignore[attr-defined]
            self.trained_on = trained_on
            if trained_on["class_names"]:
                trainer.datamodule.map_labels_to(trained_on["class_names"])  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]
        self.processes = state_dict.get("processes", [])
        self.run_id = state_dict.get("run_id", self.run_id)

    def _process(self, trainer: Trainer | None = None) -> dict[str, Any]:
        """What this process trained."""
        entry = {"from": self.begun, "seconds": round(time.monotonic() - self.started, 2)}
        if trainer is not None:
            entry |= {"to": {"epoch": trainer.current_epoch, "step": trainer.global_step}, **_machine(trainer)}
        return {**entry, **self.environment}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fitted = True
        if not self._records(trainer, pl_module):
            return
        model = cast(nn.Module, pl_module.model)
        state = replora.adapter_state(model)
        metrics = _metrics(trainer)
        # A run that was interrupted behind its last epoch has them from its checkpoint alone.
        metrics = {name: points[max(points)] for name, points in self.history.items() if points} | metrics
        # Of a metric that was not measured in the last epoch, the record holds the last value with its epoch.
        epochs = {name: max(self.history[name]) for name in metrics if self.history.get(name)}
        finite = all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())
        losses = [value for name, value in metrics.items() if name.endswith("loss")]
        self.diverged = not finite or not all(map(math.isfinite, losses))
        processes = [*self.processes, self._process(trainer)]
        partial = partial_fit(trainer)
        fit = {
            "metrics": _json(metrics),
            "epoch_of": epochs,
            "best": {name: _best(name, points) for name, points in self.history.items() if name.startswith("val/")},
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "resumed_from": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "selection": "last epoch",
            "optimizer": _optimizer(trainer),
            "batch": _batch(trainer),
            "schedule": _schedule(pl_module),
            "history": {name: _thinned(points) for name, points in self.history.items()},
            "weights_sha256": state_sha256(state),
            "averaged": averages_weights(trainer),
            "partial": partial,
            "diverged": self.diverged,
            "processes": processes,
            **cast("Described", pl_module).measured("fit"),
            **_seed(),
            "seconds": round(sum(process["seconds"] for process in processes), 2),
            **_machine(trainer),
            **environment_info(),
        }
        run = {
            "run_id": self.run_id,
            "configuration": compared_options(self.configuration),
            "configuration_sha256": configuration_sha256(self.configuration),
        }
        record_fit(self.file, cast("Described", pl_module).describe(), _description(trainer), fit, run)
        metadata = adapter_metadata(cast("Described", pl_module), getattr(trainer, "datamodule", None), metrics)
        if partial:
            metadata["partial"] = "; ".join(partial)
        if self.diverged:
            metadata["diverged"] = "true"
        replora.save_adapter(model, self.run_dir / "adapter.safetensors", metadata, force=True)

    # --- evaluations

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated = trainer.current_epoch
        if trainer.state.fn == "validate":
            self._record_evaluation(trainer, pl_module, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_evaluation(trainer, pl_module, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_evaluation(trainer, pl_module, "predict")

    def _record_evaluation(self, trainer: Trainer, module: LightningModule, verb: str) -> None:
        if not self._records(trainer, module):
            return
        described = cast("Described", module)
        evaluation = {
            "verb": verb,
            "metrics": _json(_metrics(trainer)),
            "data": self._evaluated(trainer, verb),
            "weights": self._weights(trainer, module),
            "options": {name: self.configuration[name] for name in MEASURED_WITH if name in self.configuration},
            "partial": partial_evaluation(trainer, verb),
            **described.measured(verb),
            **_seed(),
            "seconds": round(time.monotonic() - self.started, 2),
            **_machine(trainer),
            **environment_info(),
        }
        record_evaluation(self.file, described.describe(), _description(trainer), evaluation)

    def _evaluated(self, trainer: Trainer, verb: str) -> dict[str, Any]:
        """The identity of the data that a verb measured; empty for a datamodule that does not say."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        if not hasattr(datamodule, "identity"):
            return {}
        predicted = getattr(datamodule, "predicted_split", datamodule.eval_split)
        split = {"validate": "val", "test": "test"}.get(verb, predicted)
        trained = (self.trained_on or {}).get("examples")
        seen = 0 if trained is None else datamodule.lists.seen(split, trained)
        return {**datamodule.identity(split), **({"seen_in_training": seen} if seen else {})}

    def _weights(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """The weights that were measured."""
        source = "last epoch" if self.fitted else "as given"
        if trainer.ckpt_path:
            source = f"{trainer.ckpt_path} (after {getattr(module, 'loaded_after', '')})"
        elif self.untrained:
            source = UNTRAINED
        # Merged weights are the same weights: the state of the adapter does not change.
        return {
            "source": source,
            "sha256": state_sha256(replora.adapter_state(cast(nn.Module, module.model))),
            "averaged": averages_weights(trainer),
        }

    def _records(self, trainer: Trainer, module: LightningModule) -> bool:
        return trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False) and isinstance(module, Described)


def _trained_on(trainer: Trainer) -> dict[str, Any]:
    """What identifies the training: its list, classes, weights and batch; parts that the data do not tell are None."""
    described = _description(trainer)
    split = getattr(trainer.datamodule, "train_split", "train") if trainer.datamodule else "train"  # type: ignore[attr-defined]
    return {
        "training list": described.get("splits", {}).get(split, {}).get("sha256"),
        "train_size": described.get("train_size"),
        "class_names": described.get("class_names"),
        "averaged weights": averages_weights(trainer),
        "batch of all processes": math.prod(_batch(trainer).values()),
        "examples": trainer.datamodule.lists.examples(split) if hasattr(trainer.datamodule, "lists") else None,  # type: ignore[attr-defined]
    }


def partial_fit(trainer: Trainer) -> list[str]:
    """Why a fit is not a complete one."""
    reasons = _limits(trainer, "train") + _limits(trainer, "val")
    if overfit := getattr(trainer, "overfit_batches", 0):
        reasons.append(f"overfit_batches={overfit}")
    if trainer.max_epochs == 0 or trainer.global_step == 0:
        reasons.append("no training step")
    return reasons


def partial_evaluation(trainer: Trainer, verb: str) -> list[str]:
    """Why an evaluation does not cover its split."""
    return _limits(trainer, {"validate": "val"}.get(verb, verb))


def status_of_evaluation(run_dir: Path, trainer: Trainer, verb: str) -> str:
    """What predictions say of their run and of their own part: `complete`, `diverged`, or `partial: ` and why."""
    file = run_dir / "results.json"
    return status_of(read_results(file) if file.is_file() else {}, partial_evaluation(trainer, verb))


def _limits(trainer: Trainer, part: str) -> list[str]:
    """The limit on the batches of a part, unless it is 1.0 (all) or, for the validation of a fit, 0 (none)."""
    limit = getattr(trainer, f"limit_{part}_batches")
    complete = isinstance(limit, float) and limit == 1.0
    return [] if complete or (part == "val" and not limit) else [f"limit_{part}_batches={limit}"]


def _json(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _seed() -> dict[str, int | None]:
    """The seed of the run; None if it was not seeded."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {"seed": None if seed is None else int(seed)}


def _machine(trainer: Trainer) -> dict[str, Any]:
    return {
        "peak_memory_bytes": peak_memory(),
        "devices": trainer.world_size,
        "accelerator": type(trainer.accelerator).__name__,
        "precision": trainer.precision,
    }


def _description(trainer: Trainer) -> dict[str, Any]:
    """What the datamodule says of the data, as JSON values."""
    return dict(getattr(getattr(trainer, "datamodule", None), "describe", dict)())


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in trainer.callback_metrics.items() if "/" in name}


def _thinned(points: dict[int, float]) -> list[list[float | None]]:
    """At most `HISTORY` of the points, evenly spaced, including the last one: [[epoch, value], ...]."""
    epochs = sorted(points)
    count = min(HISTORY, len(epochs))
    kept = {len(epochs) - 1 - (i * len(epochs)) // count for i in range(count)}
    return [[epochs[i], points[epochs[i]] if math.isfinite(points[epochs[i]]) else None] for i in sorted(kept)]


def _best(name: str, points: dict[int, float]) -> tuple[int, float | None]:
    """The first epoch with the best value of a metric, and this value; a loss is best where it is lowest."""
    sign = 1 if "loss" in name else -1
    epoch = min(points, key=lambda e: (not math.isfinite(points[e]), sign * points[e], e))
    return epoch, points[epoch] if math.isfinite(points[epoch]) else None


def _optimizer(trainer: Trainer) -> dict[str, Any]:
    """Class, peak learning rate and weight decay."""
    optimizer = trainer.optimizers[0]
    groups = optimizer.param_groups
    return {
        "class": type(optimizer).__name__,
        "lr": min(float(group.get("initial_lr", group["lr"])) for group in groups),  # that of B is higher in LoRA+
        # Biases, norms and diagonals are in a group without weight decay.
        "weight_decay": max(float(group.get("weight_decay", 0.0)) for group in groups),
    }


def _schedule(module: LightningModule) -> dict[str, Any]:
    """Class and options of the learning-rate schedule."""
    schedule = getattr(module, "schedule", None)
    if not dataclasses.is_dataclass(schedule) or isinstance(schedule, type):
        return {}
    return {"class": type(schedule).__name__, **dataclasses.asdict(schedule)}


def _batch(trainer: Trainer) -> dict[str, int]:
    """Factors of the examples per optimizer step: batch size per process, processes, accumulated batches."""
    return {
        "per_process": int(getattr(getattr(trainer, "datamodule", None), "batch_size", 0)),
        "processes": trainer.world_size,
        "accumulated": trainer.accumulate_grad_batches,
    }


def adapter_metadata(module: Described, datamodule: Any, metrics: dict[str, float]) -> dict[str, str]:
    """Metadata to use an adapter file elsewhere: backbone, classes and preprocessing, and for its model card the
    training data and the `metrics` on validation data."""
    metadata = {"backbone": json.dumps(module.describe()["backbone"])}
    if hasattr(datamodule, "preprocessing"):
        metadata["data"] = json.dumps({"class_names": datamodule.class_names, **datamodule.preprocessing()})
    if words := describe_training_data(getattr(datamodule, "describe", dict)()):
        metadata["trained_on"] = words
    if validated := {name: v for name, v in metrics.items() if name.startswith("val/") and math.isfinite(v)}:
        metadata["metrics"] = json.dumps(validated)
    return metadata


def best_checkpoint(last: Path | None) -> Path:
    """The best checkpoint of a `ModelCheckpoint` that monitors a metric, from the last checkpoint of its run.

    Raises:
        RepLoRAError: There is none.
    """
    callbacks = _callback_states(last) if last is not None and last.is_file() else {}
    states = [s for name, s in callbacks.items() if name.startswith("ModelCheckpoint") and s.get("best_model_path")]
    for state in states:
        saved = Path(state["best_model_path"])
        inside = last.parent / saved.name if last is not None else saved  # the run may have been moved
        for file in (saved, inside):
            if file.is_file():
                return file
    raise RepLoRAError(
        "--ckpt_path best: the run has no best checkpoint. A fit keeps one with --trainer.callbacks+=ModelCheckpoint "
        "--trainer.callbacks.monitor=val/accuracy --trainer.callbacks.mode=max "
        "--trainer.callbacks.dirpath=RUN/checkpoints."
    )


def trained_classes(checkpoint: Path) -> list[str] | None:
    """The class names that a checkpoint was trained with; None if it does not know them."""
    trained_on = _callback_states(checkpoint).get(ResultsWriter.__qualname__, {}).get("trained_on") or {}
    names: list[str] | None = trained_on.get("class_names")
    return names


def _callback_states(checkpoint: Path) -> dict[str, Any]:
    """Name of a callback -> its state in a checkpoint."""
    states: dict[str, Any] = read_checkpoint(checkpoint).get("callbacks", {})
    return states
