"""How an image becomes a square: the framings are those of torchvision and timm, and no color is forgotten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from replora.datasets.image.read import ImageReader
from replora.errors import RepLoRAError

SHAPES = [(61, 47), (47, 61), (50, 50), (9, 31), (300, 7), (224, 224)]
MEAN = (0.485, 0.456, 0.406)


def picture(path: Path, shape: tuple[int, int], mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape) > 7])  # timm rounds to a height of 0
@pytest.mark.parametrize("size", [21, 32, 224])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pad_is_the_border_of_timm(tmp_path: Path, shape: tuple[int, int], size: int, interpolation: str) -> None:
    path = picture(tmp_path / "image.png", shape)
    options = {"crop_mode": "border", "crop_pct": 1.0, "interpolation": interpolation, "mean": MEAN, "std": (1, 1, 1)}
    expected = create_transform(size, **options, normalize=False)(Image.open(path))
    reader = ImageReader(size, interpolation, "pad", mean=MEAN)  # type: ignore[arg-type]
    assert torch.equal(reader.read(path), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("framing", ["crop", "pad", "squash"])
def test_every_framing_gives_squares_and_room_for_a_random_crop(
    tmp_path: Path, shape: tuple[int, int], framing: str
) -> None:
    path = picture(tmp_path / "image.png", shape)
    reader = ImageReader(28, framing=framing)  # type: ignore[arg-type]
    assert reader.read(path).shape == (3, 28, 28)
    larger = reader.read(path, "uncropped")
    assert min(larger.shape[1:]) == 32
    assert framing == "crop" or larger.shape == (3, 32, 32)


def test_pad_loses_nothing_and_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    image = np.zeros((20, 60, 3), dtype=np.uint8)
    image[:, :3], image[:, -3:] = 255, 255  # what a crop would lose
    Image.fromarray(image).save(tmp_path / "wide.png")
    found = ImageReader(60, framing="pad", mean=(0.5, 0.5, 0.5)).read(tmp_path / "wide.png")
    assert (found[:, :20] == 128).all()
    assert (found[:, 40:] == 128).all()
    assert np.array_equal(found[:, 20:40].permute(1, 2, 0).numpy(), image)
    assert ImageReader(60, framing="crop").read(tmp_path / "wide.png").max() < 30


@pytest.mark.parametrize("framing", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("background", "color"), [("white", 255), ("black", 0), ("808080", 128), ("DarkGray", 169)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_get_the_background(
    tmp_path: Path, mode: str, background: str, color: int, framing: str
) -> None:
    image = Image.new("RGBA", (30, 30), (200, 0, 0, 0))
    path = tmp_path / "clear.png"
    image.convert("P" if mode == "P" else mode).save(path)
    found = ImageReader(16, framing=framing, background=background).read(path)  # type: ignore[arg-type]
    assert found.unique().tolist() == [color]


@pytest.mark.parametrize("background", ["whit", "", "12", "255,255,255", "ffffff80", "None"])
def test_an_unknown_color_is_refused(background: str) -> None:
    with pytest.raises(RepLoRAError, match=r"background=.* is no color: give a name of CSS, or RRGGBB in hex"):
        ImageReader(background=background)
