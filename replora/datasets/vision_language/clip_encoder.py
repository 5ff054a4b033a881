"""CLIP features of images and videos, in the files that the vision-and-language tasks read.

VL-Adapter's own features are no longer available. These come from the same weights, through timm:

    rn101    images, squashed to 224 x 224 (bicubic): the grid of CLIP ResNet-101 before its pooling, (49, 2048)
    vit_b32  videos, a frame every 1.5 seconds, shorter side 224, center crop: the embedding of CLIP ViT-B/32, (T, 512)

VL-Adapter's images are squashed likewise. How VALUE framed its videos is not published with its features; the crop here
is CLIP's own.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from replora.datasets.common.files import LeftOut, files_of, log_left_out
from replora.datasets.common.hub import check_hub
from replora.datasets.errors import CorruptImageError, CorruptVideoError, DatasetNotFoundError
from replora.datasets.image.read import IMAGE_SUFFIXES, ImageReader
from replora.datasets.video.decode import VIDEO_SUFFIXES, clip_files, frames_every
from replora.datasets.vision_language.features import (
    RECORD,
    SUFFIXES,
    FeatureError,
    FeatureFolder,
    read_extraction,
    resized,
    write_h5,
    write_npz,
)
from replora.datasets.vision_language.image_text import GRID
from replora.errors import RepLoRAError
from replora.io import replace_text

EncoderName = Literal["rn101", "vit_b32"]
SIZE = 224
WEIGHTS = "model.safetensors"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
FEATURE_SIZES: dict[EncoderName, int] = {"rn101": 2048, "vit_b32": 512}
TIMM_NAMES: dict[EncoderName, str] = {
    "rn101": "resnet101_clip.openai",
    "vit_b32": "vit_base_patch32_clip_quickgelu_224.openai",
}


@dataclass(frozen=True)
class ClipEncoder:
    """One of CLIP's image encoders."""

    name: EncoderName  # `rn101` or `vit_b32`
    encode: Callable[[Tensor], Tensor]  # normalized images (B, 3, 224, 224) -> (B, 49, 2048) or (B, 512)
    device: torch.device  # device of the encoder
    weights: str = ""  # digest of its weights

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> np.ndarray:
        """uint8 (B, 3, 224, 224) -> float32 features.

        Raises:
            FeatureError: They have another shape than the encoder's.
        """
        mean, std = (torch.tensor(numbers, device=self.device).view(3, 1, 1) for numbers in (MEAN, STD))
        pixels = images.to(self.device).float().div_(255).sub_(mean).div_(std)
        features = self.encode(pixels).float().cpu()
        expected = (len(images), *((GRID,) if self.name == "rn101" else ()), FEATURE_SIZES[self.name])
        if tuple(features.shape) != expected:
            raise FeatureError(f"{self.name} gave features of shape {tuple(features.shape)} instead of {expected}.")
        return features.numpy()


def load_encoder(
    name: EncoderName, checkpoint: Path | None = None, device: str = "auto", option: str = "--checkpoint"
) -> ClipEncoder:
    """CLIP's encoder with its weights.

    Args:
        name: `rn101` or `vit_b32`.
        checkpoint: timm's `.safetensors` file of the encoder, or a folder with its `model.safetensors`. Default: it is
            downloaded from the hub.
        device: Device; `auto` is the first GPU, if there is one.
        option: Option that takes `checkpoint`, for the message of an error.

    Raises:
        RepLoRAError: The weights are not available or belong to another model.
    """
    import timm

    if checkpoint is not None and checkpoint.is_dir():
        checkpoint = checkpoint / WEIGHTS
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    try:
        if checkpoint is None:
            check_hub(f"timm/{TIMM_NAMES[name]}")
        model = timm.create_model(TIMM_NAMES[name], pretrained=checkpoint is None)
        if checkpoint is not None:
            model.load_state_dict(load_file(checkpoint))
    except Exception as error:  # the hub's client and safetensors raise their own errors
        raise RepLoRAError(
            f"The weights of {TIMM_NAMES[name]} could not be loaded ({_first_line(error)}). Fetch its "
            f"model.safetensors from huggingface.co/timm/{TIMM_NAMES[name]} and give it with {option}."
        ) from error
    return ClipEncoder(name, encoder_of(name, model.eval().to(chosen)), chosen, _digest(model))


def _digest(model: nn.Module) -> str:
    """The first 16 digits of the SHA-256 of a model's weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    """The first line of an error, with those after it while it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    last = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: last + 1]).rstrip(".")


def encoder_of(name: EncoderName, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a timm model of CLIP computes here: the grid of its last stage, row by row, or its embedding."""
    if name == "rn101":
        return lambda images: cast(Tensor, model.forward_features(images)).flatten(2).transpose(1, 2)  # type: ignore[operator]
    return model


def find_sources(folder: Path, name: EncoderName, fps: float | None = None) -> dict[str, Path]:
    """Name of the features -> image, video file or folder of frames below `folder`.

    Args:
        folder: Folder to search.
        name: Encoder: `rn101` takes images, `vit_b32` videos.
        fps: Frames per second of folders of frames, which need it.

    Raises:
        DatasetNotFoundError: The folder is not found or contains no such files.
        FeatureError: Two sources have the same name, or folders of frames have no `fps`.
    """
    kind, suffixes = ("images", IMAGE_SUFFIXES) if name == "rn101" else ("videos", VIDEO_SUFFIXES)
    left_out: LeftOut = Counter()
    found: list[Path] = []
    if folder.is_dir():
        found = files_of(folder, suffixes, left_out) if name == "rn101" else clip_files(folder, left_out)
    log_left_out(folder, left_out)
    if not found:
        raise DatasetNotFoundError(f"There are no {kind} in {folder} ({', '.join(suffixes)}).")
    sources: dict[str, Path] = {}
    for path in found:
        _check_rate(path, fps)
        source = path.name if path.is_dir() else path.stem
        if source in sources:
            raise FeatureError(f"{path} and {sources[source]} have one name, and their features would too.")
        sources[source] = path
    return sources


def check_same_extraction(out: Path, options: Mapping[str, Any]) -> None:
    """Record the options of an extraction in its folder, or check them against the record of an earlier one.

    What an earlier record lacks is added while there are no features beside it.

    Raises:
        FeatureError: The features in the folder were extracted with other options.
    """
    file, recorded = out / RECORD, read_extraction(out)
    if differing := [name for name in options if name in recorded and recorded[name] != options[name]]:
        listed = ", ".join(f"{name} {recorded[name]} there, {options[name]} here" for name in differing)
        raise FeatureError(
            f"The features in {out} were extracted with other options ({listed}; {file}). Give the same options, or "
            "another folder."
        )
    if not recorded or not any(entry.suffix in SUFFIXES for entry in out.iterdir()):
        out.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(recorded | dict(options), indent=2) + "\n")


def missing_features(sources: Mapping[str, Path], out: Path, name: EncoderName) -> dict[str, Path]:
    """Those of `sources` whose features are missing in `out`, or are corrupt."""
    if not out.is_dir():
        return dict(sources)
    folder = FeatureFolder(out, FEATURE_SIZES[name])

    def complete(source: str) -> bool:
        try:
            features = folder.read(source)
        except FeatureError:
            return False
        return name != "rn101" or len(features) == GRID

    return {source: file for source, file in sources.items() if not complete(source)}


def extract(
    sources: Mapping[str, Path],
    out: Path,
    encoder: ClipEncoder,
    seconds: float = 1.5,
    batch_size: int = 32,
    advance: Callable[[int], Any] = lambda _: None,
    fps: float | None = None,
) -> dict[str, str]:
    """Write the features of images (`rn101`) or videos (`vit_b32`), each file atomically.

    Args:
        sources: Name of the features -> file.
        out: Folder of the features.
        encoder: Encoder of the features.
        seconds: Seconds between two frames of a video (> 0).
        batch_size: Images or frames per batch (>= 1).
        advance: Function that is called with the number of files completed since the last call.
        fps: Frames per second of folders of frames (> 0).

    Returns:
        Name -> error, of the sources that cannot be read, which are left out.

    Raises:
        FeatureError: Features have a wrong shape, or PyAV is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    unread: dict[str, str] = {}
    if encoder.name == "vit_b32":
        for name, file in sources.items():
            try:
                write_npz(out / f"{name}.npz", video_features(file, encoder, seconds, fps, batch_size))
            except CorruptVideoError as error:
                unread[name] = str(error)
            advance(1)
        return unread
    for few_names in batched(iter(sources), batch_size):
        images: dict[str, Tensor] = {}
        for name in few_names:
            try:
                images[name] = ImageReader(SIZE).read(sources[name])
            except CorruptImageError as error:
                unread[name] = str(error)
        if images:
            for name, features in zip(images, encoder(torch.stack(list(images.values()))), strict=True):
                write_h5(out / f"{name}.h5", name, features)
        advance(len(few_names))
    return unread


def video_features(
    file: Path, encoder: ClipEncoder, seconds: float = 1.5, fps: float | None = None, batch_size: int = 32
) -> np.ndarray:
    """The features (T, 512) of a video, or of a folder of frames; the arguments are those of `extract`."""
    frames = batched(video_frames(file, seconds, fps), batch_size)
    return np.concatenate([encoder(torch.stack(few)) for few in frames])


class FileFeatures:
    """The features of image or video files, extracted when they are read; the name of a file is its path.

    Args:
        encoder: `rn101` for images, `vit_b32` for videos.
        frames: Number of vectors to resize each video to, as in `FeatureFolder`.
        seconds: Seconds between two frames of a video (> 0).
        fps: Frames per second of folders of frames (> 0).
        upright: Whether to turn photos as their EXIF orientation says, which `extract` does not.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        frames: int | None = None,
        seconds: float = 1.5,
        fps: float | None = None,
        upright: bool = False,
    ) -> None:
        self.encoder, self.frames, self.seconds, self.fps = encoder, frames, seconds, fps
        self.reader = ImageReader(SIZE, upright=upright)
        self.extraction: dict[str, Any] = {}
        self.read = functools.lru_cache(maxsize=8)(self._read)  # several questions about one file follow each other

    def _read(self, name: str) -> Tensor:
        """The features (n, feature_size) of a file, float32.

        Raises:
            CorruptImageError, CorruptVideoError: The file cannot be decoded.
            FeatureError: It is a folder of frames without `fps`.
        """
        file = Path(name)
        if self.encoder.name == "rn101":
            return torch.from_numpy(self.encoder(self.reader.read(file)[None])[0])
        _check_rate(file, self.fps)
        features = torch.from_numpy(video_features(file, self.encoder, self.seconds, self.fps))
        return features if self.frames is None else resized(features, self.frames)


def _check_rate(path: Path, fps: float | None) -> None:
    if fps is None and path.is_dir():
        raise FeatureError(f"{path} is a folder of frames. Give their number per second, such as --fps 3 for TVQA's.")


def video_frames(file: Path, seconds: float, fps: float | None = None) -> Iterator[Tensor]:
    """The first frame at or after each multiple of `seconds` (see `frames_every`), uint8 (3, 224, 224)."""
    for pixels in frames_every(file, seconds, fps):
        yield _framed(torch.from_numpy(pixels).permute(2, 0, 1))


def _framed(pixels: Tensor) -> Tensor:
    """Shorter side 224, center crop: uint8 (3, H, W) -> uint8 (3, 224, 224)."""
    height, width = pixels.shape[1:]
    scale = SIZE / min(height, width)
    size = (max(SIZE, round(height * scale)), max(SIZE, round(width * scale)))
    resized = F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]
    top, left = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    return resized[:, top : top + SIZE, left : left + SIZE]


def batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def check_options(seconds: float, batch_size: int, fps: float | None = None) -> None:
    """Check that the options are in their range. Raises RepLoRAError if an option is out of its range."""
    if not seconds > 0:
        raise RepLoRAError(f"seconds: {seconds} is out of range. It must be a number above 0.")
    if fps is not None and not fps > 0:
        raise RepLoRAError(f"fps: {fps} is out of range. It must be a number above 0.")
    if batch_size < 1:
        raise RepLoRAError(f"batch_size: {batch_size} is out of range. It must be at least 1.")
