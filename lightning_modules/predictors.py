"""From a file to class probabilities with a trained model: what `replora.inference` needs of each kind of task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from replora.backbones.video import Average, averaged
from replora.datasets.common.files import LeftOut
from replora.datasets.image.folder import image_files
from replora.datasets.image.read import IMAGE_SUFFIXES, ImageReader
from replora.datasets.video.dataset import views
from replora.datasets.video.decode import VIDEO_SUFFIXES, clip_files, is_clip, read_clip
from replora.datasets.video.sampling import ClipOptions


@dataclass(frozen=True)
class Predictor(ABC):
    """A trained classifier and the preprocessing of its evaluation.

    Attributes:
        model: The model in evaluation mode on `device`, its adapter not merged.
        class_names: Class names in the order of the outputs.
        mean, std: Mean and standard deviation of the channels on `device`, broadcastable to a model input.
        device: Where the model runs.
    """

    file_kind: ClassVar[str]  # what the files are called in messages
    suffixes: ClassVar[tuple[str, ...]]
    batch_size: ClassVar[int]  # default number of files per batch

    model: nn.Module
    class_names: list[str]
    mean: Tensor
    std: Tensor
    device: torch.device

    @classmethod
    @abstractmethod
    def from_run(cls, model: nn.Module, data: dict[str, Any], options: dict[str, Any], device: torch.device) -> Self:
        """Build the predictor of a run.

        Args:
            model: The trained model.
            data: Class names and preprocessing, from the run's adapter file.
            options: Options of the run's module, from its `fit.yaml`.
            device: Where the model runs.
        """

    @staticmethod
    @abstractmethod
    def find(folder: Path, left_out: LeftOut) -> list[Path]:
        """The files in a folder and the folders inside it that this predictor reads; counts what it leaves out."""

    @staticmethod
    @abstractmethod
    def select(paths: Iterable[Path]) -> list[Path]:
        """The paths that this predictor reads, sorted."""

    @abstractmethod
    def read(self, path: Path) -> Tensor:
        """Read a file as the run's evaluation does; returns its pixels, in [0, 255].

        Raises:
            CorruptImageError, CorruptVideoError: The file cannot be decoded.
        """

    @abstractmethod
    def probabilities(self, batch: Tensor) -> Tensor:
        """A batch of what `read` returns -> float32 (B, classes) on the CPU."""

    @abstractmethod
    def picture(self, content: Tensor) -> Tensor:
        """The uint8 (3, image_size, image_size) picture of what `read` returned, for a contact sheet."""

    def _normalize(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device).div(255).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class ImagePredictor(Predictor):
    """Predictor for image files. `read` returns (3, image_size, image_size).

    Attributes:
        reader: What makes a tensor of a file.
    """

    file_kind = "image"
    suffixes = IMAGE_SUFFIXES
    batch_size = 64

    reader: ImageReader

    @classmethod
    def from_run(cls, model: nn.Module, data: dict[str, Any], options: dict[str, Any], device: torch.device) -> Self:  # noqa: ARG003
        return cls(
            model=model.to(device),
            class_names=data["class_names"],
            mean=_channels(data["normalization"]["mean"], 3, device),
            std=_channels(data["normalization"]["std"], 3, device),
            device=device,
            reader=ImageReader(
                data["image_size"],
                data["interpolation"],
                data["framing"],
                data["upright"],
                data.get("background", "white"),  # runs of earlier releases do not name it
                tuple(data["normalization"]["mean"]),
            ),
        )

    find = staticmethod(image_files)

    @staticmethod
    def select(paths: Iterable[Path]) -> list[Path]:
        return sorted(
            path
            for path in paths
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        )

    def read(self, path: Path) -> Tensor:
        return self.reader.read(path)

    @torch.inference_mode()
    def probabilities(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.model(self._normalize(batch))
        return logits.float().softmax(dim=1).cpu()

    def picture(self, content: Tensor) -> Tensor:
        return content.round().to(torch.uint8)


@dataclass(frozen=True)
class VideoPredictor(Predictor):
    """Predictor for videos: files, and folders of numbered images.

    `read` returns the V views of the run's test, (V, 3, T, image_size, image_size).

    Attributes:
        clips: Frames, crops and views.
        average: What is averaged over the views.
    """

    file_kind = "video"
    suffixes = VIDEO_SUFFIXES
    batch_size = 2  # each with all views of the test

    clips: ClipOptions
    average: Average

    @classmethod
    def from_run(cls, model: nn.Module, data: dict[str, Any], options: dict[str, Any], device: torch.device) -> Self:
        return cls(
            model=model.to(device),
            class_names=data["class_names"],
            mean=_channels(data["normalization"]["mean"], 4, device),
            std=_channels(data["normalization"]["std"], 4, device),
            device=device,
            clips=ClipOptions(**data["clips"]),
            average=options.get("average_views", "logits"),
        )

    find = staticmethod(clip_files)

    @staticmethod
    def select(paths: Iterable[Path]) -> list[Path]:
        return sorted(path for path in paths if is_clip(path))

    def read(self, path: Path) -> Tensor:
        o = self.clips
        return views(o, lambda choose: read_clip(path, choose, o.side), o.test_clips, o.test_crops)

    @torch.inference_mode()
    def probabilities(self, batch: Tensor) -> Tensor:
        logits = torch.stack([self.model(self._normalize(view)) for view in batch.unbind(dim=1)])
        return averaged(logits, self.average).softmax(dim=1).cpu()

    def picture(self, content: Tensor) -> Tensor:
        return content[len(content) // 2, :, content.shape[2] // 2]  # the frame in the middle


def _channels(values: list[float], dimensions: int, device: torch.device) -> Tensor:
    """Values per channel -> (3, 1, ...), of this number of dimensions."""
    return torch.tensor(values, device=device).view(3, *[1] * (dimensions - 1))
