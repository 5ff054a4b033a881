"""Writes videos in the real containers, codecs and annotation formats of SSv2 and HMDB51, as small as a test needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from replora.datasets.video.motion import write_video

SSV2_TEMPLATES = {
    "Pushing [something] from left to right": "Pushing something from left to right",
    "Dropping [something] onto [something]": "Dropping something onto something",
    "Folding [something]": "Folding something",
}
# Names as HMDB51 has them, the film first; FILM_{class}_{body}_{camera}_{people}_{view}_{quality}_{number}.
HMDB51_NAMES = "{film}_{name}_u_cm_np1_ba_med_{number}.avi"


def frames_of(label: int, count: int = 12, size: tuple[int, int] = (24, 32), noise: int = 0) -> Iterator[np.ndarray]:
    """`count` frames of height x width whose brightness tells their number, and whose red tells the class."""
    rng = np.random.default_rng(noise)
    for t in range(count):
        frame = np.full((*size, 3), 20 + 15 * (t % 15), np.uint8)
        frame[..., 0] = np.clip(60 * label + rng.integers(0, 20, size), 0, 255)
        yield frame


def write_webm(file: Path, label: int = 0, count: int = 12, size: tuple[int, int] = (24, 32), noise: int = 0) -> Path:
    """VP9 in WebM, 12 frames a second, as SSv2."""
    file.parent.mkdir(parents=True, exist_ok=True)
    options = {"crf": "4", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    write_video(file, frames_of(label, count, size, noise), "libvpx-vp9", 12, options)
    return file


def write_avi(file: Path, label: int = 0, count: int = 12, size: tuple[int, int] = (24, 32), noise: int = 0) -> Path:
    """MPEG-4 with B-frames in AVI, 30 frames a second, as HMDB51's XviD."""
    file.parent.mkdir(parents=True, exist_ok=True)
    options = {"qmin": "1", "qmax": "2", "bf": "2", "g": "12"}
    write_video(file, frames_of(label, count, size, noise), "mpeg4", 30, options)
    return file


def write_frames(folder: Path, label: int = 0, count: int = 12, first: int = 1) -> Path:
    """A folder of numbered JPEG images."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames_of(label, count)):
        Image.fromarray(frame).save(folder / f"img_{first + number}.jpg", quality=95)
    return folder


def write_ssv2(root: Path, train: int = 9, validation: int = 6, frames: bool = False) -> Path:
    """The official lists, and videos as `{id}.webm` or folders of frames; returns `root`."""
    root.mkdir(parents=True, exist_ok=True)
    templates = list(SSV2_TEMPLATES)
    labels = {plain: str(number) for number, plain in enumerate(SSV2_TEMPLATES.values())}
    (root / "something-something-v2-labels.json").write_text(json.dumps(labels))
    number = 1000
    for name, count in (("train", train), ("validation", validation)):
        items = []
        for i in range(count):
            number += 1
            label = i % len(templates)
            if frames:
                write_frames(root / "frames" / str(number), label, 10 + i % 4)
            else:
                write_webm(root / "20bn-something-something-v2" / f"{number}.webm", label, 10 + i % 4, noise=number)
            item = {"id": str(number), "label": "a thing", "template": templates[label], "placeholders": ["a thing"]}
            items.append(item)
        (root / f"something-something-v2-{name}.json").write_text(json.dumps(items))
    (root / "something-something-v2-test.json").write_text(json.dumps([{"id": "9999"}]))
    return root


def write_hmdb51(root: Path, classes: tuple[str, ...] = ("brush_hair", "cartwheel", "wave"), films: int = 4) -> Path:
    """Three official splits and `videos/CLASS/*.avi`: two clips of each film; returns `root`.

    In split s film (s - 1) of each class is for the test, its second clip is unused, all others are for training.
    """
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    for label, name in enumerate(classes):
        clips = [
            (film, HMDB51_NAMES.format(film=f"Film!{film}(x)", name=name, number=n))
            for film in range(films)
            for n in (0, 1)
        ]
        for _, clip in clips:
            write_avi(root / "videos" / name / clip, label, 10, noise=label)
        for split in (1, 2, 3):
            lines = []
            for i, (film, clip) in enumerate(clips):
                part = 1 if film != split - 1 else 2 - 2 * (i % 2)
                lines.append(f"{clip} {part} \n")
            (lists / f"{name}_test_split{split}.txt").write_text("".join(lines))
    return root


def write_video_folder(root: Path, classes: tuple[str, ...] = ("left", "right"), per_class: int = 6) -> Path:
    """A folder for each class: videos, and one clip as a folder of images; returns `root`."""
    for label, name in enumerate(classes):
        for i in range(per_class - 1):
            write_avi(root / name / f"{i}.avi", label, 9 + i, noise=i)
        write_frames(root / name / "clip", label)
    return root
