"""One image file -> one uint8 tensor.

Every mode of Pillow becomes 8-bit RGB by one of these rules, or is refused:

    transparent pixels     composited on white; an image whose alpha is opaque everywhere keeps its colors
    16-bit gray            the high byte, as Pillow itself reads 16-bit color
    32-bit integer, float  refused: the range of their values is not known
    all others             `Image.convert("RGB")`
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from replora.datasets.common.files import printable
from replora.datasets.errors import CorruptImageError

Interpolation = Literal["bilinear", "bicubic"]
# How an image becomes a square: its aspect ratio ignored, or the middle cut out at the ratio 224 : 256.
Framing = Literal["squash", "crop"]

# What Pillow reads of the formats that hold photos and drawings.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jfif", ".jpe", ".mpo", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".apng", ".pnm", ".pbm"),
    *(".dib", ".tga", ".pcx", ".ico", ".icns", ".qoi", ".sgi", ".psd", ".dds"),
)

# An image whose sides differ by more than this factor is first cut to its middle: at full length, an image of
# 60000 x 1 pixels would need 12 GB once its shorter side is 256.
MAX_RATIO = 64

# EXIF orientation -> what makes the image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_image(
    path: Path,
    size: int,
    interpolation: Interpolation = "bicubic",
    framing: Framing = "squash",
    upright: bool = False,
) -> Tensor:
    """Read an image as an RGB square.

    Equal, pixel for pixel, to torchvision on a PIL image: `Resize((size, size), interpolation)` with `squash`;
    `Resize(s, interpolation)` and `CenterCrop(size)` with `crop`, where s is `short_side(size)`.

    Args:
        path: an image file of any format that Pillow reads.
        size: height and width of the result, in pixels.
        interpolation: the resize filter; both filters are antialiased when they make an image smaller.
        framing: `squash` ignores the aspect ratio, `crop` keeps it and loses the borders.
        upright: turn photos as their EXIF orientation says; the loaders of the benchmarks do not.

    Returns:
        uint8 (3, size, size).

    Raises:
        CorruptImageError: the file is absent, empty, truncated, not an image, or of 32-bit integers or floats.
    """
    if framing == "squash":
        return _read(path, lambda image: square_tensor(image, size, interpolation), upright)
    image = read_uncropped(path, size, interpolation, upright)
    top, left = (round((side - size) / 2) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size].contiguous()


def read_uncropped(path: Path, size: int, interpolation: Interpolation = "bicubic", upright: bool = False) -> Tensor:
    """Read an image as RGB, its shorter side resized to `short_side(size)`, for a crop of `size` to be cut out.

    Args:
        path, size, interpolation, upright: as of `read_image`.

    Returns:
        uint8 (3, H, W), min(H, W) = short_side(size).

    Raises:
        CorruptImageError: as `read_image` says.
    """

    def convert(image: Image.Image) -> Tensor:
        short = short_side(size)
        width, height = image.size
        # As torchvision: the longer side is rounded down.
        shape = (short, short * height // width) if width <= height else (short * width // height, short)
        return _tensor(image.resize(shape, _FILTERS[interpolation]))

    return _read(path, convert, upright)


def short_side(size: int) -> int:
    """The shorter side of an image from which a crop of `size` pixels is cut: 256 for 224."""
    return round(size * 256 / 224)


def check_header(path: Path) -> str | None:
    """What is wrong with an image file as far as its first bytes tell, or None. Does not decode it."""
    try:
        with Image.open(path) as image:
            return _unknown_range(image)
    except MemoryError:
        raise
    except Exception as error:
        return _reason(path, error)


def open_rgb(path: Path, upright: bool = False) -> Image.Image:
    """Decode an image file as 8-bit RGB, at its own size (see `MAX_RATIO`).

    Args:
        path, upright: as of `read_image`.

    Raises:
        CorruptImageError: as `read_image` says.
    """
    return _read(path, lambda image: image, upright)


Converted = TypeVar("Converted")


def _read(path: Path, convert: Callable[[Image.Image], Converted], upright: bool) -> Converted:
    try:
        with Image.open(path) as image:
            if problem := _unknown_range(image):
                raise CorruptImageError(f"The image {printable(path)} cannot be used: {problem}.")
            return convert(to_rgb(_bounded(_decoded(image, upright))))
    except (CorruptImageError, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything: struct.error, TypeError, KeyError
        raise CorruptImageError(
            f"The image {printable(path)} cannot be read: {_reason(path, error)}. {_remedy(error)}"
        ) from error


def _unknown_range(image: Image.Image) -> str | None:
    """Why the values of an image cannot become 8 bits, or None."""
    kind = {"I": "32-bit integers", "F": "floating-point numbers"}.get(image.mode)
    if kind is None or (image.mode == "I" and image.format in ("PNG", "PPM")):  # 16 bits, read into 32
        return None
    return f"its pixels are {kind}, whose range is not known; scale them and save it with 8 or 16 bits per channel"


def _decoded(image: Image.Image, upright: bool) -> Image.Image:
    """The image with its pixels loaded, and turned as its EXIF orientation says.

    `ImageOps.exif_transpose` also writes the EXIF data again without the orientation, which fails where any tag has a
    wrong type; here the orientation alone is read, and where that fails the image counts as upright.
    """
    if image.format == "TIFF":  # Pillow turns it while loading, and then writes its tags again
        try:
            image.load()
        except (TypeError, AttributeError, KeyError, struct.error):
            image.load()  # the pixels are there and turned; a failure of their own comes again
        return image
    image.load()  # a PNG file may hold its EXIF data behind the pixels
    if not upright:
        return image
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the parsers of EXIF and XMP raise almost anything
        turn = None
    return image if turn is None else image.transpose(turn)


def _bounded(image: Image.Image) -> Image.Image:
    """The middle of an image whose longer side is more than `MAX_RATIO` times its shorter one; else the image."""
    width, height = image.size
    longest = MAX_RATIO * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = (max(0, side - longest) // 2 for side in (width, height))
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, by the rules above."""
    if image.mode.startswith("I"):  # `I` and the byte orders of `I;16`
        gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema() != (255, 255):
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def _reason(path: Path, error: BaseException) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).replace(str(path), printable(path))
    return text if isinstance(error, (*_WORDED, OSError)) else f"{type(error).__name__}: {text}"


_WORDED = (SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # whose messages are meant for readers


def _remedy(error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return "Give yourself the permission to read it."
    if isinstance(error, Image.DecompressionBombError):
        return "Make it smaller."
    return "Copy or extract this file again from its source."


def square_tensor(image: Image.Image, size: int, interpolation: Interpolation) -> Tensor:
    """A PIL image of any shape -> uint8 (3, size, size)."""
    return _tensor(image.convert("RGB").resize((size, size), _FILTERS[interpolation]))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)
