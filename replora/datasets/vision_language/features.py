"""Features of images and videos on disk, one file each, in the layouts of VL-Adapter and VALUE.

{folder}/{name}.h5    data set "{name}/features", (n, feature_size)        images
{folder}/{name}.npz   array "features", (n, feature_size)                  videos; images as well
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from replora.datasets.common.text_files import read_json
from replora.datasets.errors import DatasetNotFoundError
from replora.errors import RepLoRAError
from replora.io import replacing

SUFFIXES = (".h5", ".npz")
EXTRACT = "replora-cli prepare clip-features"
RECORD = "extraction.json"  # file with the options of an extraction, beside its features


class FeatureError(RepLoRAError):
    """A file of features is missing, corrupt or of another shape than expected."""


class FeatureSource(Protocol):
    """A source of features.

    Attributes:
        extraction: How they were extracted (`extraction.json`); empty if that is not known.
    """

    extraction: dict[str, Any]

    def read(self, name: str) -> Tensor:
        """The features (n, feature_size) of one image or video, float32."""
        ...


class FeatureFolder:
    """The features in a folder.

    Args:
        folder: Folder of the files.
        feature_size: Required width of the features.
        frames: Number of vectors to resize each video to, see `resized`. Default: all are kept.
        count: Required number of vectors in each file, if `frames` is None. Default: that of the first file in
            `check_names`.

    Raises:
        DatasetNotFoundError: There is no such folder.
    """

    def __init__(self, folder: Path, feature_size: int, frames: int | None = None, count: int | None = None) -> None:
        self.folder = folder
        self.feature_size = feature_size
        self.frames = frames
        self.count = count
        if not folder.is_dir():
            raise DatasetNotFoundError(
                f"There is no folder of features {folder}. VL-Adapter's own CLIP features are no longer available; "
                f"extract them from the images or videos: {EXTRACT} SOURCE {folder}"
            )
        self.extraction = read_extraction(folder)

    def check_names(self, names: Iterable[str]) -> None:
        """Check that each name has a file, and read the first one, whose shape all others must have.

        Raises:
            FeatureError: A file is missing, or the first one is corrupt or of another shape than expected.
        """
        names = sorted(set(names))
        with os.scandir(self.folder) as entries:
            there = {Path(entry.name).stem for entry in entries if entry.name.endswith(SUFFIXES)}
        missing = [name for name in names if name not in there]
        if missing:
            raise FeatureError(
                f"{len(missing):,} files of features are missing in {self.folder}: {', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''} (as .h5 or .npz; {len(there):,} found). Extract them with "
                f"{EXTRACT}, which continues an interrupted extraction."
            )
        if names:
            first = self.read(names[0])
            self.count = len(first) if self.frames is None else None

    def read(self, name: str) -> Tensor:
        """The features (n, feature_size) of one image or video, float32.

        Raises:
            FeatureError: The file is missing, corrupt, of another shape than expected, or not finite.
        """
        file = next((f for f in (self.folder / f"{name}{suffix}" for suffix in SUFFIXES) if f.is_file()), None)
        if file is None:
            raise FeatureError(f"There are no features of {name!r} in {self.folder}. Extract them with {EXTRACT}.")
        try:
            array = _read_h5(file, name) if file.suffix == ".h5" else _read_npz(file)
        except (OSError, KeyError, ValueError, EOFError) as error:
            if isinstance(error, RepLoRAError):
                raise
            raise FeatureError(f"{file} is corrupt or contains no features of {name!r}: {error}") from error
        if array.ndim != 2 or array.shape[1] != self.feature_size or len(array) == 0:
            raise FeatureError(
                f"{file} holds features of shape {array.shape}, but (n, {self.feature_size}) was expected. Set "
                f"--data.feature_size and --model.feature_size to their width, or extract them again with {EXTRACT}."
            )
        if self.count not in (None, len(array)):
            raise FeatureError(
                f"{file} holds features of shape {array.shape}, but ({self.count}, {self.feature_size}) was expected, "
                f"as every image of a folder has as many. Delete it and extract it again with {EXTRACT}."
            )
        with np.errstate(over="ignore"):  # beyond float32: infinite, which is checked
            features = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        if not torch.isfinite(features).all():
            bad = (~torch.isfinite(features)).any(dim=1).nonzero().flatten().tolist()
            raise FeatureError(
                f"{file} holds numbers that are not finite, in {len(bad):,} of its {len(features):,} vectors (first: "
                f"{bad[0]}). Delete it and extract it again with {EXTRACT}."
            )
        return features if self.frames is None else resized(features, self.frames)


def read_extraction(folder: Path) -> dict[str, Any]:
    """The options of the extraction of a folder of features; empty if they are not recorded.

    Raises:
        FeatureError: The record is corrupt.
    """
    file = folder / RECORD
    if not file.is_file():
        return {}
    recorded = read_json(file, FeatureError, f"It says how the features beside it were extracted with {EXTRACT}.")
    if not isinstance(recorded, dict):
        raise FeatureError(f"{file} is not the record of {EXTRACT}: it holds {recorded!r:.50}.")
    return recorded


def resized(features: Tensor, count: int) -> Tensor:
    """T vectors (T, D) -> (count, D), by zero padding of shorter videos and adaptive max-pooling of longer ones."""
    if len(features) <= count:
        return F.pad(features, (0, 0, 0, count - len(features)))
    return F.adaptive_max_pool1d(features.T, count).T.contiguous()


def write_h5(file: Path, name: str, features: np.ndarray) -> None:
    """Write one image's features atomically, in the layout of `FeatureFolder`."""
    with replacing(file) as temporary, _h5py().File(temporary, "w") as content:
        content.create_dataset(f"{name}/features", data=features)


def write_npz(file: Path, features: np.ndarray) -> None:
    """Write one video's features atomically, in the layout of `FeatureFolder`."""
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, features=features)


def _read_h5(file: Path, name: str) -> np.ndarray:
    with _h5py().File(file, "r") as content:
        return np.asarray(content[f"{name}/features"])


def _read_npz(file: Path) -> np.ndarray:
    with np.load(file, allow_pickle=False) as content:
        return np.asarray(content["features"])


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise FeatureError('Files ending in .h5 need h5py: pip install "replora[vl]"') from error
    return h5py
