"""Image classification with an adapted vision backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.classification import ClassificationModule
from lightning_modules.schedule import WarmupCosine
from replora import AdapterConfig, RepLoRAConfig
from replora.backbones.vision import VisionBackbone, build_vision_backbone, checkpoint_gradients
from replora.datasets.samples import ImageBatch
from replora.errors import RepLoRAError

DEFAULT_ADAPTER = RepLoRAConfig()
DEFAULT_SCHEDULE = WarmupCosine()


class ImageClassification(ClassificationModule):
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
            `BitFitConfig`, or another one through the peft library (`PeftMethodConfig`).
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
        built = build_vision_backbone(
            backbone,
            num_classes=num_classes,
            pretrained=pretrained,
            checkpoint=checkpoint,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(built, num_classes, label_smoothing, adapter, optimizer, schedule)
        if gradient_checkpointing:
            checkpoint_gradients(self.model)
        if compile:
            self.model.compile()  # in place: names in checkpoints stay as they are

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

    def logits_of(self, batch: ImageBatch) -> Tensor:
        logits: Tensor = self(batch["image"])
        return logits

    def _require_size(self, height: int, width: int) -> None:
        size = self.backbone.input_size
        if not self.backbone.any_size and (height, width) != (size, size):
            raise RepLoRAError(
                f"{self.backbone.name} takes images of {size} x {size} pixels, but the data gives {height} x {width}. "
                f"Set --data.image_size {size}."
            )
