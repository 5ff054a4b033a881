"""Photos of six kinds of thing, drawn: each with another place, size, turn, light and background."""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SHAPES: dict[str, list[tuple[float, float]]] = {
    "arrow": [(-1, -0.3), (0.2, -0.3), (0.2, -0.8), (1, 0), (0.2, 0.8), (0.2, 0.3), (-1, 0.3)],
    "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3),
              (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    "kite": [(0, -1), (0.6, -0.2), (0, 1), (-0.6, -0.2)],
    "ring": [(math.cos(a / 16 * math.pi), math.sin(a / 16 * math.pi)) for a in range(32)],
    "star": [(r * math.sin(a * math.pi / 5), -r * math.cos(a * math.pi / 5)) for a, r in enumerate([1, 0.4] * 5)],
    "step": [(-1, 1), (-1, 0.4), (-0.35, 0.4), (-0.35, -0.2), (0.3, -0.2), (0.3, -0.8), (1, -0.8), (1, 1)],
}  # fmt: skip


def write_photos(root: Path, counts: dict[str, int], seed: int = 0, folders: bool = True) -> Path:
    """Write JPEG files, `root/<class>/<number>.jpg` or `root/<class>-<number>.jpg`.

    Args:
        root: The folder.
        counts: Number of photos of each class.
        seed: Seed of the drawing.
        folders: Whether each class has a folder.
    """
    rng = random.Random(seed)
    for name, count in counts.items():
        for number in range(count):
            file = root / name / f"{number:03}.jpg" if folders else root / f"{name}-{number:03}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo(name, rng).save(file, quality=88)
    return root


def photo(name: str, rng: random.Random) -> Image.Image:
    """A thing of one class, 160 x 120 or upright."""
    size = (160, 120) if rng.random() < 0.7 else (120, 160)
    light, dark = ([rng.randint(150, 255) for _ in range(3)], [rng.randint(0, 90) for _ in range(3)])
    back, front = (light, dark) if rng.random() < 0.5 else (dark, light)
    image = Image.new("RGB", size, tuple(back))
    draw = ImageDraw.Draw(image)
    for _ in range(25):  # clutter
        x, y, r = rng.randint(0, size[0]), rng.randint(0, size[1]), rng.randint(3, 22)
        shade = tuple(max(0, min(255, channel + rng.randint(-25, 25))) for channel in back)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=shade)
    radius, turn = rng.uniform(26, 44), rng.uniform(-0.5, 0.5)
    middle = [side / 2 + rng.uniform(-14, 14) for side in size]
    corners = [
        (
            middle[0] + radius * (x * math.cos(turn) - y * math.sin(turn)),
            middle[1] + radius * (x * math.sin(turn) + y * math.cos(turn)),
        )
        for x, y in SHAPES[name]
    ]
    draw.polygon(corners, fill=tuple(front))
    if name == "ring":
        inner = [(middle[0] + (x - middle[0]) * 0.55, middle[1] + (y - middle[1]) * 0.55) for x, y in corners]
        draw.polygon(inner, fill=tuple(back))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.4)))


def write_tutorial_photos(home: Path) -> None:
    """The folders `photos` and `new_photos` of docs/own_photos.md, in `home`."""
    write_photos(home / "photos", dict(zip(SHAPES, (40, 36, 33, 30, 26, 22), strict=True)))
    write_photos(home / "new_photos", dict.fromkeys(SHAPES, 2), seed=1, folders=False)


if __name__ == "__main__":
    write_tutorial_photos(Path())
