"""The shared base of all tasks: backbone and adapter, optimizer, adapter-only checkpoints, exact resuming."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

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
from lightning_modules.lora_plus import LoRAPlus
from lightning_modules.predictors import Predictor
from lightning_modules.schedule import WarmupCosine, WarmupLinear, scale_rates
from replora.adapters.container import adapters_of
from replora.backbones.backbone import Backbone
from replora.errors import RepLoRAError
from replora.identity import flat_options, is_compared

LOSSES_READ = 50  # batches whose losses are read together


class CheckpointMismatchError(RepLoRAError):
    """A checkpoint is of another backbone, method, rank or number of classes, or of another program."""


class NonFiniteLossError(RepLoRAError):
    """The loss became infinite or not a number."""


class AdaptedModule(LightningModule, ABC):
    """A frozen backbone with a trainable adapter and head.

    A subclass builds its backbone, passes it to this constructor, and adds its steps and metrics. It says what differs
    between kinds of task in `build_backbone`, `writers` and `predictor`.

    Randomness. Before each training step torch is seeded with a function of (seed of the run, epoch, batch, rank).
    Dropout and drop path therefore need no state: a resumed run draws the same numbers as an uninterrupted one.

    Checkpoints hold the tensors that training changes, the optimizer and the loops. The frozen backbone is built again
    from its own source; a checkpoint of another backbone, method, rank or head raises an error.

    Args:
        built: Backbone; the modules in its `head_names` train completely.
        adapter: Adaptation method.
        optimizer: Function that creates the optimizer from the trainable parameter groups.
        schedule: Learning-rate schedule.
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
            self.model.get_submodule(name).register_forward_pre_hook(_cast_to_head_dtype)
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.loaded_after = ""  # training of the weights read from a checkpoint, in words
        self._unread: list[tuple[Tensor, int, int, int]] = []  # losses with their epoch, batch and step
        self._planned: tuple[int, int, int] | None = None  # the length for which the schedule was made

    def describe(self) -> dict[str, Any]:
        """Backbone and method, as JSON values."""
        return {"backbone": self.backbone.describe(), **replora.describe(self.model)}

    # --- what differs between kinds of task

    predictor: ClassVar[type[Predictor] | None] = None  # classifies files (`replora-cli predict-files`)

    @classmethod
    def build_backbone(
        cls,
        options: dict[str, Any],  # noqa: ARG003
        data: dict[str, Any],  # noqa: ARG003
        checkpoint: Path | None,  # noqa: ARG003
    ) -> Backbone:
        """Build the backbone of a finished run, for `replora.runs.open_run`.

        Args:
            options: Options of the run's module, from its `fit.yaml`.
            data: Class names and preprocessing, from the run's adapter file; may be empty.
            checkpoint: File or folder of weights to use instead of the source in `options`.

        Raises:
            RepLoRAError: The backbone or its weights are not available, or the class cannot build it from these.
        """
        raise RepLoRAError(f"{cls.__name__} has no build_backbone, which opening a finished run needs.")

    def writers(self, verb: str, run_dir: Path) -> list[Callback]:  # noqa: ARG002
        """Callbacks that write predictions into the run's directory during a verb (`fit`, `test`, ...)."""
        return []

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, scalar."""

    def measured(self, verb: str) -> dict[str, Any]:  # noqa: ARG002
        """Measurements of a verb beyond its logged metrics, as JSON values for its entry in the results."""
        return {}

    def on_fit_start(self) -> None:
        counts = replora.parameter_counts(self.model)
        method = replora.describe(self.model)["method"]
        rank_zero_info(
            f"{method} on {self.backbone.name}: {counts.adapter_trained:,} parameters train "
            f"({counts.adapter_deployed:,} after training) beside {counts.backbone:,} of the backbone and "
            f"{counts.head:,} of the head"
        )
        # A callback, such as BatchSizeFinder, may have changed the batches since.
        if self._planned and self._length() != self._planned:
            self.trainer.strategy.setup_optimizers(self.trainer)

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks for every Trainer of this module: evaluation with merged weights."""
        return [MergedEvaluation()]

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Check the strategy.

        Raises:
            RepLoRAError: It shards the trainable parameters, so checkpoints would be incomplete.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) or getattr(strategy, "zero_stage_3", False):
            raise RepLoRAError(
                f"{type(strategy).__name__} also shards trainable parameters, so an adapter file would be incomplete. "
                "--config trainer/fsdp.yaml shards the frozen weights only; --config trainer/deepspeed.yaml (ZeRO "
                "stage 2) shards optimizer and gradients."
            )

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the module, but keep factors and head in float32 under the Trainer's true 16-bit precisions.

        Small updates of a 16-bit weight would be rounded away.
        """
        adapters = adapters_of(self.model)
        heads = [p for name in self.backbone.head_names for p in self.model.get_submodule(name).parameters()]
        kept = {parameter: parameter.data for parameter in (*adapters.parameters(), *heads)}
        super().to(*args, **kwargs)
        for parameter, data in kept.items():
            if data.dtype == torch.float32:
                parameter.data = data.to(parameter.device)
        return self

    # --- optimization

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer of the trainable parameters, and the schedule over the complete run."""
        self._planned = steps_per_epoch, total, batch = self._length()
        optimizer = self.make_optimizer(self.parameter_groups())
        if isinstance(optimizer, LoRAPlus):
            optimizer.raise_rate(p for bank in adapters_of(self.model).factor_banks() for p in bank.last_matrices())
        scale_rates(optimizer, self.schedule.lr_base_size, batch)
        scheduler = self.schedule.scheduler(optimizer, steps_per_epoch, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule.per}}

    def _length(self) -> tuple[int, int, int]:
        """Optimizer steps of an epoch and of the run, and examples per optimizer step."""
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise RepLoRAError(
                "The length of the run is unknown, but the learning-rate schedule needs it: set --trainer.max_epochs "
                "or --trainer.max_steps."
            )
        self.trainer.fit_loop.setup_data()  # with max_steps alone, the batches have not been counted yet
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return max(steps_per_epoch, 1), max(int(total), 1), self._total_batch()

    def _total_batch(self) -> int:
        """Examples per optimizer step, in all processes."""
        batch_size: int = getattr(self.trainer.datamodule, "batch_size", 0)  # type: ignore[attr-defined]
        if self.schedule.lr_base_size is not None and not batch_size:
            raise RepLoRAError("schedule.lr_base_size needs the batch size of a datamodule. Set the lr itself instead.")
        return batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer: matrices with weight decay, vectors without."""
        return replora.parameter_groups(self.model)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        key = (seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)

    def check_finite(self, loss: Tensor, batch_idx: int) -> None:
        """Stop the run if this loss or an earlier one is not a number.

        Reading a loss makes the host wait for the device. Therefore losses are read together: every `LOSSES_READ`
        batches, at the end of an epoch, and before a checkpoint is written.

        Raises:
            NonFiniteLossError: A loss is infinite or NaN.
        """
        self._unread.append((loss.detach(), self.current_epoch, batch_idx, self.global_step))
        if len(self._unread) >= LOSSES_READ:
            self._read_losses()

    def _read_losses(self) -> None:
        read, self._unread = self._unread, []
        losses = torch.stack([loss for loss, *_ in read]).tolist() if read else []
        for loss, (_, epoch, batch_idx, step) in zip(losses, read, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"The loss is {loss} in epoch {epoch}, batch {batch_idx} (step {step}). Lower "
                    "--model.optimizer.lr, clip with --trainer.gradient_clip_val 1.0, or use a wider "
                    "--trainer.precision."
                )

    def on_train_epoch_end(self) -> None:
        self._read_losses()

    # --- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._read_losses()
        state = replora.adapter_state(self.model)
        checkpoint["state_dict"] = {f"model.{name}": tensor for name, tensor in state.items()}
        checkpoint["replora"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "replora" not in checkpoint:
            raise CheckpointMismatchError(
                "The checkpoint was not written by this program: it has no 'replora' entry. Weights of a backbone go "
                "into --model.checkpoint; --ckpt_path is for a run's own checkpoints/last.ckpt."
            )
        found, asked = flat_options(checkpoint["replora"]), flat_options(self._identity())
        differing = [
            f"{key}: {found[key]!r} in the checkpoint, {asked[key]!r} here"
            for key in asked
            if key in found
            and found[key] != asked[key]
            and is_compared(key.replace("adapter.", "options.", 1), "checkpoint", unknown=True)
        ]
        if differing:
            listed = "\n  ".join(differing)
            raise CheckpointMismatchError(
                f"The checkpoint belongs to another model:\n  {listed}\nGive the options it was made with; they are in "
                "the fit.yaml of its run (--config RUN/fit.yaml)."
            )
        state = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
        replora.load_adapter_state(self.model, state, found="The checkpoint")
        # The other tensors are those of the model, so that Lightning's strict loading finds every key.
        checkpoint["state_dict"] = self.state_dict()
        self.loaded_after = _describe_progress(checkpoint["loops"]["fit_loop"])
        self._report_changed_options(checkpoint.get("hyper_parameters", {}))

    def _identity(self) -> dict[str, Any]:
        described = self.describe()
        backbone = {key: described["backbone"][key] for key in ("name", "fingerprint")}
        return {"backbone": backbone, "method": described["method"], "adapter": described["options"]}

    def _report_changed_options(self, saved: dict[str, Any]) -> None:
        found, asked = flat_options(saved), flat_options(dict(self.hparams))
        changed = [f"{k}: {found[k]!r} -> {asked[k]!r}" for k in asked if k in found and found[k] != asked[k]]
        changed = [line for line in changed if not line.startswith("_")]
        if changed:
            rank_zero_info(f"Options differ from those in the checkpoint; the current ones apply: {'; '.join(changed)}")

    def _keep_plain_hyperparameters(self) -> None:
        """Keep numbers, strings, lists and dicts alone: checkpoints are read with `weights_only=True`.

        The command line passes plain values. An optimizer function from Python is left out, so that
        `load_from_checkpoint` uses the default one.
        """
        for key, value in list(self.hparams.items()):
            if isinstance(value, replora.AdapterConfig):
                class_path = f"{type(value).__module__}.{type(value).__qualname__}"
                self.hparams[key] = {"class_path": class_path, "init_args": _plain(value.arguments())}
            elif callable(value):
                del self.hparams[key]
            else:
                self.hparams[key] = _plain(value)
        self.hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"


def _cast_to_head_dtype(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the inputs of a head, which may be in float32 after a 16-bit backbone."""
    dtype = next(head.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _describe_progress(fit_loop: dict[str, Any]) -> str:
    """How long the weights of a checkpoint were trained, in words, for the results."""
    epochs = fit_loop["epoch_progress"]["current"]
    text = f"{epochs['processed']} epochs"
    if epochs["processed"] == epochs["started"]:
        return text
    return f"{text} and {fit_loop['epoch_loop.batch_progress']['current']['ready']} batches"


def _plain(value: Any) -> Any:
    """A value of an option as numbers, strings, lists and dicts."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
