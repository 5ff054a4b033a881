"""Images as cameras, scanners and drawing programs write them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from replora.datasets.errors import CorruptImageError
from replora.datasets.image.read import ImageReader, check_header, to_rgb
from tests.fuzz import fuzz

TYPE_CODES = {"byte": 1, "text": 2, "short": 3, "long": 4, "rational": 5, "undefined": 7, "float": 11, "double": 12}


def exif_of(orientation: bytes, *entries: bytes) -> bytes:
    """EXIF data of these entries of 12 bytes."""
    listed = [orientation, *entries]
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(listed)) + b"".join(listed) + bytes(4)


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")[:4]


TURNED = entry(0x0112, 3, 1, b"\0\x06")


def halves(mode: str = "RGB") -> Image.Image:
    """White on top of black."""
    image = Image.new("L", (32, 32), 0)
    image.paste(255, (0, 0, 32, 16))
    return image.convert(mode)


def is_turned(image: torch.Tensor) -> bool:
    """Whether the white half is on the right: a quarter turn clockwise."""
    return bool(image[:, :, -10:].float().mean() > 200 > 50 > image[:, :, :10].float().mean())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", TYPE_CODES.values(), ids=TYPE_CODES)
@pytest.mark.parametrize("tag", [0x011A, 0x0128, 0x0132, 0x010F, 0x8769, 0x8825, 0x9003, 0xA005])
def test_a_wrongly_typed_tag_does_not_keep_a_photo_from_being_turned(tmp_path: Path, tag: int, kind: int) -> None:
    path = tmp_path / "photo.jpg"
    halves().save(path, exif=exif_of(TURNED, entry(tag, kind, 1, b"\0\x07ab")), quality=95)
    assert is_turned(ImageReader(32, framing="crop", upright=True).read(path))
    assert not is_turned(ImageReader(32, framing="crop").read(path))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@fuzz(150)
@given(draw=st.randoms(use_true_random=False))
def test_any_exif_bytes_are_read_or_refused_by_name(tmp_path: Path, suffix: str, draw: random.Random) -> None:
    whole = exif_of(TURNED, entry(0x0132, 2, 4, b"2020"), entry(0x011A, 5, 1, b"\0\0\0\x08"))
    path = tmp_path / f"photo{suffix}"
    data = bytearray(whole)
    for _ in range(draw.randrange(1, 6)):
        data[draw.randrange(6, len(data))] = draw.randrange(256)
    if suffix == ".tif":
        content = io.BytesIO()
        halves().save(content, "TIFF")
        data = bytearray(content.getvalue())
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data) - 200, len(data))] = draw.randrange(256)
        path.write_bytes(data)
    else:
        halves().save(path, exif=bytes(data))
    try:
        assert ImageReader(16, upright=True).read(path).shape == (3, 16, 16)
    except CorruptImageError as error:
        assert "photo" in str(error)  # noqa: PT017


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_orientations_are_those_of_pillow(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(ImageReader(16, upright=True).read(path).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    gray = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    path = tmp_path / f"scan{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 64 64 65535\n" + gray.astype(">u2").tobytes())
    else:
        Image.fromarray(gray).save(path)
    image = ImageReader(64).read(path)
    assert torch.equal(image[0], torch.from_numpy((gray >> 8).astype(np.uint8)))
    assert torch.equal(image[0], image[2])
    assert check_header(path) is None


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_an_unknown_range_is_refused(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "map.tif"
    Image.fromarray(np.ones((8, 8), dtype)).save(path)
    with pytest.raises(CorruptImageError, match=r"map\.tif cannot be used: its pixels are .*; scale them and save it"):
        ImageReader(8).read(path)
    assert "whose range is not known" in str(check_header(path))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P", "L", "RGB", "1"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif", ".tif"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"logo{suffix}"
    if mode in ("P", "L", "RGB", "1"):  # one color is transparent
        if suffix not in (".png", ".gif") or (suffix == ".gif" and mode != "P"):
            pytest.skip("the format has no transparent color")
        black = (0, 0, 0) if mode == "RGB" else 0
        halves(mode).save(path, transparency=black)
    else:
        if suffix == ".gif" and mode != "RGBA":
            pytest.skip("not written by Pillow")
        image = halves("RGBA")
        image.putalpha(halves("L"))
        try:
            image.convert(mode).save(path)
        except (OSError, ValueError):
            pytest.skip("not written by Pillow")
    assert ImageReader(32).read(path).float().mean() > 250


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "RGBa", "RGBX"])
def test_opaque_images_keep_their_colors(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for step in {"RGBa": ("RGBA", "RGBa"), "PA": ("P", "PA")}.get(mode, (mode,)):
        image = image.convert(step)
    assert np.array_equal(np.array(to_rgb(image)), np.array(image.convert("RGB")))


@pytest.mark.parametrize("shape", [(60000, 1), (1, 60000), (1, 20000), (200, 1)])
@pytest.mark.parametrize("framing", ["crop", "squash"])
def test_extreme_shapes_need_little(tmp_path: Path, shape: tuple[int, int], framing: str) -> None:
    path = tmp_path / "strip.png"
    Image.new("RGB", shape, "red").save(path)
    image = ImageReader(224, framing=framing).read(path)  # type: ignore[arg-type]
    assert image.shape == (3, 224, 224)
    assert torch.equal(image[:, 0, 0], torch.tensor([255, 0, 0], dtype=torch.uint8))
    assert ImageReader(224, framing="crop").read(path, "uncropped").nbytes < 2**26


def test_a_decompression_bomb_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(CorruptImageError, match=r"bomb\.png cannot be read: .* Make it smaller\."):
        ImageReader(8).read(path)
