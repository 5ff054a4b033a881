"""Frames of a clip: a video file, decoded by PyAV, or a folder of numbered images.

Frames are counted by decoding, because the counts of containers are unreliable: WebM reports none, and AVI with packed
B-frames reports one too many. Clips last seconds, so they are decoded from the start.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from replora.datasets.common.files import LeftOut, printable, walk
from replora.datasets.errors import CorruptImageError, CorruptVideoError
from replora.datasets.image.read import IMAGE_SUFFIXES, MAX_RATIO, open_rgb, to_rgb
from replora.errors import RepLoRAError

if TYPE_CHECKING:
    import av

# Suffixes of the video formats that FFmpeg reads.
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".mts", ".m2ts"),
    *(".3gp", ".3g2", ".ogv", ".vob", ".mpe", ".m2v", ".asf", ".f4v", ".divx", ".mxf", ".dv", ".y4m", ".mjpeg"),
)
AGAIN = "Copy or download this file again."

# Bytes of decoded frames to hold until the number of frames is known; a longer clip is decoded twice.
HELD_BYTES = 256 * 2**20
# A clip is truncated if it has less than this part of the frames or seconds in its header. The bound of the seconds is
# lower, because the last frame may be shown for long.
COMPLETE, COMPLETE_SECONDS = 0.95, 0.8
# Steps and seconds between two frames from which on a video of constant rate has lost frames.
LOST_STEPS, LOST_SECONDS = 5, 0.5

# Number of frames of a clip -> positions of the requested frames.
Choice = Callable[[int], Sequence[int]]


class MissingDecoderError(RepLoRAError):
    """PyAV is not installed."""


def read_clip(path: Path, choose: Choice, short_side: int | None = None) -> Tensor:
    """Decode a clip and return the frames that `choose` requests, in its order; a frame may be requested twice.

    Args:
        path: Video file, or folder of images whose names end in numbers.
        choose: Function that is called once with the number of frames of the clip and returns positions.
        short_side: Shorter side of the frames, in pixels (bilinear, antialiased). Default: that of the clip.

    Returns:
        uint8 (T, 3, H, W).

    Raises:
        CorruptVideoError: The file cannot be decoded, is truncated, or has no frames, a corrupt frame or a gap; or an
            image of the folder cannot be read or is missing.
        MissingDecoderError: PyAV is not installed.
    """
    frames = _read_folder(path, choose) if path.is_dir() else _read_video(path, choose)
    return frames if short_side is None else resize(frames, short_side)


def count_frames(path: Path) -> int:
    """The number of frames of a clip, by decoding all of them.

    Raises:
        CorruptVideoError, MissingDecoderError: Same as in `read_clip`.
    """
    if path.is_dir():
        files = _numbered_images(path)
        for file in files:
            _image(file)
        return len(files)
    return sum(1 for _ in _decode(path))


def frames_every(path: Path, seconds: float, fps: float | None = None) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """The first frame at or after each multiple of `seconds` from the first frame on, each uint8 (H, W, 3).

    Each frame is returned once: a pause that contains several multiples gives one frame.

    Args:
        path: Video file, or folder of images whose names end in numbers.
        seconds: Seconds between two frames (> 0).
        fps: Frames per second (> 0) of a folder of images. A video file has its own times.

    Raises:
        CorruptVideoError, MissingDecoderError: Same as in `read_clip`; a truncated video is detected at its end.
    """
    start, following = None, 0
    for number, frame in enumerate(_numbered_images(path) if path.is_dir() else _decode(path)):
        time = number / (fps or 25) if isinstance(frame, Path) or frame.time is None else frame.time
        start = time if start is None else start
        passed = math.floor((time - start) / seconds + 1e-6)  # differences of times are rounded
        if passed >= following:
            following = passed + 1
            yield _image(frame) if isinstance(frame, Path) else _rgb(path, frame)


def resize(frames: Tensor, short_side: int) -> Tensor:
    """uint8 (T, 3, H, W) -> uint8 (T, 3, h, w), min(h, w) = `short_side`, with the longer side rounded down.

    If the longer side is more than `MAX_RATIO` times the shorter one, the frames are first cropped to their middle.
    """
    longest = MAX_RATIO * min(frames.shape[-2:])
    top, left = (max(0, side - longest) // 2 for side in frames.shape[-2:])
    frames = frames[..., top : top + longest, left : left + longest]
    height, width = frames.shape[-2:]
    if min(height, width) == short_side:
        return frames
    size = (short_side, short_side * width // height) if height <= width else (short_side * height // width, short_side)
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True)


def clip_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """The clips below `folder`, as in `files_of`: video files, and folders of images (`is_clip`)."""
    found = []
    for home, files in walk(folder, left_out):
        if home != folder and _holds_frames(files):
            found.append(home)
            used = [file for file in files if _is_image(file)]
        else:
            used = [file for file in files if _is_video(file)]
            found += used
        left_out.update(file.suffix.lower() or "file without a suffix" for file in set(files) - set(used))
    return sorted(found)


def is_clip(path: Path) -> bool:
    """Whether `path` is a video file, or a folder of images without videos (next to videos, images are previews)."""
    if not path.is_dir():
        return _is_video(path) and path.is_file()
    return _holds_frames([entry for entry in path.iterdir() if entry.is_file()])


def _holds_frames(files: list[Path]) -> bool:
    """Whether the files of a folder are the frames of a clip. A GIF may be an image or a video and does not count."""
    firm = [file for file in files if file.suffix.lower() != ".gif"]
    return any(map(_is_image, firm)) and not any(map(_is_video, firm))


def check_decoder() -> None:
    """Check that video files can be decoded. Raises MissingDecoderError if PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise MissingDecoderError(
            'PyAV decodes video files, but it is not installed: pip install "replora[video]", or pip install av, which '
            "includes FFmpeg. Folders of images instead of video files do not need it."
        )


# --- video files


def _read_video(path: Path, choose: Choice) -> Tensor:
    held: list[Any] = []
    count = size = 0
    for frame in _decode(path):
        count += 1
        size += frame.width * frame.height * 3 // 2
        if size <= HELD_BYTES:
            held.append(frame)
        else:
            held.clear()
    wanted = list(choose(count))
    chosen = set(wanted)
    pixels = {}
    for number, frame in enumerate(held or _decode(path)):
        if number in chosen:
            pixels[number] = _rgb(path, frame)
            if len(pixels) == len(chosen):
                break
    if any(image.shape != pixels[wanted[0]].shape for image in pixels.values()):
        raise CorruptVideoError(f"The video {printable(path)} changes its size. Encode it again with one size.")
    return _stack([pixels[number] for number in wanted])


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    """All frames of a video file in order.

    One thread: FFmpeg's frame threads may hang when a loader process ends (github.com/pytorch/vision, issue 9010), and
    loader processes fill the cores anyway.
    """
    check_decoder()
    import av

    shown = printable(path)
    count = corrupt = 0
    times: list[float] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise CorruptVideoError(f"The file {shown} contains no video.")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            frames: Iterator[av.VideoFrame] = container.decode(stream)
            for frame in _beside_the_second(frames) if container.format.name == "avi" else frames:
                count += 1
                if frame.is_corrupt and not corrupt:  # FFmpeg concealed what it could not read
                    corrupt = count
                if frame.time is not None:
                    times.append(frame.time)
                yield frame
            length, stated = _length(container, stream), stream.frames
            rate = float(stream.average_rate or 0)
            end = times[-1] - times[0] + (1 / rate if rate else 0) if times else length
            # MP4 that was trimmed without re-encoding states frames that it does not show; its seconds are correct.
            if "mov" in container.format.name and end >= COMPLETE * length:
                stated = 0
            # What `ffmpeg -f segment` cuts keeps the times of the whole video, from whose start these headers count.
            absolute = any(name in container.format.name for name in ("matroska", "avi", "asf"))
            begin = times[0] if times and absolute else 0.0
            # Other formats list their frames; in Matroska and WebM only the times show a lost frame.
            lost = _gap(times) if "matroska" in container.format.name else None
    except CorruptVideoError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        remedy = "Change its permissions." if isinstance(error, PermissionError) else AGAIN
        raise CorruptVideoError(f"The video {shown} cannot be decoded: {_reason(path, error)}. {remedy}") from error
    if not count:
        raise CorruptVideoError(f"The video {shown} contains no frame. {AGAIN}")
    if _is_truncated(count, stated - round(begin * rate), end, length - begin if begin < length else length):
        raise CorruptVideoError(
            f"The video {shown} ends after {count:,} frames ({end:.1f} seconds), but its header states "
            f"{f'{stated:,} frames' if stated else f'{length:.1f} seconds'}, so it is truncated. {AGAIN}"
        )
    if corrupt:
        raise CorruptVideoError(
            f"The video {shown} is corrupt: parts of its frame {corrupt:,} of {count:,} cannot be decoded. {AGAIN}"
        )
    if lost is not None:
        raise CorruptVideoError(
            f"The video {shown} has no frames from second {lost[0]:.1f} to {lost[1]:.1f}, but regular ones elsewhere, "
            f"so frames are lost. {AGAIN}"
        )


def _beside_the_second(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The frames of an AVI, the first one a step before the second: in a segment of a video FFmpeg puts it at 0."""
    first, second = next(frames, None), next(frames, None)
    if first is not None and second is not None and first.pts is not None and second.pts is not None:
        first.pts = max(first.pts, second.pts - 1)
    yield from (frame for frame in (first, second) if frame is not None)
    yield from frames


def _is_truncated(count: int, stated: int, end: float, length: float) -> bool:
    """Whether `count` frames that end at second `end` are too few for a header of `stated` frames and `length` seconds.

    A difference of one or two frames is accepted: AVI counts packed B-frames twice.
    """
    too_few = stated - count > 2 and count < COMPLETE * stated
    return too_few or (end < COMPLETE_SECONDS * length and length - end > 0.5)


def _gap(times: Sequence[float]) -> tuple[float, float] | None:
    """The seconds between which frames are lost, or None. A video of variable rate may contain pauses."""
    steps = [after - before for before, after in pairwise(times)]
    if not steps:
        return None
    usual = sorted(steps)[len(steps) // 2]
    regular = sum(abs(step - usual) < 0.1 * usual + 0.002 for step in steps)  # times are stored in milliseconds
    if regular < 0.9 * len(steps):
        return None
    longest = max(range(len(steps)), key=lambda i: steps[i])
    if steps[longest] < max(LOST_STEPS * usual, LOST_SECONDS):
        return None
    return times[longest] + usual, times[longest + 1]


def _length(container: Any, stream: Any) -> float:
    """The seconds of video in the header, or 0 if it states none.

    The length of the file is that of its longest stream, which may be the sound.
    """
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska and WebM
    if tag:
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _rgb(path: Path, frame: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A frame as (H, W, 3), upright, with transparent pixels on white."""
    try:
        pixels: np.ndarray[Any, np.dtype[np.uint8]] = frame.to_ndarray(format="rgb24")
        if any(component.is_alpha for component in frame.format.components):
            layered = frame.to_ndarray(format="rgba")
            if layered[..., 3].min() < 255:
                pixels = np.array(to_rgb(Image.fromarray(layered)))
    except (ValueError, OSError) as error:
        raise CorruptVideoError(f"The video {printable(path)} has a frame without pixels ({error}).") from error
    turns = round(frame.rotation / 90) % 4  # counterclockwise, from the display matrix that phones write
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _reason(path: Path, error: BaseException) -> str:
    if not path.exists():
        return "there is no such file"
    return "the file is empty (0 bytes)" if path.stat().st_size == 0 else printable(str(error))


# --- folders of images


def _read_folder(folder: Path, choose: Choice) -> Tensor:
    files = _numbered_images(folder)
    wanted = list(choose(len(files)))
    pixels = {number: _image(files[number]) for number in set(wanted)}
    if odd := [files[number] for number, image in pixels.items() if image.shape != pixels[wanted[0]].shape]:
        raise CorruptVideoError(
            f"The image {odd[0]} has another size than the other images of its clip. Extract the clip again."
        )
    return _stack([pixels[number] for number in wanted])


def _stack(images: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _numbered_images(folder: Path) -> list[Path]:
    """The images of a clip in the order of their numbers, which must have no gap."""
    shown = printable(folder)
    images = [path for path in folder.iterdir() if _is_image(path) and path.is_file()]
    files = [path for path in images if path.suffix.lower() != ".gif"] or images  # a GIF next to frames shows them all
    if not files:
        raise CorruptVideoError(f"The folder {shown} contains no images, so it is not a clip.")
    numbers: dict[int, Path] = {}
    for file in files:
        digits = re.search(r"(\d+)$", file.stem)
        if digits is None or int(digits[1]) in numbers:
            raise CorruptVideoError(
                f"The image {printable(file)} has no unique number at the end of its name. Frames are named like "
                "frame_00001.jpg."
            )
        numbers[int(digits[1])] = file
    low, high = min(numbers), max(numbers)
    if high - low + 1 != len(numbers):
        lost = next(number for number in range(low, high) if number not in numbers)
        raise CorruptVideoError(
            f"The folder {shown} contains images {low} to {high}, but number {lost} is missing ({len(numbers):,} "
            "found). Extract the clip again."
        )
    return [numbers[number] for number in sorted(numbers)]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _image(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as (H, W, 3)."""
    try:
        return np.array(open_rgb(file))
    except CorruptImageError as error:
        raise CorruptVideoError(str(error).replace("The image", "The frame", 1)) from error
