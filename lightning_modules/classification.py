"""The shared base of image and video classification: loss, metrics and predictions."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms.v2 import MixUp

from lightning_modules.base import AdaptedModule
from lightning_modules.callbacks.prediction_writer import PredictionWriter
from lightning_modules.schedule import WarmupCosine
from replora import AdapterConfig
from replora.backbones.backbone import Backbone
from replora.datasets.common.augment import generator_of
from replora.datasets.samples import PADDING_LABEL
from replora.errors import RepLoRAError, nearest
from replora.metrics.class_accuracy import MeanClassAccuracy
from replora.metrics.class_report import ClassReport
from replora.metrics.weighted_mean import WeightedMean

ClassWeights = Literal["none", "balanced"]


class ClassPredictions(TypedDict):
    """Output of `predict_step` for B examples."""

    index: Tensor  # int64 (B,)
    probabilities: Tensor  # float (B, num_classes)


class ClassificationModule(AdaptedModule):
    """A backbone with an adapter and a fresh classification head, on batches with `label` and `index`.

    Logged: `loss`, `accuracy` and, for validation and test, `mean_class_accuracy`, each with the prefix `train/`,
    `val/` or `test/`; where `counts_skipped` is set, also `skipped`, the examples that could not be read and are not in
    the other numbers. A subclass implements `logits_of`.

    Args:
        built: Backbone.
        num_classes: Number of classes.
        label_smoothing: Weight in [0, 1) of the uniform distribution in the training target.
        class_weights: `balanced` weights each class in the training loss by the inverse of its number of training
            examples, as in scikit-learn: examples / (classes x examples of the class).
        mixup: Parameter alpha (>= 0) of mixup (Zhang et al. 2018): training images are mixed in pairs, with weights
            from Beta(alpha, alpha). 0 mixes none.
        adapter, optimizer, schedule: See `AdaptedModule`.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    counts_skipped = False  # whether `skipped` is logged

    def __init__(
        self,
        built: Backbone,
        num_classes: int,
        label_smoothing: float,
        adapter: AdapterConfig,
        optimizer: OptimizerCallable,
        schedule: WarmupCosine,
        class_weights: ClassWeights = "none",
        mixup: float = 0.0,
    ) -> None:
        if class_weights not in get_args(ClassWeights):
            known = nearest(str(class_weights), get_args(ClassWeights))
            raise RepLoRAError(f"class_weights: {class_weights!r} is not known. {known}")
        if not 0 <= mixup < math.inf:
            raise RepLoRAError(f"mixup: {mixup} is out of range. It must be a number of at least 0, such as 0.2.")
        if not 0 <= label_smoothing < 1:
            raise RepLoRAError(f"label_smoothing: {label_smoothing} is out of range. It must be a number in [0, 1).")
        super().__init__(built, adapter, optimizer, schedule)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.mixup = MixUp(alpha=mixup, num_classes=num_classes) if mixup else None
        self.register_buffer("weight_of_class", None, persistent=False)
        self.compiled = False
        accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=PADDING_LABEL)
        by_class = MeanClassAccuracy(num_classes, ignore_index=PADDING_LABEL)
        evaluation = MetricCollection({"accuracy": accuracy, "mean_class_accuracy": by_class})
        # They ask the device for nothing. Lightning's mean over processes rounds their numbers of examples.
        self.train_loss, self.train_accuracy = WeightedMean(), WeightedMean()
        self.val_metrics = evaluation.clone(prefix="val/")
        self.test_metrics = evaluation.clone(prefix="test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.train_skipped = SumMetric(nan_strategy="disable")
        self.val_skipped, self.test_skipped = SumMetric(), SumMetric()
        report = ClassReport(num_classes, ignore_index=PADDING_LABEL)
        self.val_report, self.test_report = report, report.clone()
        self.temperature: float | None = None  # by which `TemperatureScaling` divided the head
        self._reported: dict[str, dict[str, Any]] = {}  # verb -> what its report said at the end

    def compile_model(self) -> None:
        """Compile the model with `torch.compile`; the names in checkpoints do not change."""
        self.model.compile()
        self.compiled = True

    def any_batch_size(self, inputs: Tensor) -> Tensor:
        """Tell the compiler that evaluations have batches of several sizes, so that one graph serves all of them.

        Training keeps the size of its batches, whose graph is faster without this.
        """
        if self.compiled and not torch.is_grad_enabled():
            torch._dynamo.maybe_mark_dynamic(inputs, 0)
        return inputs

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.class_weights == "balanced":
            self._balance()
        if self.compiled:
            rank_zero_info(
                "compile: the first batch of an evaluation and the first one of the training wait until the model is "
                "compiled, some minutes each on a CPU (docs/video.md)"
            )

    def writers(self, verb: str, run_dir: Path) -> list[Callback]:  # noqa: ARG002
        return [PredictionWriter(run_dir)]

    def measured(self, verb: str) -> dict[str, Any]:
        temperature = {"temperature": self.temperature} if verb == "fit" and self.temperature else {}
        return super().measured(verb) | self._reported.get(verb, {}) | temperature

    @abstractmethod
    def logits_of(self, batch: Any) -> Tensor:
        """Logits (B, num_classes) of a batch."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Count the labels while they are in host memory: to ask the device makes the step wait for it."""
        return _with_count(batch) if self.trainer.training else batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._count_skipped(batch, self.train_skipped, "train/skipped")
        batch = _with_count(batch)
        batch, target = (batch, batch["label"]) if self.mixup is None else self._mixed(batch, batch_idx)
        logits, label = self.logits_of(batch), batch["label"]
        loss = F.cross_entropy(
            logits,
            target,
            weight=self.weight_of_class,
            ignore_index=PADDING_LABEL if target.ndim == 1 else -100,
            label_smoothing=self.label_smoothing,
        )
        counted: int = batch["counted"]
        if not counted:  # their mean would be 0 / 0
            loss = logits.sum() * 0
        self.check_finite(loss, batch_idx)
        self.train_accuracy.update((logits.argmax(dim=1) == label).float(), (label != PADDING_LABEL).float())
        self.train_loss.update(loss.detach(), counted)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("loss", loss, prog_bar=True, logger=False)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/learning_rate", rate, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def _mixed(self, batch: Any, batch_idx: int) -> tuple[Any, Tensor]:
        """A batch of images mixed in pairs, and its targets (B, num_classes); images that do not count are left out."""
        generator = generator_of(self.global_rank, self.current_epoch, batch_idx)  # equal in a run that resumes
        if not batch["counted"]:
            return batch, batch["label"]
        kept = batch
        if batch["counted"] < len(batch["label"]):
            counted = batch["label"] != PADDING_LABEL
            kept = {name: value[counted] if isinstance(value, Tensor) else value for name, value in batch.items()}
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the generator of the process
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            images, target = self.mixup(kept["image"], kept["label"])  # type: ignore[misc]
        return {**kept, "image": images}, target

    def _balance(self) -> None:
        """Weigh the classes by their training examples; one without any has the weight 0."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        counts = getattr(datamodule, "training_counts", None)
        if counts is None:
            raise RepLoRAError(
                "class_weights: the datamodule does not say how many training examples each class has "
                "(`training_counts`). Set --model.class_weights none."
            )
        examples = torch.tensor(counts(), dtype=torch.float32)
        weights = torch.where(examples > 0, examples.sum() / (examples > 0).sum() / examples.clamp(min=1), 0.0)
        self.weight_of_class = weights.to(self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        logits = self._evaluate(batch, self.val_metrics, self.val_loss, "val/")
        self.val_report.update(logits, batch["label"])
        self._count_skipped(batch, self.val_skipped, "val/skipped")
        return {"logits": logits}

    def test_step(self, batch: Any, batch_idx: int) -> ClassPredictions:  # noqa: ARG002
        logits = self._evaluate(batch, self.test_metrics, self.test_loss, "test/")
        self.test_report.update(logits, batch["label"])
        self._count_skipped(batch, self.test_skipped, "test/skipped")
        return {"index": batch["index"], "probabilities": logits.float().softmax(dim=-1)}

    def on_validation_epoch_end(self) -> None:
        self._reported["validate"] = self.val_report.compute()
        self.val_report.reset()

    def on_test_epoch_end(self) -> None:
        self._reported["test"] = self.test_report.compute()
        self.test_report.reset()

    def predict_step(self, batch: Any, batch_idx: int) -> ClassPredictions:  # noqa: ARG002
        return {"index": batch["index"], "probabilities": self.logits_of(batch).float().softmax(dim=-1)}

    def _count_skipped(self, batch: Any, skipped: SumMetric, name: str) -> None:
        if self.counts_skipped:
            # Padding has index -1 and does not count.
            skipped.update(((batch["label"] == PADDING_LABEL) & (batch["index"] >= 0)).sum())
            self.log(name, skipped, on_step=False, on_epoch=True)

    def _evaluate(self, batch: Any, metrics: MetricCollection, mean_loss: MeanMetric, prefix: str) -> Tensor:
        logits, label = self.logits_of(batch), batch["label"]
        metrics.update(logits, label)
        counted = label != PADDING_LABEL
        mean_loss.update(F.cross_entropy(logits[counted], label[counted], reduction="none"))
        self.log(f"{prefix}loss", mean_loss)
        for name, metric in metrics.items(keep_base=False, copy_state=False):
            self.log(name, metric, prog_bar=name == f"{prefix}accuracy")
        return logits


def _with_count(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with the number of its examples that count; a datamodule with hooks of its own gives none."""
    return batch if "counted" in batch else {**batch, "counted": int((batch["label"] != PADDING_LABEL).sum())}
