"""VTAB-1K tasks from TensorFlow Datasets, which only this file imports.

The slices are those of google-research/task_adaptation, `data/*.py`. They are positions in the order of TFDS, without a
seed: train800 is the start of the training part, val200 the start of the validation part.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from replora.datasets.errors import PrepareError
from replora.datasets.vtab.dataset import VTABSplit, VTABTask
from replora.datasets.vtab.labels import label_of
from replora.datasets.vtab.tracks import TRACKS, Track, track_options, write_marker
from replora.datasets.vtab.verify import in_threads, sun397_note
from replora.errors import RepLoRAError
from replora.memory import usable_cpus

VERSIONS = ("tensorflow-datasets", "tensorflow", "pillow", "numpy", "replora")


@dataclass(frozen=True)
class Slices:
    """The slices of a task in TensorFlow Datasets."""

    builder: str  # name, configuration and version for `tfds.builder`; without a version, the newest
    val: str = "validation[:200]"
    test: str = "test"
    train: str = "train[:800]"

    def of(self, split: VTABSplit) -> str:
        """The slice of `train800`, `val200` or `test`."""
        return {"train800": self.train, "val200": self.val, "test": self.test}[split]


_CLEVR = Slices("clevr:3.*.*", "train[63000:63200]", "validation")  # the official test images have no labels
_DSPRITES = Slices("dsprites:2.*.*", "train[589824:590024]", "train[663552:]")
_SMALLNORB = Slices("smallnorb:2.*.*", "test[:200]", "test[50%:]")

SLICES: dict[str, Slices] = {
    "cifar": Slices("cifar100:3.*.*", "train[45000:45200]"),
    "caltech101": Slices("caltech101:3.*.*", "train[2754:2954]"),
    "dtd": Slices("dtd:3.*.*"),
    "oxford_flowers102": Slices("oxford_flowers102:2.*.*"),
    # Published rows used 3.2.0, which TFDS 4.9.10 no longer offers. 4.0.0 fixes some images; their number is the same.
    "oxford_iiit_pet": Slices("oxford_iiit_pet", "train[2944:3144]"),
    "svhn": Slices("svhn_cropped:3.*.*", "train[65931:66131]"),
    "sun397": Slices("sun397/tfds:4.*.*"),
    "patch_camelyon": Slices("patch_camelyon:2.*.*"),
    "eurosat": Slices("eurosat/rgb:2.*.*", "train[16200:16400]", "train[21600:]"),
    "resisc45": Slices("resisc45:3.*.*", "train[18900:19100]", "train[25200:]"),
    "diabetic_retinopathy": Slices("diabetic_retinopathy_detection/btgraham-300:3.*.*"),
    "clevr_count": _CLEVR,
    "clevr_dist": _CLEVR,
    "dmlab": Slices("dmlab:2.0.1"),
    "kitti": Slices("kitti:3.2.0"),
    "dsprites_loc": _DSPRITES,
    "dsprites_ori": _DSPRITES,
    "smallnorb_azi": _SMALLNORB,
    "smallnorb_ele": _SMALLNORB,
}


def import_tfds() -> Any:
    """The package `tensorflow_datasets`. Raises PrepareError if the package or TensorFlow is not installed."""
    try:
        importlib.import_module("tensorflow")
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise PrepareError(
            f"Building VTAB-1K needs TensorFlow Datasets, which cannot be imported here ({error}). Install it with: "
            'pip install "replora[tfds]"  (or, if replora is installed: pip install tensorflow tensorflow-datasets)'
        ) from error


def open_builder(task: VTABTask, data_dir: Path | None = None) -> Any:
    """The TFDS builder of a task, after its data are downloaded to `data_dir` (default: that of TensorFlow Datasets).

    Raises:
        PrepareError: TensorFlow Datasets is not installed or cannot provide the data.
    """
    tfds = import_tfds()
    name = SLICES[task.name].builder
    with _tfds_errors(name):
        builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
        builder.download_and_prepare()
    return builder


def build_task(
    root: Path,
    task: VTABTask,
    track: Track,
    builder: Any,
    check_sizes: bool = True,
    advance: Callable[[int], object] = lambda _: None,
) -> Path:
    """Write `root/<task>` with its four lists, its images and the record of how they were made.

    Everything is written to a hidden folder, which is renamed to the task when it is complete. Complete splits are kept
    after an interruption.

    Args:
        root: Folder of the tasks. It is created if it does not exist.
        task: One of the 19 tasks.
        track: `archive` writes JPEG of quality 75 with 4:2:0 chroma, `clean` writes lossless PNG.
        builder: Builder from `open_builder`.
        check_sizes: Whether to compare the number of images with the table.
        advance: Function that is called with the number of images written since the last call.

    Returns:
        The folder of the task.

    Raises:
        PrepareError: TensorFlow Datasets cannot provide the images, or a split has the wrong number of them.
    """
    tfds = import_tfds()
    slices = SLICES[task.name]
    suffix = track_options(track).suffix
    name = str(builder.info.full_name)  # such as kitti/3.2.0
    partial = root / f".{task.name}-{track}-{name.replace('/', '-')}.partial"
    for split in ("train800", "val200", "test"):
        list_file = partial / f"{split}.txt"
        if not list_file.exists():
            with _tfds_errors(f"{name}, {slices.of(split)}"):
                examples = tfds.as_numpy(builder.as_dataset(split=slices.of(split), shuffle_files=False))
                _write_split(partial, split, task, examples, track, advance)
        else:
            advance(task.size(split) or 0)
        count = len(list_file.read_text(encoding="utf-8").splitlines())
        if check_sizes and count != task.size(split):
            raise PrepareError(
                f"{slices.of(split)} of {name} has {count:,} images, but {split} of {task.name} has "
                f"{task.size(split):,}. The data set is incomplete or another version.{sun397_note(task, count)} The "
                f"written images are kept in {partial}. --check_sizes false accepts them, but their results are then "
                "not those of VTAB-1K."
            )
    with _write_errors(partial):
        _join(partial, suffix)
        versions = {package: _version(package) for package in VERSIONS}
        write_marker(partial, task, track, f"tensorflow_datasets {name}", versions)
    advance(task.size("train800val200") or 0)
    folder = root / task.name
    if folder.exists():
        raise PrepareError(f"{folder} was created while {partial} was written. Remove one of them and try again.")
    return partial.rename(folder)


def _write_split(
    home: Path,
    split: VTABSplit,
    task: VTABTask,
    examples: Iterable[dict[str, Any]],
    track: Track,
    advance: Callable[[int], object],
) -> None:
    """Write the images of a split, then its list: a list that exists is complete."""
    suffix = TRACKS[track].suffix
    with _write_errors(home):
        (home / "images" / split).mkdir(parents=True, exist_ok=True)

    def write(numbered: tuple[int, dict[str, Any]]) -> str:
        number, example = numbered
        path = f"images/{split}/{number:06d}{suffix}"
        try:
            label = label_of(task.name, example)
            pixels = rgb(task.name, example["image"])
        except RepLoRAError as error:
            raise PrepareError(f"Image {number} of {split} of {task.name}: {error}") from error
        with _write_errors(home / path):
            save_image(pixels, home / path, track)
        return f"{path} {label}\n"

    lines = []
    with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
        for line in in_threads(threads, write, enumerate(examples)):
            lines.append(line)
            advance(1)
    with _write_errors(home):
        _write_list(home, split, lines)


def _join(home: Path, suffix: str) -> None:
    """Write train800val200, copies of the images of train800 and then val200, as in the archive."""
    if (home / "train800val200.txt").exists():
        return
    (home / "images" / "train800val200").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split in ("train800", "val200"):
        for line in (home / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            source, label = line.split()
            path = f"images/train800val200/{len(lines):06d}{suffix}"
            shutil.copyfile(home / source, home / path)
            lines.append(f"{path} {label}\n")
    _write_list(home, "train800val200", lines)


def _write_list(home: Path, split: VTABSplit, lines: list[str]) -> None:
    unfinished = home / f"{split}.txt.partial"
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(home / f"{split}.txt")


def rgb(task: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) or (H, W, 1) -> uint8 (H, W, 3); the masks of dSprites, 0 and 1, become 0 and 255."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise PrepareError(f"an image of {task} is {image.dtype} {image.shape}, not uint8 (H, W, 3) or (H, W, 1)")
    if task.startswith("dsprites"):
        if image.max(initial=0) > 1:
            raise PrepareError(f"a mask of {task} has values up to {image.max()}, not 0 and 1")
        image = image * np.uint8(255)
    return np.broadcast_to(image, (*image.shape[:2], 3))


def save_image(pixels: NDArray[np.uint8], file: Path, track: Track) -> None:
    """Write uint8 (H, W, 3) in the format of a track."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if TRACKS[track].image_format == "PNG":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=75, subsampling="4:2:0")


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into a `PrepareError`."""
    try:
        yield
    except OSError as error:
        raise PrepareError(f"{path} cannot be written: {error}. The same command continues from here.") from error


@contextmanager
def _tfds_errors(what: str) -> Iterator[None]:
    """Turn any error of TensorFlow Datasets into a `PrepareError` that names what was being read."""
    try:
        yield
    except RepLoRAError:
        raise
    except Exception as error:
        raise PrepareError(
            f"TensorFlow Datasets could not provide {what}: {type(error).__name__}: {error}\nSome data sets "
            "(diabetic_retinopathy_detection, resisc45) must be downloaded by hand first; --tfds_dir is the folder of "
            "TensorFlow Datasets. The same command continues from here."
        ) from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
