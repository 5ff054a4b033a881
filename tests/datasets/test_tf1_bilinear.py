"""The filter of TensorFlow 1 against what TensorFlow returned (`record_tf1_bilinear.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from replora.datasets.image.read import ImageReader
from replora.datasets.image.resize import resize, tf1_bilinear
from tests.datasets.record_tf1_bilinear import FILE, LARGE, SMALL, picture, sha256


@pytest.mark.parametrize(("height", "width", "size"), SMALL)
def test_equal_to_tensorflow_to_the_bit(height: int, width: int, size: int) -> None:
    found = tf1_bilinear(picture(height, width), size, size)
    assert found.dtype == np.float32
    with np.load(FILE, allow_pickle=False) as recorded:
        assert np.array_equal(found, recorded[f"{height}x{width}_to_{size}"])


@pytest.mark.parametrize(("height", "width", "size"), LARGE)
def test_equal_to_tensorflow_at_the_sizes_of_the_benchmark(height: int, width: int, size: int) -> None:
    with np.load(FILE, allow_pickle=False) as recorded:
        assert (
            sha256(tf1_bilinear(picture(height, width), size, size)) == recorded[f"{height}x{width}_to_{size}_sha256"]
        )


def test_a_reader_returns_the_pixels_of_tensorflow(tmp_path: Path) -> None:
    Image.fromarray(picture(61, 47)).save(tmp_path / "image.png")
    found = ImageReader(21, "tf1_bilinear").read(tmp_path / "image.png")
    with np.load(FILE, allow_pickle=False) as recorded:
        assert torch.equal(found, torch.from_numpy(recorded["61x47_to_21"]).permute(2, 0, 1))
    assert found.is_contiguous()


@pytest.mark.parametrize("framing", ["crop", "pad", "squash"])
def test_every_framing_knows_the_filter(tmp_path: Path, framing: str) -> None:
    Image.fromarray(picture(61, 47)).save(tmp_path / "image.png")
    reader = ImageReader(21, "tf1_bilinear", framing, mean=(0.5, 0.5, 0.5))  # type: ignore[arg-type]
    square = reader.read(tmp_path / "image.png")
    assert (square.dtype, square.shape) == (torch.float32, (3, 21, 21))
    assert (square != square.round()).any(), "not rounded"
    assert min(reader.read(tmp_path / "image.png", "uncropped").shape[1:]) == 24
    assert reader.read(tmp_path / "image.png", "original").dtype == torch.uint8


def test_where_nothing_is_resized_nothing_changes() -> None:
    image = Image.fromarray(picture(9, 9))
    assert torch.equal(resize(image, 9, 9, "tf1_bilinear"), resize(image, 9, 9, "bilinear").float())
