"""A stand-in for TensorFlow Datasets: the names, splits, sizes and feature structure of its data sets, tiny images.

The sizes are those of the TFDS catalog, so that a positional slice that would be out of range yields nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

# Name -> version and number of examples of each split.
CATALOG: dict[str, tuple[str, dict[str, int]]] = {
    "cifar100": ("3.0.2", {"train": 50_000, "test": 10_000}),
    "caltech101": ("3.0.1", {"train": 3_060, "test": 6_084}),
    "dtd": ("3.0.1", {"train": 1_880, "validation": 1_880, "test": 1_880}),
    "oxford_flowers102": ("2.1.1", {"train": 1_020, "validation": 1_020, "test": 6_149}),
    "oxford_iiit_pet": ("3.2.0", {"train": 3_680, "test": 3_669}),
    "svhn_cropped": ("3.0.0", {"train": 73_257, "test": 26_032, "extra": 531_131}),
    "sun397/tfds": ("4.0.0", {"train": 76_128, "validation": 10_875, "test": 21_750}),
    "patch_camelyon": ("2.0.0", {"train": 262_144, "validation": 32_768, "test": 32_768}),
    "eurosat/rgb": ("2.0.0", {"train": 27_000}),
    "resisc45": ("3.0.0", {"train": 31_500}),
    "diabetic_retinopathy_detection/btgraham-300": (
        "3.0.0",
        {"sample": 10, "train": 35_126, "validation": 10_906, "test": 42_670},
    ),
    "clevr": ("3.1.0", {"train": 70_000, "validation": 15_000, "test": 15_000}),
    "dmlab": ("2.0.1", {"train": 65_550, "validation": 22_628, "test": 22_735}),
    "kitti": ("3.2.0", {"train": 6_347, "validation": 423, "test": 711}),
    "dsprites": ("2.0.0", {"train": 737_280}),
    "smallnorb": ("2.0.0", {"train": 24_300, "test": 24_300}),
}
CLASSES = {
    "cifar100": 100,
    "caltech101": 102,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "svhn_cropped": 10,
    "sun397/tfds": 397,
    "patch_camelyon": 2,
    "eurosat/rgb": 10,
    "resisc45": 45,
    "diabetic_retinopathy_detection/btgraham-300": 5,
    "dmlab": 6,
}


@dataclass
class FakeTFDS:
    """What `tensorflow_datasets` offers, as far as it is used.

    Args:
        limit: examples that a slice yields at most; None yields all.
        fail_at: raise once after this many examples, as an interrupted download or a damaged record would.
    """

    limit: int | None = 8
    fail_at: int | None = None
    asked: list[str] = field(default_factory=list)
    """The slices that were read, as `name[slice]`."""
    served: int = 0

    def builder(self, name: str, data_dir: str | None = None) -> SimpleNamespace:  # noqa: ARG002
        data_set, _, pattern = name.partition(":")
        version, splits = CATALOG[data_set]
        assert not pattern or re.fullmatch(pattern.replace(".", r"\.").replace("*", r"\d+"), version), name

        def as_dataset(split: str, shuffle_files: bool) -> Iterator[dict[str, Any]]:
            assert not shuffle_files
            self.asked.append(f"{data_set}: {split}")
            return self._examples(data_set, split, splits)

        return SimpleNamespace(
            info=SimpleNamespace(full_name=f"{data_set}/{version}"),
            download_and_prepare=lambda: None,
            as_dataset=as_dataset,
        )

    @staticmethod
    def as_numpy(dataset: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return dataset

    def _examples(self, name: str, split: str, splits: dict[str, int]) -> Iterator[dict[str, Any]]:
        matched = re.fullmatch(r"(\w+)(?:\[(\d*%?):(\d*%?)\])?", split)
        assert matched is not None, split
        size = splits[matched[1]]

        def position(text: str | None, default: int) -> int:
            if not text:
                return default
            return int(text[:-1]) * size // 100 if text.endswith("%") else int(text)

        positions = range(size)[position(matched[2], 0) : position(matched[3], size)]
        for index in positions[: self.limit]:
            if self.fail_at is not None and self.served >= self.fail_at:
                self.fail_at = None
                raise RuntimeError("InvalidArgumentError: cannot decode")
            self.served += 1
            yield example(name, matched[1], index)


def example(name: str, split: str, index: int) -> dict[str, Any]:
    """One example as NumPy, in the feature structure of TFDS; the same for the same arguments."""
    rng = np.random.default_rng([index, len(split), len(name)])

    def image(channels: int = 3, high: int = 256, shape: tuple[int, int] = (12, 16)) -> np.ndarray:
        return rng.integers(0, high, (*shape, channels)).astype(np.uint8)

    if name == "clevr":
        count = int(rng.integers(3, 11))
        objects = {
            key: rng.integers(0, 2, count).astype(np.int64) for key in ("color", "material", "shape", "size")
        } | {
            "3d_coords": rng.normal(size=(count, 3)).astype(np.float32),
            "pixel_coords": (rng.uniform(7.6, 12, (count, 3))).astype(np.float32),
            "rotation": rng.uniform(0, 360, count).astype(np.float32),
        }
        return {"file_name": b"CLEVR.png", "image": image(), "objects": objects, "question_answer": {}}
    if name == "kitti":
        count = int(rng.integers(0, 4))
        objects = {
            "alpha": rng.normal(size=count).astype(np.float32),
            "bbox": rng.uniform(size=(count, 4)).astype(np.float32),
            "dimensions": rng.uniform(size=(count, 3)).astype(np.float32),
            "location": rng.uniform(2, 40, (count, 3)).astype(np.float32),
            "occluded": rng.integers(0, 4, count),
            "rotation_y": rng.normal(size=count).astype(np.float32),
            "truncated": rng.uniform(size=count).astype(np.float32),
            "type": rng.integers(0, 8, count),
        }
        return {"image": image(shape=(6, 20)), "image/file_name": b"000001.png", "objects": objects}
    if name == "dsprites":
        return {
            "image": image(1, 2),
            "label_orientation": rng.integers(40),
            "label_scale": rng.integers(6),
            "label_shape": rng.integers(3),
            "label_x_position": rng.integers(32),
            "label_y_position": rng.integers(32),
            "value_orientation": np.float32(0),
            "value_scale": np.float32(1),
            "value_shape": np.float32(1),
            "value_x_position": np.float32(0),
            "value_y_position": np.float32(0),
        }
    if name == "smallnorb":
        return {
            "image": image(1),
            "image2": image(1),
            "instance": rng.integers(10),
            "label_azimuth": rng.integers(18),
            "label_category": rng.integers(5),
            "label_elevation": rng.integers(9),
            "label_lighting": rng.integers(6),
        }
    extra = {"coarse_label": rng.integers(20), "id": b"id"} if name == "cifar100" else {}
    return {"image": image(), "label": rng.integers(CLASSES[name]), **extra}


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeTFDS:
    """Let `import tensorflow_datasets` find the stand-in."""
    fake = FakeTFDS(**options)
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)  # type: ignore[arg-type]
    return fake
