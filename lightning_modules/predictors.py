"""From files and images in memory to class probabilities and embeddings, with a trained model."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from replora.backbones.video import Average, averaged
from replora.datasets.common.files import LeftOut
from replora.datasets.errors import CorruptImageError, CorruptVideoError
from replora.datasets.image.folder import image_files
from replora.datasets.image.read import IMAGE_SUFFIXES, ImageReader
from replora.datasets.video.dataset import views
from replora.datasets.video.decode import VIDEO_SUFFIXES, clip_files, is_clip, read_clip
from replora.datasets.video.sampling import ClipOptions
from replora.errors import RepLoRAError
from replora.memory import usable_cpus

PICTURES = 40  # inputs kept for a contact sheet


class PredictionError(RepLoRAError):
    """There is nothing to classify, an input or option is not usable, or the device cannot be used."""


@dataclass
class Predictions:
    """What a predictor says of N inputs.

    Attributes:
        class_names: Class names in the order of the probabilities.
        sources: Where each of the N inputs that could be read is from, in the order given: its file, or the position
            of an image in memory among the inputs.
        probabilities: float32 (N, classes).
        embeddings: float32 (N, features), the inputs of the classification head, where they were asked for.
        pictures: The first `PICTURES` inputs as the model saw them (one frame per video), each uint8 (3, S, S).
        skipped: Source that could not be read -> reason.
    """

    class_names: list[str]
    sources: list[Path | int]
    probabilities: Tensor
    embeddings: Tensor | None = None
    pictures: list[Tensor] = field(default_factory=list)
    skipped: dict[Path | int, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The most likely class of each input."""
        return [row[0][0] for row in self.top(1)]

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most likely classes of each input with their probabilities, in descending order; 0 for all."""
        count = min(k or len(self.class_names), len(self.class_names))
        values, indices = self.probabilities.topk(count, dim=1)
        rows = zip(indices.tolist(), values.tolist(), strict=True)
        return [[(self.class_names[i], p) for i, p in zip(*row, strict=True)] for row in rows]


@dataclass(frozen=True)
class Predictor(ABC):
    """A trained classifier and the preprocessing of its evaluation.

    Attributes:
        model: The model in evaluation mode on `device`, its adapter merged.
        head: Dotted name of its classification head.
        class_names: Class names in the order of the outputs.
        mean, std: Mean and standard deviation of the channels on `device`, broadcastable to a model input.
        device: Where the model runs.
    """

    file_kind: ClassVar[str]  # what the files are called in messages
    suffixes: ClassVar[tuple[str, ...]]
    batch_size: ClassVar[int]  # default number of files per batch
    takes: ClassVar[str]  # the inputs, for messages

    model: nn.Module
    head: str
    class_names: list[str]
    mean: Tensor
    std: Tensor
    device: torch.device

    @classmethod
    @abstractmethod
    def from_run(
        cls, model: nn.Module, head: str, data: dict[str, Any], options: dict[str, Any], device: torch.device
    ) -> Self:
        """Build the predictor of a run.

        Args:
            model: The trained model, merged.
            head: Dotted name of its classification head.
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

    def source_of(self, given: object) -> Any:
        """What `read` takes, of what a caller gives.

        Raises:
            PredictionError: This kind of predictor does not take it.
        """
        if isinstance(given, str | os.PathLike):
            return Path(os.fsdecode(given)).expanduser()
        raise PredictionError(f"An input is {_describe(given)}. This run takes {self.takes}.")

    @abstractmethod
    def read(self, source: Any) -> Tensor:
        """Read an input as the run's evaluation does; returns its pixels, in [0, 255].

        Raises:
            CorruptImageError, CorruptVideoError: The file cannot be decoded.
        """

    @abstractmethod
    def probabilities(self, batch: Tensor) -> Tensor:
        """A batch of what `read` returns -> float32 (B, classes) on the CPU."""

    @abstractmethod
    def picture(self, content: Tensor) -> Tensor:
        """The uint8 (3, image_size, image_size) picture of what `read` returned, for a contact sheet."""

    def predict(
        self,
        inputs: Any,
        batch_size: int | None = None,
        embeddings: bool = False,
        skip_corrupt: bool = False,
        advance: Callable[[int], object] = lambda _: None,
    ) -> Predictions:
        """Classify one input or many; threads decode one batch while the model works on the previous one.

        Args:
            inputs: A path, or for a run on images also an image of Pillow or a uint8 array (H, W), (H, W, 3) or
                (H, W, 4); or any iterable of these, which is read batch by batch.
            batch_size: Number of inputs per batch (>= 1). Default: 64 images, or 2 videos.
            embeddings: Whether to keep what enters the classification head; of videos, the mean over their views.
            skip_corrupt: Whether to leave out files that cannot be read, and list them in `skipped`.
            advance: Called with the number of inputs of each batch that is done.

        Raises:
            CorruptImageError, CorruptVideoError: A file cannot be read, and `skip_corrupt` is off.
            PredictionError: An input is of another type, no file could be read, or `batch_size` is too small.
        """
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise PredictionError(f"batch_size={size} is out of range. It must be at least 1.")
        found = Predictions(self.class_names, [], torch.empty(0, len(self.class_names)))
        probabilities: list[Tensor] = []
        features: list[Tensor] = []
        given = enumerate(_each(inputs))
        with ThreadPoolExecutor(min(16, usable_cpus()), "decode") as threads:

            def submit() -> list[tuple[Path | int, Future[Tensor]]]:
                batch = [(position, self.source_of(one)) for position, one in islice(given, size)]
                for _, source in batch:
                    if isinstance(source, Image.Image):  # two threads may be given the same one
                        with suppress(Exception):  # `read` meets it again, and names it
                            source.load()
                return [(s if isinstance(s, Path) else i, threads.submit(self.read, s)) for i, s in batch]

            batch, ahead = submit(), submit()
            while batch:
                pixels = []
                for source, future in batch:
                    try:
                        pixels.append(future.result())
                        found.sources.append(source)
                    except (CorruptImageError, CorruptVideoError) as error:
                        if not skip_corrupt:
                            for _, waiting in (*batch, *ahead):
                                waiting.cancel()
                            raise
                        found.skipped[source] = str(error)
                if pixels:
                    shown = pixels[: PICTURES - len(found.pictures)]
                    found.pictures += [self.picture(one).clone() for one in shown]  # a view would keep the whole video
                    with ExitStack() as stack:
                        entered = stack.enter_context(self._head_inputs()) if embeddings else None
                        probabilities.append(self.probabilities(torch.stack(pixels)))
                    if entered is not None:
                        features.append(torch.stack(entered).mean(dim=0))
                advance(len(batch))
                batch, ahead = ahead, submit()
        if found.skipped and not probabilities:
            first = next(iter(found.skipped.values()))
            raise PredictionError(f"None of the {len(found.skipped):,} files can be read. {first}")
        if probabilities:
            found.probabilities = torch.cat(probabilities)
        if embeddings:
            found.embeddings = torch.cat(features) if features else torch.empty(0, 0)
        return found

    @contextmanager
    def _head_inputs(self) -> Iterator[list[Tensor]]:
        """Collects what enters the head in this thread's passes: float32 (B, features) on the CPU."""
        own, entered = threading.get_ident(), []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == own:
                entered.append(inputs[0].float().flatten(1).cpu())

        hook = self.model.get_submodule(self.head).register_forward_pre_hook(keep)
        try:
            yield entered
        finally:
            hook.remove()

    def _normalize(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device).div(255).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class ImagePredictor(Predictor):
    """Predictor for image files and images in memory. `read` returns (3, image_size, image_size).

    Attributes:
        reader: What makes a tensor of an image.
    """

    file_kind = "image"
    suffixes = IMAGE_SUFFIXES
    batch_size = 64
    takes = "paths of images, images of Pillow and uint8 arrays (H, W, 3)"

    reader: ImageReader

    @classmethod
    def from_run(
        cls,
        model: nn.Module,
        head: str,
        data: dict[str, Any],
        options: dict[str, Any],  # noqa: ARG003
        device: torch.device,
    ) -> Self:
        return cls(
            model=model.to(device),
            head=head,
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

    def source_of(self, given: object) -> Path | Image.Image:
        if isinstance(given, Image.Image):
            return given
        if not isinstance(given, np.ndarray):
            path: Path = super().source_of(given)
            return path
        if (
            given.dtype == np.uint8
            and given.size
            and (given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (3, 4)))
        ):
            return Image.fromarray(given)
        raise PredictionError(
            f"An input is an array of {given.dtype} of shape {given.shape}. An image is uint8 (H, W), (H, W, 3) or "
            "(H, W, 4), with values from 0 to 255, R before G before B."
        )

    def read(self, source: Path | Image.Image) -> Tensor:
        return self.reader.read(source)

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
    takes = "paths of videos"

    clips: ClipOptions
    average: Average

    @classmethod
    def from_run(
        cls, model: nn.Module, head: str, data: dict[str, Any], options: dict[str, Any], device: torch.device
    ) -> Self:
        return cls(
            model=model.to(device),
            head=head,
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

    def read(self, source: Path) -> Tensor:
        o = self.clips
        return views(o, lambda choose: read_clip(source, choose, o.side), o.test_clips, o.test_crops)

    @torch.inference_mode()
    def probabilities(self, batch: Tensor) -> Tensor:
        logits = torch.stack([self.model(self._normalize(view)) for view in batch.unbind(dim=1)])
        return averaged(logits, self.average).softmax(dim=1).cpu()

    def picture(self, content: Tensor) -> Tensor:
        return content[len(content) // 2, :, content.shape[2] // 2]  # the frame in the middle


def _each(inputs: Any) -> Iterator[object]:
    """One input or many -> each. An array of four dimensions is a batch of images."""
    if isinstance(inputs, str | os.PathLike | Image.Image) or (isinstance(inputs, np.ndarray) and inputs.ndim < 4):
        return iter([inputs])
    if isinstance(inputs, Iterable) and not isinstance(inputs, Tensor | bytes | dict):
        return iter(inputs)
    return iter([inputs])  # which `source_of` refuses by name


def _describe(given: object) -> str:
    if isinstance(given, Tensor):
        return f"a tensor of shape {tuple(given.shape)} (as an array: tensor.permute(1, 2, 0).numpy())"
    return f"{str(given)[:60]!r} ({type(given).__name__})"


def _channels(values: list[float], dimensions: int, device: torch.device) -> Tensor:
    """Values per channel -> (3, 1, ...), of this number of dimensions."""
    return torch.tensor(values, device=device).view(3, *[1] * (dimensions - 1))
