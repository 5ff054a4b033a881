"""One image file -> one tensor of pixels.

Every mode of Pillow becomes 8-bit RGB by one of these rules, or is refused:

    transparent pixels     composited on a color, white by default; an image that is opaque everywhere keeps its colors
    16-bit gray            the high byte, as Pillow itself reads 16-bit color
    32-bit integer, float  refused: the range of their values is not known
    all others             `Image.convert("RGB")`
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor
from torch import Tensor

from replora.datasets.common.files import printable
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.resize import Interpolation, resize
from replora.datasets.samples import ImageForm
from replora.errors import RepLoRAError, nearest

# How an image becomes a square: the middle cut out at the ratio 224 : 256, margins added, or its aspect ratio ignored.
Framing = Literal["crop", "pad", "squash"]

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


@dataclass(frozen=True)
class ImageReader:
    """How an image file becomes an RGB square.

    With a filter of Pillow it is equal, pixel for pixel, to torchvision and timm on a PIL image:

        squash   `Resize((image_size, image_size), interpolation)` of torchvision
        crop     `Resize(short_side(image_size), interpolation)` and `CenterCrop(image_size)` of torchvision
        pad      `ResizeKeepRatio(image_size, longest=1)` and `CenterCropOrPad(image_size, fill)` of timm, its `border`

    Attributes:
        image_size: Height and width of the result, in pixels.
        interpolation: Filter that resizes an image. Those of Pillow round the pixels to uint8; `tf1_bilinear` gives
            float32 in [0, 255].
        framing: `crop` keeps the aspect ratio and loses the borders, `pad` keeps both and adds margins, `squash`
            ignores the aspect ratio.
        upright: Whether to turn photos as their EXIF orientation says; the loaders of the benchmarks do not.
        background: Color behind transparent pixels, a name of CSS or RRGGBB in hexadecimal digits.
        mean: Color of the margins, R, G and B in [0, 1]: the mean that normalization subtracts, so that they become
            about 0.

    Raises:
        RepLoRAError: There is no such color.
    """

    image_size: int = 224
    interpolation: Interpolation = "bicubic"
    framing: Framing = "squash"
    upright: bool = False
    background: str = "white"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        color = str(self.background)  # of `#FFFFFF` on the command line, where # begins a comment, None is left
        if not (re.fullmatch("[0-9a-fA-F]{6}", color) or color.lower() in ImageColor.colormap):
            raise RepLoRAError(
                f"background={self.background!r} is no color: give a name of CSS, or RRGGBB in hexadecimal digits. "
                f"{nearest(color, ImageColor.colormap)}"
            )

    def read(self, source: Path | Image.Image, form: ImageForm = "square") -> Tensor:
        """Read an image of any format that Pillow reads.

        Args:
            source: The file, or an image that Pillow has opened, which is treated in the same way.
            form: `square` for (3, image_size, image_size); `uncropped` for min(H, W) = short_side(image_size), and a
                square unless the framing is `crop`; `original` for the size of the image (see `MAX_RATIO`).

        Returns:
            Pixels (3, H, W), uint8 if `original` or with a filter of Pillow.

        Raises:
            CorruptImageError: The file is absent, empty, truncated, not an image, or of 32-bit integers or floats.
        """
        convert = {"square": self.frame, "uncropped": self._uncropped, "original": _tensor}[form]
        return _read(source, convert, self.upright, self._color)

    def frame(self, image: Image.Image) -> Tensor:
        """An RGB image of any shape -> pixels (3, image_size, image_size)."""
        if self.framing != "crop":
            return self._square(image, self.image_size)
        large, size = self._uncropped(image), self.image_size
        top, left = (round((side - size) / 2) for side in large.shape[1:])
        return large[:, top : top + size, left : left + size].contiguous()

    @property
    def _color(self) -> str:
        return self.background if self.background.lower() in ImageColor.colormap else f"#{self.background}"

    def _uncropped(self, image: Image.Image) -> Tensor:
        short = short_side(self.image_size)
        if self.framing != "crop":
            return self._square(image, short)
        width, height = image.size
        # As torchvision: the longer side is rounded down.
        shape = (short, short * height // width) if width <= height else (short * width // height, short)
        return resize(image, *shape, self.interpolation)

    def _square(self, image: Image.Image, side: int) -> Tensor:
        if self.framing == "squash":
            return resize(image, side, side, self.interpolation)
        longest = max(image.size) / side
        width, height = (max(1, round(length / longest)) for length in image.size)  # as timm
        resized = resize(image, width, height, self.interpolation)
        fill = torch.tensor([round(255 * value) for value in self.mean], dtype=resized.dtype)
        square = fill.view(3, 1, 1).repeat(1, side, side)
        left, top = (side - width) // 2, (side - height) // 2
        square[:, top : top + height, left : left + width] = resized
        return square


def short_side(size: int) -> int:
    """The shorter side of an image from which a crop of `size` pixels is cut: 256 for 224."""
    return round(size * 256 / 224)


def describe_images(data: Mapping[str, Any]) -> str | None:
    """The preprocessing of a run in a line, for its model card; None for data that are not images.

    Args:
        data: Entries of `ImageDataModule.preprocessing`.
    """
    if "interpolation" not in data:
        return None
    size, normalization = data["image_size"], data["normalization"]
    line = (
        f"{size} x {size} pixels, {data['framing']}, filter {data['interpolation']}, mean {normalization['mean']}, "
        f"standard deviation {normalization['std']}"
    )
    if data["interpolation"] != "tf1_bilinear":
        return line
    return (
        f"{line}. This filter is TensorFlow 1's (tf.compat.v1.image.resize). timm and torchvision do not have it: "
        "with their bilinear filter, which timm takes for a merged model, the pixels and the accuracy differ"
    )


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
        path: The file.
        upright: Whether to follow the rotation in EXIF, as in `ImageReader`.

    Raises:
        CorruptImageError: As `ImageReader.read` says.
    """
    return _read(path, lambda image: image, upright, "white")


Converted = TypeVar("Converted")


def _read(
    source: Path | Image.Image, convert: Callable[[Image.Image], Converted], upright: bool, background: str
) -> Converted:
    try:
        with Image.open(source) if isinstance(source, Path) else nullcontext(source) as image:
            if problem := _unknown_range(image):
                raise CorruptImageError(f"The image {_name(source)} cannot be used: {problem}.")
            return convert(to_rgb(_bounded(_decoded(image, upright)), background))
    except (CorruptImageError, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything: struct.error, TypeError, KeyError
        raise CorruptImageError(
            f"The image {_name(source)} cannot be read: {_reason(source, error)}. {_remedy(error)}"
        ) from error


def _name(source: Path | Image.Image) -> str:
    """A file's path; an image in memory by its file, where it has one, else by its mode and size."""
    file = source if isinstance(source, Path) else getattr(source, "filename", None)
    if isinstance(file, str | Path) and str(file):
        return printable(file)
    assert isinstance(source, Image.Image)
    return f"in memory ({source.mode}, {source.width} x {source.height} pixels)"


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


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """An image of any mode as 8-bit RGB, by the rules above; `background` is behind transparent pixels."""
    if image.mode.startswith("I"):  # `I` and the byte orders of `I;16`
        gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema() != (255, 255):
            return Image.alpha_composite(Image.new("RGBA", image.size, background), layered).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies also what is RGB already


def _reason(source: Path | Image.Image, error: BaseException) -> str:
    if isinstance(source, Path) and source.is_file() and source.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).replace(str(source), printable(source)) if isinstance(source, Path) else str(error)
    return text if isinstance(error, (*_WORDED, OSError)) else f"{type(error).__name__}: {text}"


_WORDED = (SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # whose messages are meant for readers


def _remedy(error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return "Give yourself the permission to read it."
    if isinstance(error, Image.DecompressionBombError):
        return "Make it smaller."
    if isinstance(error, IsADirectoryError):
        return "Name the files in it."
    return "Copy or extract this file again from its source."


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)
