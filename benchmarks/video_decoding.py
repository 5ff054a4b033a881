"""How many clips per second does the video datamodule deliver, by codec, loader processes and cache?

    python benchmarks/video_decoding.py

Videos of the sizes of Something-Something-V2 (VP9 in WebM, 427 x 240, 48 frames) and HMDB51 (MPEG-4 in AVI, 320 x 240,
90 frames) are generated in a temporary folder, and complete epochs of training clips (8 frames of 224 x 224) are
drawn. The reference decodes in the training process.

Memory is the peak of a new process that draws one epoch with an empty cache, including its libraries and its loader
processes. A loader process holds two batches and the frames of the video that it decodes, so memory grows with the
workers.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from PIL import Image

from datamodules import VideoFolderDataModule
from replora.datasets.video.motion import write_video
from replora.datasets.video.sampling import ClipOptions
from replora.memory import usable_cpus

# Name -> file extension, encoder, its options, frames per second, width, height, frames.
KINDS: dict[str, tuple[str, str, dict[str, str], int, int, int, int]] = {
    "ssv2": ("webm", "libvpx-vp9", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "8"}, 12, 426, 240, 48),
    "hmdb51": ("avi", "mpeg4", {"qmin": "4", "qmax": "8", "g": "12"}, 30, 320, 240, 90),
}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--videos", type=int, default=48, help="number of training videos of each kind")
    parser.add_argument("--batch", type=int, default=8, help="clips per batch")
    parser.add_argument("--workers", type=int, nargs="+", default=[usable_cpus()], help="loader processes, beside 0")
    options = parser.parse_args(arguments)
    if options.quick:
        options.videos, options.batch, options.rounds, options.workers = 4, 2, 2, []
    torch.set_num_threads(options.threads)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            write_videos(Path(folder) / kind, kind, options.videos, quick=options.quick)
            results |= compare(Path(folder) / kind, kind, options)
    measure.show(
        f"{options.videos} videos of each kind, clips of 8 frames of 224 x 224 in batches of {options.batch}",
        ["loader", "clips/s", "x decoding in the training process (quartiles)", "MB"],
        [
            [name, f"{found['clips_per_second']:,.1f}", measure.ratio_text(found), megabytes(found)]
            for name, found in results.items()
        ],
    )
    print(measure.write(options.out, "video_decoding", measure.settings(options), results))


def compare(root: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure clips per second of each loader. The ratios compare speeds, so above 1 is faster."""
    cache = root.parent / f"{kind}_cache"
    settings: dict[str, tuple[int, Path | None]] = {
        f"{kind}, {workers} loader processes": (workers, None) for workers in (0, *options.workers)
    }
    settings[f"{kind}, 0 loader processes, decoded once"] = (0, cache)
    peaks = {}
    for name, (workers, folder) in settings.items():
        if not options.quick or (workers, folder, kind) == (0, None, next(iter(KINDS))):
            peaks[name] = measure.peak_of_processes(draw, root, workers, options, folder)
        shutil.rmtree(cache, ignore_errors=True)
    loaders = {name: made(root, *setting, options).train_dataloader() for name, setting in settings.items()}
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(-1, options.rounds):  # the first epoch starts processes and fills the cache
        for name, loader in loaders.items():
            started = time.perf_counter()
            count = sum(len(batch["label"]) for batch in loader)
            if number >= 0:
                speeds[name].append(count / (time.perf_counter() - started))
    results = measure.summarize(speeds, next(iter(speeds)))
    return {
        name: {
            "clips_per_second": found.pop("seconds"),
            "speed_quartiles": found.pop("seconds_quartiles"),
            **found,
            "peak_bytes": peaks.get(name),
        }
        for name, found in results.items()
    }


def draw(root: Path, workers: int, options: argparse.Namespace, cache: Path | None) -> None:
    """Draw one epoch, in a separate process."""
    torch.set_num_threads(options.threads)
    for _ in made(root, workers, cache, options).train_dataloader():
        pass


def megabytes(found: dict[str, Any]) -> str:
    return "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:,.0f}"


def made(root: Path, workers: int, cache: Path | None, options: argparse.Namespace) -> VideoFolderDataModule:
    module = VideoFolderDataModule(
        root,
        test_fraction=0.0,
        clips=ClipOptions(),
        val_fraction=0.0,
        protocol="final",
        batch_size=options.batch,
        num_workers=workers,
        drop_last=False,
        cache_dir=cache,
    )
    module._build("trainval")
    return module


def write_videos(root: Path, kind: str, count: int, quick: bool) -> None:
    """Write videos of moving smooth noise, half of them in each of two classes."""
    ending, codec, encoder, rate, width, height, frames = KINDS[kind]
    if quick:
        width, height, frames = 64, 48, 8
    for number in range(count):
        file = root / f"class{number % 2}" / f"{number}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, moving_noise(number, width, height, frames), codec, rate, encoder)


def moving_noise(seed: int, width: int, height: int, frames: int) -> Iterator[Any]:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    for t in range(frames):
        yield np.ascontiguousarray(np.roll(smooth, 2 * t, axis=1))


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
