"""The two tracks of VTAB-1K, and the file in a task's folder that records which of them its images belong to.

Numbers of the two tracks are not comparable: on `cifar` they differ by more than ten points for the same method.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from replora.datasets.errors import TrackError
from replora.datasets.image.read import Interpolation
from replora.datasets.vtab.dataset import SPLITS, VTABTask, lists_sha256
from replora.errors import nearest
from replora.results import write_json

Track = Literal["archive", "clean"]
ImageFormat = Literal["JPEG", "PNG"]

MARKER = "prepared.json"
FORMAT = 1


@dataclass(frozen=True)
class TrackOptions:
    """What distinguishes a track, besides where its numbers may be compared."""

    image_format: ImageFormat
    suffix: str
    interpolation: Interpolation
    normalization: Literal["imagenet", "half"]


TRACKS: dict[Track, TrackOptions] = {
    # NOAH, FacT, Convpass, RepAdapter: images re-encoded as JPEG of quality 75, bicubic, ImageNet mean and deviation.
    "archive": TrackOptions("JPEG", ".jpg", "bicubic", "imagenet"),
    # VPT (but for its ImageNet normalization) and Adapter+: the pixels of TensorFlow Datasets, bilinear, 0.5 and 0.5.
    "clean": TrackOptions("PNG", ".png", "bilinear", "half"),
}


def track_options(track: str) -> TrackOptions:
    """The options of a track.

    Raises:
        TrackError: there is no such track.
    """
    if track not in get_args(Track):
        raise TrackError(f"track={track!r} is not an option. {nearest(track, TRACKS)}")
    return TRACKS[track]  # type: ignore[index]


def track_of_format(image_format: str | None) -> Track | None:
    """The track whose images have this format."""
    return next((track for track, options in TRACKS.items() if options.image_format == image_format), None)


def image_format(file: Path) -> ImageFormat | None:
    """JPEG or PNG by the file's first bytes, whatever its name; None for anything else."""
    with file.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "PNG" if start == b"\x89PNG\r\n\x1a\n" else None


def write_marker(folder: Path, task: VTABTask, track: Track, source: str, versions: dict[str, str]) -> None:
    """Record in a task's folder how its images were made: the last file of a task that is written.

    Args:
        folder: the folder of the task, with its four list files.
        task: which.
        track: which.
        source: where the images come from, with version or commit.
        versions: of the packages that wrote the images.
    """
    content = {
        "format": FORMAT,
        "task": task.name,
        "track": track,
        "image_format": TRACKS[track].image_format,
        "source": source,
        "versions": versions,
        "lists_sha256": lists_sha256(folder),
        "sizes": {split: _lines(folder / f"{split}.txt") for split in SPLITS},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / MARKER, content)


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What `write_marker` recorded; None for a folder that was not prepared here.

    Raises:
        TrackError: the record is damaged.
    """
    file = folder / MARKER
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrackError(f"{file} cannot be read: {error}. {_again(folder)}") from error
    if not isinstance(content, dict) or content.get("track") not in get_args(Track):
        raise TrackError(f"{file} names no track ({' or '.join(TRACKS)}). {_again(folder)}")
    return content


def require_track(folder: Path, image: Path, task: VTABTask, track: Track) -> None:
    """Refuse the images of one track where the other was asked for.

    Args:
        folder: the folder of the task. Its record says what it holds; without one, the format of `image` does, for the
            19 tasks only (a custom data set may have any format).
        image: one of its images.
        task: which.
        track: what was asked for.

    Raises:
        TrackError: they do not agree.
    """
    marker = read_marker(folder)
    if marker is not None:
        found, evidence = marker["track"], f"{folder / MARKER} says"
    elif task.group is not None and image.is_file():
        found, evidence = track_of_format(image_format(image)), f"its images are {image_format(image)}, as in"
    else:
        return
    if found is not None and found != track:
        raise TrackError(
            f"The track {track!r} was asked for, but {folder} holds {task.name} of the track {found!r} ({evidence} "
            f"{found!r}). Results of the two cannot be compared. Use these images with track={found!r} (--data.track "
            f"{found}), or make the others in another folder: replora-cli prepare vtab --root DIR --tasks {task.name} "
            f"--from_tfds true --track {track}"
        )


def _lines(file: Path) -> int:
    return sum(bool(line.strip()) for line in file.read_bytes().splitlines())


def _again(folder: Path) -> str:
    return f"Delete {folder} and prepare the task again (replora-cli prepare vtab --help)."
