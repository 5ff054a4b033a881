"""What every task shares: backbone and adapter, their optimiser, adapter-only checkpoints, exact resuming."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

import replora
from lightning_modules.callbacks.merged_evaluation import MergedEvaluation
from lightning_modules.schedule import WarmupCosine, WarmupLinear
from replora.adapters.container import adapters_of
from replora.backbones.backbone import Backbone
from replora.errors import RepLoRAError
from replora.former_names import renamed

# Options of a method that shape its training alone: a checkpoint may be used with others.
TRAINING_ONLY = {"dropout", "init"}


class CheckpointMismatchError(RepLoRAError):
    """A checkpoint of another backbone, method, rank or number of classes, or of another program."""


class NonFiniteLossError(RepLoRAError):
    """The loss became infinite or not a number."""


class AdaptedModule(LightningModule, ABC):
    """A frozen backbone with an adapter and a head that train.

    A subclass builds its backbone, hands it to this constructor, and adds its steps and metrics.

    Randomness. Before each training step torch is seeded with a function of (seed of the run, epoch, batch, rank), so
    dropout and drop path need no state: a resumed run draws what the uninterrupted one would have drawn.

    Checkpoints hold the tensors that training changes, the optimiser and the loops. The frozen backbone is built anew
    from its own source, and a checkpoint of another backbone, method, rank or head is refused.

    Args:
        built: The backbone; its `head_names` train as a whole.
        adapter: The method.
        optimizer: Makes the optimiser from the parameter groups that train.
        schedule: The learning rate's course.
    """

    def __init__(
        self,
        built: Backbone,
        adapter: replora.AdapterConfig,
        optimizer: OptimizerCallable,
        schedule: WarmupCosine | WarmupLinear,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="built", logger=False)
        self._keep_plain_hyperparameters()
        self.backbone = built
        self.model = replora.inject(built.model, adapter, also_train=built.head_names)
        for name in built.head_names:
            self.model.get_submodule(name).register_forward_pre_hook(_in_the_dtype_of_its_weight)
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.loaded_after = ""  # what the weights read from a checkpoint have seen

    def describe(self) -> dict[str, Any]:
        """Backbone and method, as JSON values."""
        b = self.backbone
        backbone = {"name": b.name, "weights": b.weights, "sha256": b.sha256, "fingerprint": b.fingerprint}
        return {"backbone": backbone, **replora.describe(self.model)}

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, scalar."""

    def measured(self, verb: str) -> dict[str, Any]:  # noqa: ARG002
        """What a verb measured beyond its logged metrics, as JSON values for its entry in the results."""
        return {}

    def on_fit_start(self) -> None:
        counts = replora.parameter_counts(self.model)
        method = replora.describe(self.model)["method"]
        rank_zero_info(
            f"{method} on {self.backbone.name}: {counts.adapter_trained:,} parameters train "
            f"({counts.adapter_deployed:,} after training) beside {counts.backbone:,} of the backbone and "
            f"{counts.head:,} of the head"
        )

    def configure_callbacks(self) -> list[Callback]:
        """What every Trainer of this module gets: evaluations with merged weights."""
        return [MergedEvaluation()]

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Refuse strategies that take apart what trains: its checkpoints would hold pieces."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) or getattr(strategy, "zero_stage_3", False):
            raise RepLoRAError(
                f"{type(strategy).__name__} shards what trains as well, so the adapter could not be saved whole. "
                "--config trainer/fsdp.yaml shards the frozen weights alone; --config trainer/deepspeed.yaml (ZeRO "
                "stage 2) shards optimiser and gradients."
            )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As ever, but low-rank factors and head stay in float32 where the Trainer's precision is 16 bit throughout.

        Small updates of a 16-bit weight would be rounded away.
        """
        adapters = adapters_of(self.model)
        heads = [p for name in self.backbone.head_names for p in self.model.get_submodule(name).parameters()]
        kept = {parameter: parameter.data for parameter in (*adapters.banks.parameters(), *heads)}
        super().to(*args, **kwargs)
        for parameter, data in kept.items():
            if data.dtype == torch.float32:
                parameter.data = data.to(parameter.device)
        return self

    # --- optimisation

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser over what trains, and the schedule over the whole run."""
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise RepLoRAError(
                "The length of the run is unknown, but the learning rate's course needs it: set --trainer.max_epochs "
                "or --trainer.max_steps."
            )
        self.trainer.fit_loop.setup_data()  # where max_steps alone is given, nobody has counted the batches yet
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        optimizer = self.make_optimizer(self.parameter_groups())
        scheduler = self.schedule.scheduler(optimizer, max(steps_per_epoch, 1), max(int(total), 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule.per}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser gets: matrices with weight decay, vectors without."""
        return replora.parameter_groups(self.model)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        key = (seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)

    def require_finite(self, loss: Tensor, batch_idx: int) -> None:
        """Stop the run at the first loss that is not a number.

        Raises:
            NonFiniteLossError: `loss` is infinite or NaN.
        """
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"The loss is {loss.item()} in epoch {self.current_epoch}, batch {batch_idx} (step "
                f"{self.global_step}). "
                "Lower --model.optimizer.lr, clip with --trainer.gradient_clip_val 1.0, or use a wider "
                "--trainer.precision."
            )

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = replora.adapter_state(self.model)
        checkpoint["state_dict"] = {f"model.{name}": tensor for name, tensor in state.items()}
        checkpoint["replora"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "replora" not in checkpoint:
            raise CheckpointMismatchError(
                "The checkpoint was not written by this program: it has no 'replora' entry. Weights of a backbone go "
                "into --model.checkpoint; --ckpt_path is for a run's own checkpoints/last.ckpt."
            )
        found, asked = _flat(checkpoint["replora"]), _flat(self._identity())
        differing = [
            f"{key}: {found[key]!r} in the checkpoint, {asked[key]!r} here"
            for key in asked
            if key in found and found[key] != asked[key] and key.rpartition(".")[2] not in TRAINING_ONLY
        ]
        if differing:
            listed = "\n  ".join(differing)
            raise CheckpointMismatchError(
                f"The checkpoint belongs to another model:\n  {listed}\nGive the options it was made with; they are in "
                "the fit.yaml of its run (--config RUN/fit.yaml)."
            )
        state = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
        replora.load_adapter_state(self.model, state, found="The checkpoint")
        # What is not in the checkpoint stays as it is: Lightning's strict loading then finds every key.
        checkpoint["state_dict"] = self.state_dict()
        self.loaded_after = _seen(checkpoint["loops"]["fit_loop"])
        self._tell_other_options(renamed(dict(checkpoint.get("hyper_parameters", {}))))

    def _identity(self) -> dict[str, Any]:
        described = self.describe()
        backbone = {key: described["backbone"][key] for key in ("name", "fingerprint")}
        return {"backbone": backbone, "method": described["method"], "adapter": described["options"]}

    def _tell_other_options(self, saved: dict[str, Any]) -> None:
        found, asked = _flat(saved), _flat(dict(self.hparams))
        changed = [f"{k}: {found[k]!r} -> {asked[k]!r}" for k in asked if k in found and found[k] != asked[k]]
        changed = [line for line in changed if not line.startswith("_")]
        if changed:
            rank_zero_info(f"Other options than in the checkpoint; the ones given now count: {'; '.join(changed)}")

    def _keep_plain_hyperparameters(self) -> None:
        """Checkpoints are read with `weights_only=True`, so they may hold numbers, strings, lists and dicts alone.

        The command line hands plain values over; from Python an optimiser's function is left out (a module read by
        `load_from_checkpoint` then has the default one).
        """
        for key, value in list(self.hparams.items()):
            if isinstance(value, replora.AdapterConfig):
                class_path = f"{type(value).__module__}.{type(value).__qualname__}"
                self.hparams[key] = {"class_path": class_path, "init_args": _plain(vars(value))}
            elif callable(value):
                del self.hparams[key]
            else:
                self.hparams[key] = _plain(value)
        self.hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"


def _in_the_dtype_of_its_weight(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A head in float32 behind a 16-bit backbone."""
    dtype = next(head.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _seen(fit_loop: dict[str, Any]) -> str:
    """What a checkpoint's weights were trained on, for the reader of a result."""
    epochs = fit_loop["epoch_progress"]["current"]
    text = f"{epochs['processed']} epochs"
    if epochs["processed"] == epochs["started"]:
        return text
    return f"{text} and {fit_loop['epoch_loop.batch_progress']['current']['ready']} batches"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
