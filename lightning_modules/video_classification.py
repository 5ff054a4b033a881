"""Video classification with an adapted video backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.classification import ClassificationModule
from lightning_modules.predictors import VideoPredictor
from lightning_modules.schedule import WarmupCosine
from replora import AdapterConfig, RepLoRAConfig
from replora.backbones.video import Average, VideoBackbone, averaged, build_video_backbone, checkpoint_gradients
from replora.datasets.samples import VideoBatch
from replora.errors import RepLoRAError, nearest

DEFAULT_ADAPTER = RepLoRAConfig()
DEFAULT_SCHEDULE = WarmupCosine()


class VideoClassification(ClassificationModule):
    """A pre-trained video backbone with an adapter and a fresh classification head.

    Batches are `replora.datasets.VideoBatch`es of normalized clips; the views of a video go through the model one after
    the other, and their outputs are averaged. Logged: `loss`, `accuracy`, for validation and test
    `mean_class_accuracy`, and `skipped`, the videos that could not be decoded and are not in the other numbers, each
    with the prefix `train/`, `val/` or `test/`.

    Args:
        num_classes: Number of classes. The command line takes it from the data.
        backbone: `swin3d_t`, `swin3d_s`, `swin3d_b` with or without the tag of torchvision's weights, `swin3d_nano`, or
            a VideoMAE of transformers: a folder or a hub id.
        pretrained: Whether to start from the backbone's published weights, which the first use downloads.
        checkpoint: File of Swin weights to start from instead, torchvision's or the original release's: `.pth`, `.pt`
            or `.safetensors`.
        num_frames: Number of frames per clip; only VideoMAE depends on it. The command line takes it from the data.
        drop_path_rate: Probability in [0, 1) of skipping the deepest residual branch in training; linear over depth.
            Swin only.
        label_smoothing: Weight in [0, 1) of the uniform distribution in the training target.
        average_views: What is averaged over the views of a video: `logits` as in V-PETL, or `probabilities` as in the
            original release of Video Swin.
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

    predictor = VideoPredictor
    counts_skipped = True
    backbone: VideoBackbone

    def __init__(
        self,
        num_classes: int,
        backbone: str = "swin3d_b",
        pretrained: bool = True,
        checkpoint: Path | None = None,
        num_frames: int = 8,
        drop_path_rate: float = 0.0,
        label_smoothing: float = 0.0,
        average_views: Average = "logits",
        adapter: AdapterConfig = DEFAULT_ADAPTER,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4),
        schedule: WarmupCosine = DEFAULT_SCHEDULE,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        if average_views not in get_args(Average):
            raise RepLoRAError(
                f"average_views: {average_views!r} is not an option. {nearest(average_views, get_args(Average))}"
            )
        built = build_video_backbone(
            backbone,
            num_classes=num_classes,
            pretrained=pretrained,
            checkpoint=checkpoint,
            drop_path_rate=drop_path_rate,
            num_frames=num_frames,
        )
        super().__init__(built, num_classes, label_smoothing, adapter, optimizer, schedule)
        if gradient_checkpointing:
            checkpoint_gradients(self.model)
        if compile:
            self.compile_model()
        self.average_views: Average = average_views

    @classmethod
    def build_backbone(cls, options: dict[str, Any], data: dict[str, Any], checkpoint: Path | None) -> VideoBackbone:
        if "class_names" not in data:
            raise RepLoRAError("The run's adapter.safetensors does not hold its class names. Repeat the fit.")
        return build_video_backbone(
            options["backbone"],
            num_classes=len(data["class_names"]),
            pretrained=options.get("pretrained", True),
            checkpoint=checkpoint,
            num_frames=data["clips"]["num_frames"],
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if (clips := getattr(datamodule, "clips", None)) is not None:
            self._check_shape(clips.num_frames, clips.image_size, clips.image_size)

    def forward(self, video: Tensor) -> Tensor:
        """Normalized clips (B, 3, T, H, W) -> logits (B, num_classes)."""
        self._check_shape(*video.shape[-3:])
        logits: Tensor = self.model(self.any_batch_size(video))
        return logits

    def logits_of(self, batch: VideoBatch) -> Tensor:
        """Views (B, V, 3, T, H, W) -> logits (B, num_classes), averaged over the views."""
        views = [self(view) for view in batch["video"].unbind(dim=1)]
        if len(views) == 1:
            return cast(Tensor, views[0])
        return averaged(torch.stack(views), self.average_views)

    def _check_shape(self, frames: int, height: int, width: int) -> None:
        b = self.backbone
        if b.num_frames is not None and frames != b.num_frames:
            raise RepLoRAError(
                f"{b.name} was built for clips of {b.num_frames} frames, but the data gives {frames}. Set "
                f"--data.clips.num_frames {b.num_frames}."
            )
        if b.input_size is not None and (height, width) != (b.input_size, b.input_size):
            raise RepLoRAError(
                f"{b.name} takes frames of {b.input_size} x {b.input_size} pixels, but the data gives {height} x "
                f"{width}. Set --data.clips.image_size {b.input_size}."
            )
