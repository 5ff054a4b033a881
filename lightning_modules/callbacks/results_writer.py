"""Writes `results.json` and `adapter.safetensors` into the run's directory."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

import replora
from replora.results import (
    add_to_results,
    check_same_run,
    describe_training_data,
    environment_info,
    peak_memory,
    read_results,
)

HISTORY = 50  # epochs of the course that a results file keeps at most
UNTRAINED = "untrained"


@runtime_checkable
class Described(Protocol):
    """A module with something to write; that of another kind is left alone."""

    def describe(self) -> dict[str, Any]: ...

    def measured(self, verb: str) -> dict[str, Any]: ...


class ResultsWriter(Callback):
    """One entry in `results.json` for each verb, and the trained adapter when a fit ends.

    Nothing is written where a run is a dry one (`fast_dev_run`) or does not come to its end.

    Args:
        run_dir: The run's directory.
        untrained: Whether the model is measured as it is before any training.
    """

    def __init__(self, run_dir: Path, untrained: bool = False) -> None:
        self.run_dir = run_dir
        self.untrained = untrained
        self.fitted = False
        self.started = 0.0
        self.validated = -1  # the epoch of the last validation
        self.history: dict[str, dict[int, float]] = {}  # metric -> epoch from 1 -> value

    @property
    def file(self) -> Path:
        return self.run_dir / "results.json"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if trainer.is_global_zero and self.file.exists() and isinstance(pl_module, Described):
            check_same_run(self.file, read_results(self.file), pl_module.describe())
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        for name, value in _metrics(trainer).items():
            # Where no validation was made in this epoch, Lightning still holds the one before.
            if not name.startswith("val/") or self.validated == trainer.current_epoch:
                self.history.setdefault(name, {})[trainer.current_epoch + 1] = value

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated = trainer.current_epoch
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate", {"weights": self._weights(trainer)})

    def state_dict(self) -> dict[str, Any]:
        """The course so far, for a run that resumes."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fitted = True
        resumed = str(trainer.ckpt_path) if trainer.ckpt_path else None
        entry = {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "resumed_from": resumed,
            "selection": "last epoch",
            "optimizer": _optimizer(trainer),
            "batch": _batch(trainer),
            "schedule": _schedule(pl_module),
            "history": {name: _thinned(points) for name, points in self.history.items()},
        }
        self._write(trainer, pl_module, "fit", entry)
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False) and isinstance(pl_module, Described):
            metadata = adapter_metadata(pl_module, getattr(trainer, "datamodule", None), _metrics(trainer))
            replora.save_adapter(cast(nn.Module, pl_module.model), self.run_dir / "adapter.safetensors", metadata)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "test", {"weights": self._weights(trainer)})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "predict", {"weights": self._weights(trainer)})

    def _weights(self, trainer: Trainer) -> str:
        """Which weights were measured."""
        if trainer.ckpt_path:
            seen = getattr(trainer.lightning_module, "loaded_after", "")
            return f"{trainer.ckpt_path} (after {seen})"
        if self.untrained:
            return UNTRAINED
        return "last epoch" if self.fitted else "as given"

    def _write(self, trainer: Trainer, module: LightningModule, verb: str, entry: dict[str, Any]) -> None:
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False) or not isinstance(module, Described):
            return
        metrics = _metrics(trainer)
        entry = {
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            **module.measured(verb),
            **entry,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "seconds": round(time.monotonic() - self.started, 2),
            "peak_memory_bytes": peak_memory(),
            "devices": trainer.world_size,
            "accelerator": type(trainer.accelerator).__name__,
            "precision": trainer.precision,
            **environment_info(),
        }
        describe = getattr(getattr(trainer, "datamodule", None), "describe", dict)
        add_to_results(self.file, module.describe(), describe(), verb, entry)


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in trainer.callback_metrics.items() if "/" in name}


def _thinned(points: dict[int, float]) -> list[list[float | None]]:
    """At most `HISTORY` of the points, evenly spread, the last one among them: [[epoch, value], ...]."""
    epochs = sorted(points)
    count = min(HISTORY, len(epochs))
    kept = {len(epochs) - 1 - (i * len(epochs)) // count for i in range(count)}
    return [[epochs[i], points[epochs[i]] if math.isfinite(points[epochs[i]]) else None] for i in sorted(kept)]


def _optimizer(trainer: Trainer) -> dict[str, Any]:
    """Class, peak learning rate and weight decay."""
    optimizer = trainer.optimizers[0]
    groups = optimizer.param_groups
    return {
        "class": type(optimizer).__name__,
        "lr": max(float(group.get("initial_lr", group["lr"])) for group in groups),
        # Biases, norms and diagonals are in a group without.
        "weight_decay": max(float(group.get("weight_decay", 0.0)) for group in groups),
    }


def _schedule(module: LightningModule) -> dict[str, Any]:
    """Class and options of the learning rate's course."""
    schedule = getattr(module, "schedule", None)
    if not dataclasses.is_dataclass(schedule) or isinstance(schedule, type):
        return {}
    return {"class": type(schedule).__name__, **dataclasses.asdict(schedule)}


def _batch(trainer: Trainer) -> dict[str, int]:
    """What one optimiser step sees: batch of a process x processes x accumulated."""
    return {
        "per_process": int(getattr(getattr(trainer, "datamodule", None), "batch_size", 0)),
        "processes": trainer.world_size,
        "accumulated": trainer.accumulate_grad_batches,
    }


def adapter_metadata(module: Described, datamodule: Any, metrics: dict[str, float]) -> dict[str, str]:
    """What must be known to use an adapter file elsewhere: its backbone, the classes and the preprocessing, and for
    its card what it was trained on and its `metrics` on validation data."""
    metadata = {"backbone": json.dumps(module.describe()["backbone"])}
    if hasattr(datamodule, "preprocessing"):
        metadata["data"] = json.dumps({"class_names": datamodule.class_names, **datamodule.preprocessing()})
    if words := describe_training_data(getattr(datamodule, "describe", dict)()):
        metadata["trained_on"] = words
    if validated := {name: v for name, v in metrics.items() if name.startswith("val/") and math.isfinite(v)}:
        metadata["metrics"] = json.dumps(validated)
    return metadata
