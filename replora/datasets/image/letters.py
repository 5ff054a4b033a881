"""Capital letters drawn from fonts that Debian ships, as a task in which training and test fonts differ.

DejaVu (`fonts-dejavu-core`; license of Bitstream Vera, changes in the public domain) is trained on, Liberation
(`fonts-liberation`; GPL-2 with an exception for fonts, since version 2 SIL OFL 1.1) is tested on. The images are the
same on every machine with the same versions of the fonts, up to Pillow's drawing.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from replora.datasets.image.pixels import READER, PixelImages, Pixels, PixelSplit, not_found
from replora.datasets.image.read import ImageReader

CLASSES = tuple(string.ascii_uppercase)
TRAIN_FONTS = tuple(
    f"DejaVu{family}{style}.ttf" for family, style in itertools.product(("Sans", "Serif", "SansMono"), ("", "-Bold"))
)
TEST_FONTS = tuple(
    f"Liberation{family}-{style}.ttf"
    for family, style in itertools.product(("Sans", "Serif", "Mono"), ("Regular", "Bold", "Italic", "BoldItalic"))
)
DEBIAN = tuple(Path("/usr/share/fonts/truetype") / name for name in ("dejavu", "liberation", "liberation2"))
SIDE = 32  # pixels
COUNTS = {"train": 800, "val": 200, "test": 1_000}


class Letters(PixelImages):
    """Letters of random font, size, place, turn and gray, with noise: 800 + 200 + 1,000 images, 26 classes.

    Args:
        split: `train`, `val`, `trainval` (with DejaVu's fonts) or `test` (with Liberation's).
        root: Folder with the fonts, which are otherwise searched in Debian's.
        reader: Reader of the images.

    Raises:
        DatasetNotFoundError: A font is not found.
    """

    def __init__(
        self,
        split: PixelSplit,
        root: Path,
        reader: ImageReader = READER,
    ) -> None:
        parts = ["train", "val"] if split == "trainval" else [split]
        fonts = find_fonts(root)
        drawn = [_draw(part, tuple(fonts[name] for name in _fonts_of(part))) for part in parts]
        gray = np.concatenate([pixels for pixels, _ in drawn])
        labels = [label for _, of_part in drawn for label in of_part]
        super().__init__(gray, labels, CLASSES, reader)


def find_fonts(root: Path) -> dict[str, Path]:
    """Name of each font's file -> its path.

    Raises:
        DatasetNotFoundError: One is not found.
    """
    places = (root, root / "fonts", *DEBIAN)
    names = (*TRAIN_FONTS, *TEST_FONTS)
    found = {name: place / name for place in reversed(places) for name in names if (place / name).is_file()}
    missing = [name for name in names if name not in found]
    if missing:
        packages, elsewhere = "fonts-dejavu-core fonts-liberation", "set a folder of these fonts"
        raise not_found("The fonts of the letters were", missing[0], places, packages, elsewhere)
    return found


def fonts_sha256(root: Path) -> str:
    """The hash of all fonts, because another version of one draws other images."""
    digest = hashlib.sha256()
    for _, file in sorted(find_fonts(root).items()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _fonts_of(part: str) -> Sequence[str]:
    return TEST_FONTS if part == "test" else TRAIN_FONTS


@functools.cache
def _draw(part: str, fonts: tuple[Path, ...]) -> tuple[Pixels, list[int]]:
    """The images and labels of `train`, `val` or `test`. Classes are of equal size, up to one image."""
    rng = np.random.default_rng(list(COUNTS).index(part))
    count = COUNTS[part]
    labels = rng.permutation(np.arange(count) % len(CLASSES)).tolist()
    opened = functools.cache(lambda file, size: ImageFont.truetype(str(file), size))
    gray = np.empty((count, SIDE, SIDE), np.uint8)
    for place, label in enumerate(labels):
        font, size = fonts[int(rng.integers(len(fonts)))], int(rng.integers(14, 24))
        across, down = rng.integers(-4, 5, 2).tolist()
        paper, ink = int(rng.integers(0, 80)), int(rng.integers(140, 256))
        image = Image.new("L", (SIDE, SIDE), paper)
        center = (SIDE / 2 + across, SIDE / 2 + down)
        ImageDraw.Draw(image).text(center, CLASSES[label], fill=ink, font=opened(font, size), anchor="mm")
        turned = image.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR, fillcolor=paper)
        noisy = np.asarray(turned, np.float32) + rng.normal(0, 20, (SIDE, SIDE))
        gray[place] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return gray, labels
