"""How many images per second does the datamodule deliver, compared with a DataLoader on torchvision's ImageFolder?

    python benchmarks/loading.py

1,000 JPEG files of 500 x 375 pixels, as many as a VTAB-1K task has for training, are written to a temporary folder, and
complete epochs of normalized batches are drawn. The first epoch of the datamodule includes decoding all images into
memory, and the 200 of the test set beside them, so that a damaged one does not end the run after the training. They are
counted in the row that names them alone; the plain loader decodes in every epoch, and no test images. On a GPU the
datamodule's batches are normalized there, so the training process waits only for the batches before normalization.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import VTABDataModule
from replora.memory import usable_cpus

CLASSES = 10


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, usable_cpus()], help="worker counts of the plain loader"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.batch, options.rounds, options.workers = 40, 8, 2, [0]
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images)
        results = compare(Path(folder), options)
    measure.show(
        f"{options.images} images in batches of {options.batch}, normalized",
        ["loader", "images/s", "x plain loader (quartiles)"],
        [[name, f"{found['images_per_second']:,.0f}", measure.ratio_text(found)] for name, found in results.items()],
    )
    print(measure.write(options.out, "loading", measure.settings(options), results))


def compare(root: Path, options: Any) -> dict[str, Any]:
    """Measure images per second of each loader. The ratios compare speeds, so above 1 is faster."""
    speeds: dict[str, list[float]] = {}
    plain = {
        f"ImageFolder, {workers} workers": plain_loader(root, options.batch, workers) for workers in options.workers
    }
    decoded = options.images + held_back(options.images)  # with those of the test set
    for _ in range(options.rounds):
        module = VTABDataModule(root=root.parent, task=root.name, num_classes=CLASSES, batch_size=options.batch)
        started = time.perf_counter()
        module.setup("fit")
        consume(epoch_of(module))
        seconds = time.perf_counter() - started
        speeds.setdefault("datamodule, first epoch", []).append(options.images / seconds)
        speeds.setdefault("datamodule, first epoch, with the test images", []).append(decoded / seconds)
        later = {
            "datamodule, later epochs": epoch_of(module),
            "datamodule, later epochs, before normalisation": (batch["image"] for batch in module.train_dataloader()),
        }
        for name, batches in {**plain, **later}.items():
            started = time.perf_counter()
            count = consume(batches)
            speeds.setdefault(name, []).append(count / (time.perf_counter() - started))
    results = measure.summarize(speeds, list(plain)[-1])
    return {
        name: {"images_per_second": found.pop("seconds"), "speed_quartiles": found.pop("seconds_quartiles"), **found}
        for name, found in results.items()
    }


def epoch_of(module: VTABDataModule) -> Iterator[Tensor]:
    """Yield batches as the model gets them: normalized on the device, which is the CPU here."""
    for batch in module.train_dataloader():
        yield module.on_after_batch_transfer(batch, 0)["image"]


def plain_loader(root: Path, batch: int, workers: int) -> Iterable[Any]:
    """Build the loader that most training scripts use."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    change = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    folder = ImageFolder(str(root / "images"), change)
    return DataLoader(folder, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True)


def consume(batches: Iterable[Any]) -> int:
    """Draw all batches and return the number of images."""
    return sum(len(batch if isinstance(batch, Tensor) else batch[0]) for batch in batches)


def held_back(count: int) -> int:
    """Number of validation images among `count`, and of test images beside them."""
    return count // 5


def write_images(root: Path, count: int) -> None:
    """Write JPEG files of smooth noise, one folder per class, and the lists of the VTAB-1K layout."""
    random = np.random.default_rng(0)

    def write(folder: str, how_many: int) -> list[str]:
        lines = []
        for number in range(how_many):
            label = number % CLASSES
            file = root / folder / f"class{label}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
            lines.append(f"{file.relative_to(root)} {label}\n")
        return lines

    lines = write("images", count)
    part = held_back(count)
    lists = {
        "train800": lines[part:],
        "val200": lines[:part],
        "train800val200": lines,
        "test": write("test_images", part),
    }
    for name, listed in lists.items():
        (root / f"{name}.txt").write_text("".join(listed), encoding="utf-8")


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
