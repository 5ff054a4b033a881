"""Image classification with an adapted vision backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.base import AdaptedModule
from lightning_modules.schedule import WarmupCosine
from replora import AdapterConfig, RepLoRAConfig
from replora.backbones.vision import VisionBackbone, build_vision_backbone, checkpoint_gradients
from replora.datasets import ImageBatch
from replora.errors import RepLoRAError

PADDING = -1  # the label of what fills up an evaluation batch; neither loss nor metrics count it
DEFAULT_ADAPTER = RepLoRAConfig()
DEFAULT_SCHEDULE = WarmupCosine()


class ImagePredictions(TypedDict):
    """What `predict_step` gives for B images."""

    index: Tensor  # int64 (B,)
    probabilities: Tensor  # float (B, num_classes)


class ImageClassification(AdaptedModule):
    """A pre-trained image backbone with an adapter and a fresh classification head.

    Batches are `replora.datasets.ImageBatch`es of normalised images. Logged: `loss`, `accuracy` and, for validation and
    test, `mean_class_accuracy`, each with the prefix `train/`, `val/` or `test/`.

    Args:
        num_classes: Number of classes. On the command line it is the data's and cannot be given.
        backbone: A timm model name, or `vit_nano`, the small one that ships with this package.
        pretrained: Whether to start from the backbone's published weights; needs a network at the first use.
        checkpoint: Weights file to start from instead: Google's `.npz`, `.safetensors`, `.pth`, `.pt` or `.bin`.
        drop_path_rate: Probability in [0, 1) of skipping the deepest residual branch in training; linear over depth.
        label_smoothing: Weight in [0, 1) of the uniform distribution in the training target.
        adapter: The method: RepLoRA, its ablations and LoRA (`RepLoRAConfig`), `FullConfig`, `LinearProbeConfig`,
            `BitFitConfig`, or another one through the peft library (`PeftConfig`).
        optimizer: The optimiser. Biases, norms and diagonals train without weight decay.
        schedule: The learning rate's course.
        gradient_checkpointing: Whether to compute activations again in the backward pass instead of keeping them: less
            memory, about a third more time, the same result.
        compile: Whether to compile the model with `torch.compile`: minutes at the start, faster steps.

    Raises:
        RepLoRAError: An option is out of its range, or the backbone or its weights cannot be had.
    """

    backbone: VisionBackbone

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vit_base_patch16_224.orig_in21k",
        pretrained: bool = True,
        checkpoint: Path | None = None,
        drop_path_rate: float = 0.0,
        label_smoothing: float = 0.0,
        adapter: AdapterConfig = DEFAULT_ADAPTER,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4),
        schedule: WarmupCosine = DEFAULT_SCHEDULE,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise RepLoRAError(f"label_smoothing: {label_smoothing} is out of range. It must be a number in [0, 1).")
        built = build_vision_backbone(
            backbone,
            num_classes=num_classes,
            pretrained=pretrained,
            checkpoint=checkpoint,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(built, adapter, optimizer, schedule)
        if gradient_checkpointing:
            checkpoint_gradients(self.model)
        if compile:
            self.model.compile()  # in place: names in checkpoints stay as they are
        self.label_smoothing = label_smoothing
        accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=PADDING)
        by_class = MulticlassAccuracy(num_classes, average="macro", ignore_index=PADDING)
        evaluation = MetricCollection({"accuracy": accuracy, "mean_class_accuracy": by_class})
        self.train_metrics = MetricCollection({"accuracy": accuracy.clone()}, prefix="train/")
        self.val_metrics = evaluation.clone(prefix="val/")
        self.test_metrics = evaluation.clone(prefix="test/")
        # Lightning's own mean over processes rounds their numbers of images; torchmetrics' does not.
        self.train_loss, self.val_loss, self.test_loss = MeanMetric(), MeanMetric(), MeanMetric()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        size = getattr(getattr(self.trainer, "datamodule", None), "image_size", None)
        if size is not None:
            self._require_size(size, size)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, num_classes)."""
        self._require_size(*image.shape[-2:])
        logits: Tensor = self.model(image)
        return logits

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        logits, label = self(batch["image"]), batch["label"]
        loss = F.cross_entropy(logits, label, ignore_index=PADDING, label_smoothing=self.label_smoothing)
        self.require_finite(loss, batch_idx)
        self.train_metrics.update(logits, label)
        self.train_loss.update(loss.detach(), len(label))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("loss", loss, prog_bar=True, logger=False)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/learning_rate", rate, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:  # noqa: ARG002
        self._evaluate(batch, self.val_metrics, self.val_loss, "val/")

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:  # noqa: ARG002
        self._evaluate(batch, self.test_metrics, self.test_loss, "test/")

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> ImagePredictions:  # noqa: ARG002
        return {"index": batch["index"], "probabilities": self(batch["image"]).float().softmax(dim=-1)}

    def _evaluate(self, batch: ImageBatch, metrics: MetricCollection, mean_loss: MeanMetric, prefix: str) -> None:
        logits, label = self(batch["image"]), batch["label"]
        metrics.update(logits, label)
        counted = label != PADDING
        mean_loss.update(F.cross_entropy(logits[counted], label[counted], reduction="none"))
        self.log(f"{prefix}loss", mean_loss)
        for name, metric in metrics.items(keep_base=False, copy_state=False):
            self.log(name, metric, prog_bar=name == f"{prefix}accuracy")

    def _require_size(self, height: int, width: int) -> None:
        size = self.backbone.input_size
        if not self.backbone.any_size and (height, width) != (size, size):
            raise RepLoRAError(
                f"{self.backbone.name} takes images of {size} x {size} pixels, but the data gives {height} x {width}. "
                f"Set --data.image_size {size}."
            )
