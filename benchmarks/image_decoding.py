"""Where does the time of the first epoch go, in which every image is decoded, and would another decoder be faster?

    python benchmarks/image_decoding.py

JPEG files of 500 x 375 pixels are decoded and resized to 224 x 224 in one thread, step by step with Pillow, by the
dataset of the datamodule, by that of a plain loader (which normalizes as well), and with torchvision's decoder and
filter. The last column is the share of color values that differ from Pillow's, and by how many levels of 256 at most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from loading import CLASSES, plain_loader, write_images
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize_image

from datamodules import VTABDataModule
from replora.datasets.image.resize import resize

SIZE = 224
PILLOW = "Pillow, decoded and resized"
TORCHVISION = "torchvision, decoded and resized"


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--images", type=int, default=200, help="images of a round")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.rounds = 20, 1
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images)
        results = compare(Path(folder), options)
    measure.show(
        f"{options.images} images in one thread",
        ["way", "ms per image", "x Pillow (quartiles)", "values that differ"],
        [
            [name, f"{1000 * found['seconds']:.2f}", measure.ratio_text(found), measure.differing_text(found)]
            for name, found in results.items()
        ],
    )
    print(measure.write(options.out, "image_decoding", measure.settings(options), results))


def compare(root: Path, options: Any) -> dict[str, Any]:
    """Measure seconds per image of each way, and how many color values differ from Pillow's."""
    module = VTABDataModule(root=root.parent, task=root.name, num_classes=CLASSES, cache_bytes=0)
    module.setup("fit")
    own: Any = module.train_dataloader().dataset
    plain: Any = plain_loader(root, 1, 0).dataset  # type: ignore[attr-defined]
    files = [Path(file) for file, _ in plain.samples]
    ways: dict[str, Callable[[int], Any]] = {
        "Pillow, decoded": lambda position: Image.open(files[position]).convert("RGB"),
        PILLOW: lambda position: by_pillow(files[position]),
        "the datamodule": lambda position: own[position]["image"],
        "a plain loader, normalized": lambda position: plain[position][0],
        "torchvision, decoded": lambda position: decoded(files[position]),
        TORCHVISION: lambda position: by_torchvision(files[position]),
    }

    def all_images(way: Callable[[int], Any]) -> None:
        for position in range(len(files)):
            way(position)

    seconds = measure.interleaved({name: partial(all_images, way) for name, way in ways.items()}, options.rounds)
    per_image = {name: [one / len(files) for one in times] for name, times in seconds.items()}
    results = measure.summarize(per_image, PILLOW)
    away = torch.stack([by_torchvision(file).int() - by_pillow(file).int() for file in files]).abs()
    results[TORCHVISION] |= {"differing": (away > 0).float().mean().item(), "levels": int(away.max())}
    return results


def by_pillow(file: Path) -> Tensor:
    return resize(Image.open(file).convert("RGB"), SIZE, SIZE, "bicubic")


def decoded(file: Path) -> Tensor:
    pixels: Tensor = decode_jpeg(read_file(str(file)), mode=ImageReadMode.RGB)
    return pixels


def by_torchvision(file: Path) -> Tensor:
    pixels: Tensor = resize_image(decoded(file), [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
    return pixels


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
