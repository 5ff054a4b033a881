"""The two tracks of VTAB-1K, and the record of a task's track in its folder.

Results of the two tracks are not comparable: on `cifar` they differ by more than ten points for the same method.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from replora.datasets.errors import TrackError
from replora.datasets.image.resize import Interpolation
from replora.datasets.vtab.dataset import SPLITS, VTABTask, lists_sha256
from replora.errors import nearest
from replora.identity import FILTER_OF_TRACK
from replora.results import write_json

Track = Literal["archive", "clean"]
ImageFormat = Literal["JPEG", "PNG"]

MARKER = "prepared.json"
FORMAT = 1


@dataclass(frozen=True)
class TrackOptions:
    """The options of a track."""

    image_format: ImageFormat
    suffix: str
    normalization: Literal["imagenet", "half"]


TRACKS: dict[Track, TrackOptions] = {
    # NOAH, FacT, Convpass, RepAdapter: images re-encoded as JPEG of quality 75, ImageNet mean and deviation.
    "archive": TrackOptions("JPEG", ".jpg", "imagenet"),
    # VPT (but for its ImageNet normalization) and Adapter+: the pixels of TensorFlow Datasets, 0.5 and 0.5.
    "clean": TrackOptions("PNG", ".png", "half"),
}


def track_options(track: str) -> TrackOptions:
    """The options of a track. Raises TrackError if there is no such track."""
    if track not in get_args(Track):
        raise TrackError(f"track={track!r} is not an option. {nearest(track, TRACKS)}")
    return TRACKS[track]  # type: ignore[index]


def filter_of_track(track: Track, interpolation: Interpolation | Literal["track"] | None) -> Interpolation:
    """The filter that the option `interpolation` means."""
    return FILTER_OF_TRACK.get(interpolation, {}).get(track, interpolation)  # type: ignore[return-value]


def track_of_format(image_format: str | None) -> Track | None:
    """The track whose images have this format, or None."""
    return next((track for track, options in TRACKS.items() if options.image_format == image_format), None)


def image_format(file: Path) -> ImageFormat | None:
    """JPEG or PNG by the file's first bytes, or None for any other format."""
    with file.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "PNG" if start == b"\x89PNG\r\n\x1a\n" else None


def write_marker(folder: Path, task: VTABTask, track: Track, source: str, versions: dict[str, str]) -> None:
    """Record how the images of a task were made. This is the last file of a task to be written.

    Args:
        folder: Folder of the task, with its four list files.
        task: The task.
        track: Track of the images.
        source: Source of the images, with version or commit.
        versions: Versions of the packages that wrote the images.
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
    """The record of `write_marker`, or None if the folder was not prepared here.

    Raises:
        TrackError: The record is corrupt.
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


def check_track(folder: Path, image: Path, task: VTABTask, track: Track) -> None:
    """Check that the images of a task are of the requested track.

    Their track is that of the record or, without one, follows from the format of `image`; custom data sets may have any
    format.

    Args:
        folder: Folder of the task.
        image: One of its images.
        task: The task.
        track: Requested track.

    Raises:
        TrackError: The images are of the other track.
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
            f"The track {track!r} was requested, but {folder} contains {task.name} of the track {found!r} ({evidence} "
            f"{found!r}). Results of the two are not comparable. Use these images with track={found!r} (--data.track "
            f"{found}), or make the others in another folder: replora-cli prepare vtab --root DIR --tasks {task.name} "
            f"--from_tfds true --track {track}"
        )


def _lines(file: Path) -> int:
    return sum(bool(line.strip()) for line in file.read_bytes().splitlines())


def _again(folder: Path) -> str:
    return f"Delete {folder} and prepare the task again (replora-cli prepare vtab --help)."
