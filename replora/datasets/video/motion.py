"""Generated clips whose class is the direction of a motion, which no single frame shows.

A patch of colored squares moves over a still background of colored squares, 2 or 3 pixels per frame. It starts anywhere
and wraps around, so each frame alone has the same distribution in all four classes. The clips are MPEG-4 in AVI, like
HMDB51's, and the same on every machine up to the version of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from replora.datasets.common.labeled_files import FileTable
from replora.datasets.errors import PrepareError
from replora.datasets.video.decode import check_decoder
from replora.datasets.video.folder import read_video_table
from replora.io import OutputError, cache_folder, new_folder

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

DIRECTIONS = {"down": (0, 1), "left": (-1, 0), "right": (1, 0), "up": (0, -1)}  # x, y; y grows downwards
PER_CLASS = {"train": 100, "val": 25, "test": 100}
SIZE, FRAMES, SQUARE = 32, 10, 4  # pixels, frames of a clip, pixels of a colored square
VERSION = 1  # part of the folder's name; incremented when the clips change


def read_motion(root: Path | None = None) -> FileTable:
    """The clips in `root` (default: in `replora.io.cache_folder()`). The first call creates them, concurrent calls too.

    Raises:
        PrepareError: The clips cannot be written.
        MissingDecoderError: PyAV is not installed.
    """
    folder = cache_folder() / f"motion-{VERSION}" if root is None else Path(root).expanduser()
    if not folder.is_dir():
        check_decoder()
        try:
            _make(folder)
        except (OSError, OutputError) as error:
            if not folder.is_dir():  # otherwise another process was faster
                raise PrepareError(
                    f"The clips of the demonstration cannot be written to {folder} ({error}). Set another folder: "
                    "--data.root, or the environment variable REPLORA_CACHE."
                ) from error
    return read_video_table(folder)


def _make(folder: Path) -> None:
    with new_folder(folder) as temporary:
        for split_number, (split, count) in enumerate(PER_CLASS.items()):
            for label, name in enumerate(DIRECTIONS):
                (temporary / split / name).mkdir(parents=True)
                for number in range(count):
                    rng = np.random.default_rng((split_number, label, number))
                    write_video(temporary / split / name / f"{number:03d}.avi", motion_frames(name, rng))


def motion_frames(direction: str, rng: np.random.Generator) -> Iterator[Pixels]:
    """The frames of one clip: `FRAMES` arrays uint8 (32, 32, 3)."""
    background = _squares(SIZE, rng) // 2
    side = int(rng.integers(8, 13))
    patch = _squares(side, rng)
    x, y = rng.integers(0, SIZE, 2)
    speed = int(rng.integers(2, 4))
    dx, dy = DIRECTIONS[direction]
    for t in range(FRAMES):
        frame = background.copy()
        columns = (x + dx * speed * t + np.arange(side)) % SIZE
        rows = (y + dy * speed * t + np.arange(side)) % SIZE
        frame[np.ix_(rows, columns)] = patch
        yield frame


def write_video(
    file: Path, frames: Iterator[Pixels], codec: str = "mpeg4", rate: int = 10, options: dict[str, str] | None = None
) -> None:
    """Encode frames, uint8 (H, W, 3) with even H and W, as a video file, whose suffix determines the container.

    Args:
        file: File to write, in an existing folder.
        frames: Frames.
        codec: Name of an encoder of FFmpeg.
        rate: Frames per second.
        options: Options of the encoder. Default: high quality, and no frame depends on another one.
    """
    import av

    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {"qmin": "1", "qmax": "2", "g": "1"})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _squares(side: int, rng: np.random.Generator) -> Pixels:
    """Colored squares, (side, side, 3)."""
    count = -(-side // SQUARE)
    colors = rng.integers(0, 256, (count, count, 3), dtype=np.uint8)
    return colors.repeat(SQUARE, axis=0).repeat(SQUARE, axis=1)[:side, :side]
