from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from replora.datasets.errors import CorruptImageError
from replora.datasets.image.read import ImageReader


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.jpg", quality=75)
    return tmp_path / "picture.jpg"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 40, 64])
def test_equals_torchvision(picture: Path, interpolation: str, size: int) -> None:
    with Image.open(picture) as image:
        resized = functional.resize(image.convert("RGB"), [size, size], InterpolationMode(interpolation))
    expected = functional.pil_to_tensor(resized)
    found = ImageReader(size, interpolation).read(picture)  # type: ignore[arg-type]
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tiff"
    Image.new(mode, (5, 7)).save(path)
    assert ImageReader(8).read(path).shape == (3, 8, 8)


@pytest.mark.parametrize("keep", [0.99, 0.2])
def test_truncated_file_is_named(picture: Path, keep: float) -> None:
    data = picture.read_bytes()
    picture.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptImageError, match=r"picture\.jpg cannot be read: .*[Tt]runcated.* Copy or"):
        ImageReader(8).read(picture)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", r"the file is empty \(0 bytes\)"), (b"<html>", "cannot identify")]
)
def test_file_without_an_image_is_named(picture: Path, content: bytes, message: str) -> None:
    picture.write_bytes(content)
    with pytest.raises(CorruptImageError, match=rf"picture\.jpg cannot be read: .*{message}"):
        ImageReader(8).read(picture)


def test_broken_png_and_absent_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (30, 30)).save(path)
    data = bytearray(path.read_bytes())
    data[45:60] = b"x" * 15
    path.write_bytes(data)
    with pytest.raises(CorruptImageError, match=r"image\.png cannot be read"):
        ImageReader(8).read(path)
    with pytest.raises(CorruptImageError, match="No such file"):
        ImageReader(8).read(tmp_path / "absent.png")
