"""Classify images or videos with a trained run: adapter merged into the backbone, its evaluation's preprocessing."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import replora
from replora.backbones.video import Average, averaged
from replora.datasets.common.in_memory import usable_cpus
from replora.datasets.errors import CorruptImageError, CorruptVideoError
from replora.datasets.image.read import IMAGE_SUFFIXES, Framing, Interpolation, read_image
from replora.datasets.video.dataset import views
from replora.datasets.video.decode import VIDEO_SUFFIXES, is_clip, read_clip
from replora.datasets.video.sampling import ClipOptions
from replora.errors import RepLoRAError, nearest
from replora.io import replace_text
from replora.runs import load_run

PICTURES = 40  # how many images are kept for a contact sheet
FORMATS = (".csv", ".json")


class PredictionError(RepLoRAError):
    """There is no image to predict, an option is out of its range, or the device cannot be used."""


@dataclass(frozen=True)
class Classifier:
    """A trained model and everything that lies between an image file and its probabilities.

    Attributes:
        model: In evaluation mode, on `device`, the adapter not merged.
        class_names: In the order of the outputs.
        mean, std: Of the channels, (3, 1, 1), on `device`.
    """

    model: nn.Module
    class_names: list[str]
    image_size: int
    interpolation: Interpolation
    framing: Framing
    upright: bool
    mean: Tensor
    std: Tensor
    device: torch.device

    def read(self, path: Path) -> Tensor:
        """An image file as the run's evaluation sees it: uint8 (3, image_size, image_size).

        Raises:
            CorruptImageError: The file cannot be decoded.
        """
        return read_image(path, self.image_size, self.interpolation, self.framing, self.upright)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, image_size, image_size) -> float32 (B, classes) on the CPU."""
        pixels = images.to(self.device).float().div_(255).sub_(self.mean).div_(self.std)
        logits: Tensor = self.model(pixels)
        return logits.float().softmax(dim=1).cpu()

    def picture(self, image: Tensor) -> Tensor:
        """What `read` gave, for a contact sheet."""
        return image


@dataclass(frozen=True)
class VideoClassifier:
    """A trained model and everything that lies between a video and its probabilities: the views of the run's test.

    Attributes:
        model: In evaluation mode, on `device`, the adapter not merged.
        class_names: In the order of the outputs.
        clips: Frames, squares and views.
        average: What is averaged over the views.
        mean, std: Of the channels, (3, 1, 1, 1), on `device`.
    """

    model: nn.Module
    class_names: list[str]
    clips: ClipOptions
    average: Average
    mean: Tensor
    std: Tensor
    device: torch.device

    def read(self, path: Path) -> Tensor:
        """A video as the run's test sees it: uint8 (V, 3, T, image_size, image_size).

        Raises:
            CorruptVideoError: It cannot be decoded.
        """
        o = self.clips
        return views(o, lambda choose: read_clip(path, choose, o.side), o.test_clips, o.test_crops)

    @torch.inference_mode()
    def probabilities(self, videos: Tensor) -> Tensor:
        """uint8 (B, V, 3, T, image_size, image_size) -> float32 (B, classes) on the CPU."""
        answers = []
        for view in videos.unbind(dim=1):
            answers.append(self.model(view.to(self.device).float().div_(255).sub_(self.mean).div_(self.std)))
        return averaged(torch.stack(answers), self.average).softmax(dim=1).cpu()

    def picture(self, video: Tensor) -> Tensor:
        """The frame in the middle: uint8 (3, image_size, image_size)."""
        return video[len(video) // 2, :, video.shape[2] // 2]


@dataclass
class Predictions:
    """What `classify` found.

    Attributes:
        paths: The images or videos that could be read, N of them, in the order given.
        probabilities: float32 (N, classes).
        pictures: The first ones as the model saw them, of videos a frame, each uint8 (3, S, S); at most `PICTURES`.
        skipped: Those that could not be read, and why.
    """

    paths: list[Path]
    probabilities: Tensor
    pictures: list[Tensor] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


def check_options(out: Path, top_k: int, batch_size: int) -> None:
    """Refuse, before anything is loaded, what could only fail later.

    Raises:
        PredictionError: `out` is neither CSV nor JSON, or a number is too small.
    """
    if out.suffix.lower() not in FORMATS:
        raise PredictionError(f"out={out}: the file has to end in {' or '.join(FORMATS)}, which says how to write it.")
    if top_k < 0 or batch_size < 1:
        raise PredictionError(f"top_k={top_k} and batch_size={batch_size}: top_k is at least 0, batch_size at least 1.")


def find_images(asked: list[str]) -> list[Path]:
    """The image files meant by files, folders and patterns, each once, in this order; within a folder alphabetically.

    Raises:
        PredictionError: One of them leads to no image.
    """
    return _find(asked, "image", IMAGE_SUFFIXES, _images)


def find_videos(asked: list[str]) -> list[Path]:
    """As `find_images`, of videos: files, and folders of numbered images.

    Raises:
        PredictionError: One of them leads to no video.
    """
    return _find(asked, "video", VIDEO_SUFFIXES, lambda paths: sorted(path for path in paths if is_clip(path)))


def _find(
    asked: list[str], what: str, suffixes: tuple[str, ...], wanted: Callable[[Iterable[Path]], list[Path]]
) -> list[Path]:
    found: dict[Path, None] = {}
    for name in asked:
        path = Path(name).expanduser()
        if path.is_file() or wanted([path]):
            files = [path]
        elif path.is_dir():
            files = wanted(entry for entry in path.rglob("*") if not entry.name.startswith("."))
        else:
            files = wanted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (`**`, cwd)
        if not files:
            problem = f"the folder holds no {what}" if path.is_dir() else "there is no such file, folder or match"
            raise PredictionError(
                f"{name}: {problem} (looked in {Path.cwd()}). {what.capitalize()}s end in {', '.join(suffixes)}."
            )
        found |= dict.fromkeys(files)
    return list(found)


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def load_classifier(run: Path, checkpoint: Path | None = None, device: str = "auto") -> Classifier | VideoClassifier:
    """Build the model of a run from its `fit.yaml` and `adapter.safetensors`.

    Args:
        run: The run's directory.
        checkpoint: The backbone's weights instead of the source in `fit.yaml`.
        device: A torch device, or `auto`: the first GPU if there is one, else the CPU.

    Raises:
        RepLoRAError: A file is missing or of another kind of run, or the backbone's weights are not those of the run.
    """
    loaded = load_run(run, checkpoint, kinds=("ImageClassification", "VideoClassification"))
    data = loaded.data
    where = _device(device)
    if loaded.kind == "VideoClassification":
        mean, std = (torch.tensor(data["normalization"][key], device=where).view(3, 1, 1, 1) for key in ("mean", "std"))
        return VideoClassifier(
            model=loaded.model.to(where),
            class_names=data["class_names"],
            clips=ClipOptions(**data["clips"]),
            average=loaded.options.get("average_views", "logits"),
            mean=mean,
            std=std,
            device=where,
        )
    mean, std = (torch.tensor(data["normalization"][key], device=where).view(3, 1, 1) for key in ("mean", "std"))
    return Classifier(
        model=loaded.model.to(where),
        class_names=data["class_names"],
        image_size=data["image_size"],
        interpolation=data["interpolation"],
        framing=data["framing"],
        upright=data["upright"],
        mean=mean,
        std=std,
        device=where,
    )


def classify(
    classifier: Classifier | VideoClassifier,
    paths: list[Path],
    batch_size: int = 64,
    skip_corrupt: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Predictions:
    """The probabilities of images or videos; threads decode one batch while the model works on the one before.

    Args:
        classifier: From `load_classifier`.
        paths: The images, or the videos.
        batch_size: How many at once.
        skip_corrupt: Leave out what cannot be read.
        advance: Called with the number of files of each batch that is done.

    Raises:
        CorruptImageError, CorruptVideoError: A file cannot be read, and `skip_corrupt` is off.
        PredictionError: No file could be read.
    """
    found = Predictions([], torch.empty(0, len(classifier.class_names)))
    parts: list[Tensor] = []
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with (
        ThreadPoolExecutor(min(16, usable_cpus()), "decode") as threads,
        replora.merged(classifier.model),
    ):

        def submit(number: int) -> list[Future[Tensor]]:
            batch = batches[number] if number < len(batches) else []
            return [threads.submit(classifier.read, path) for path in batch]

        ahead = submit(0)
        for number, batch in enumerate(batches):
            decoding, ahead = ahead, submit(number + 1)
            inputs = []
            for path, future in zip(batch, decoding, strict=True):
                try:
                    inputs.append(future.result())
                    found.paths.append(path)
                except (CorruptImageError, CorruptVideoError) as error:
                    if not skip_corrupt:
                        for waiting in (*decoding, *ahead):
                            waiting.cancel()
                        raise type(error)(f"{error} Or leave such files out: --skip_corrupt true") from error
                    found.skipped[path] = str(error)
            if inputs:
                shown = inputs[: PICTURES - len(found.pictures)]
                found.pictures += [classifier.picture(one).clone() for one in shown]  # not all that it is a part of
                parts.append(classifier.probabilities(torch.stack(inputs)))
            advance(len(batch))
    if not parts:
        raise PredictionError(f"None of the {len(paths):,} files can be read. {next(iter(found.skipped.values()), '')}")
    found.probabilities = torch.cat(parts)
    return found


def write(file: Path, found: Predictions, class_names: list[str], top_k: int = 5) -> None:
    """Write predictions as CSV or JSON, by the file's ending; whole or not at all.

    Args:
        file: Where; its folder is made if absent.
        found: From `classify`.
        class_names: In the order of the probabilities.
        top_k: How many classes an image, the likeliest first; 0 for all.
    """
    count = min(top_k or len(class_names), len(class_names))
    values, indices = found.probabilities.topk(count, dim=1)
    ranked = [
        [(class_names[i], round(p, 6)) for p, i in zip(*row, strict=True)]
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
    if file.suffix.lower() == ".json":
        predictions = [
            {"path": str(path), "predicted": row[0][0], "probability": row[0][1], "probabilities": dict(row)}
            for path, row in zip(found.paths, ranked, strict=True)
        ]
        skipped = [{"path": str(path), "reason": reason} for path, reason in found.skipped.items()]
        content = {"class_names": class_names, "predictions": predictions, "skipped": skipped}
        replace_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    first = ["path", "predicted", "probability"]
    if top_k == 0:
        writer.writerow([*first, *(f"p({name})" for name in class_names)])
        rest = [[f"{p:.6f}" for p in row] for row in found.probabilities.tolist()]
    else:
        writer.writerow([*first, *(f"{column}_{k}" for k in range(2, count + 1) for column in first[1:])])
        rest = [[text for name, p in row[1:] for text in (name, f"{p:.6f}")] for row in ranked]
    for path, row, more in zip(found.paths, ranked, rest, strict=True):
        writer.writerow([path, row[0][0], f"{row[0][1]:.6f}", *more])
    replace_text(file, stream.getvalue())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise PredictionError(
            f"The device {name!r} cannot be used ({str(error).splitlines()[0]}). {nearest(name, known)}"
        ) from error
    return device
