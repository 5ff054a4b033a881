"""One image file -> one uint8 tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from replora.datasets.errors import CorruptImageError

Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_image(path: Path, size: int, interpolation: Interpolation = "bicubic") -> Tensor:
    """Read an image as RGB and squash it to a square, its aspect ratio ignored.

    Equal, pixel for pixel, to torchvision's `Resize((size, size), interpolation)` on a PIL image.

    Args:
        path: an image file of any format that Pillow reads.
        size: height and width of the result, in pixels.
        interpolation: the resize filter; both filters are antialiased when they make an image smaller.

    Returns:
        uint8 (3, size, size).

    Raises:
        CorruptImageError: the file is absent, empty, truncated, or not an image.
    """
    try:
        with Image.open(path) as image:
            return square_tensor(image, size, interpolation)
    # Pillow's decoders raise all of these on damaged files (SyntaxError: broken PNG chunks).
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "the file is empty (0 bytes)" if path.is_file() and path.stat().st_size == 0 else str(error)
        raise CorruptImageError(
            f"The image {path} cannot be read: {reason}. Copy or extract this file again from its source."
        ) from error


def square_tensor(image: Image.Image, size: int, interpolation: Interpolation) -> Tensor:
    """A PIL image of any mode and shape -> uint8 (3, size, size)."""
    squashed = image.convert("RGB").resize((size, size), _FILTERS[interpolation])
    return torch.from_numpy(np.array(squashed)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)
