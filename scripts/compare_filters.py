"""How much it matters that the clean track resizes as TensorFlow 1 does, and not as Pillow does.

    python scripts/compare_filters.py --out results/filters

Pixels: the mean difference between filters in gray levels, on scikit-learn's digits and two photos, on drawn sprites,
and on the PNG or JPEG files in a folder (--images). Accuracy: vit_nano with RepLoRA on digits, which are enlarged, and
on the location of sprites, which shrink, for each filter and seed, tested with both filters. `pixels.json` and
`accuracy.json` go to --out. It takes about ten minutes on one CPU core; runs that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from replora.cli.main import main as replora_cli
from replora.datasets.image.read import open_rgb
from replora.datasets.image.resize import Interpolation, resize
from replora.datasets.image.sprites import Sprites
from replora.io import replace_text
from replora.results import environment_info, read_results

FILTERS: tuple[Interpolation, ...] = ("bilinear", "tf1_bilinear")
TASKS = {
    "digits, 8 to 32 pixels": ["--config=quickstart.yaml"],
    "sprites_location, 64 to 32 pixels": ["--config=small_images.yaml", "--data.task=sprites_location"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/filters"), help="output folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/filters"), help="folder of the runs")
    parser.add_argument("--images", type=Path, help="folder of images to compare the filters on as well")
    parser.add_argument("--count", type=int, default=200, help="images of each kind to compare")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="random seeds of the runs")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of a run")
    options = parser.parse_args(arguments)
    pixels = [differences(name, images, size) for name, images, size in pictures(options.images, options.count)]
    write(options.out / "pixels.json", pixels)
    rows = []
    for task, arguments_of_task in TASKS.items():
        for used in FILTERS:
            tested: dict[str, list[float]] = {name: [] for name in FILTERS}
            for seed in options.seeds:
                run = options.runs / f"{task.partition(',')[0]}-{used}-{seed}"
                found = fit(run, arguments_of_task, used, seed, options.epochs)
                for name, accuracy in found.items():
                    tested[name].append(accuracy)
            means = {name: round(statistics.fmean(values), 4) for name, values in tested.items() if values}
            rows.append({"task": task, "trained with": used, "mean test accuracy with": means, "by seed": tested})
            write(options.out / "accuracy.json", rows, seeds=options.seeds, epochs=options.epochs)


def pictures(folder: Path | None, count: int) -> list[tuple[str, list[Image.Image], int]]:
    """Name, images, and the side that they are resized to."""
    digits = [Image.fromarray((image * 255 / 16).astype(np.uint8)).convert("RGB") for image in load_digits().images]
    sprites = [Image.fromarray(image).convert("RGB") for image in Sprites("test", "location").pixels[:count]]
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    found = [
        ("digits, 8 x 8", digits[:count], 32),
        ("digits, 8 x 8", digits[:count], 224),
        ("sprites, 64 x 64", sprites, 32),
        ("sprites, 64 x 64", sprites, 224),
        ("photos of scikit-learn, 427 x 640", photos, 224),
    ]
    if folder is not None:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
        images = [open_rgb(file) for file in files[:count]]
        found.append(
            (
                f"{len(images)} images of {folder.parent.parent.name}, {images[0].height} x {images[0].width}",
                images,
                224,
            )
        )
    return found


def differences(name: str, images: list[Image.Image], size: int) -> dict[str, Any]:
    """The mean absolute differences between filters, in gray levels of 255."""
    row: dict[str, Any] = {"images": name, "count": len(images), "to": size}
    for one, other in (("bilinear", "tf1_bilinear"), ("bicubic", "tf1_bilinear"), ("bilinear", "bicubic")):
        each = [
            float((resize(image, size, size, one).float() - resize(image, size, size, other).float()).abs().mean())  # type: ignore[arg-type]
            for image in images
        ]
        row[f"{one} and {other}"] = round(statistics.fmean(each), 2)
    return row


def fit(run: Path, of_task: list[str], used: str, seed: int, epochs: int) -> dict[str, float]:
    """Train on the 1,000 images of `final`, unless it has been done; return filter -> test accuracy."""
    if not (run / "results.json").is_file():
        options = [f"--data.interpolation={used}", f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"]
        quiet = ["--data.protocol=final", "--trainer.enable_progress_bar=false"]
        replora_cli(["fit", *of_task, *options, *quiet, f"--run_dir={run}"])
    for name in FILTERS:
        if name not in (found := accuracies(run)):
            replora_cli(["test", f"--config={run / 'fit.yaml'}", f"--data.interpolation={name}"])
    found = accuracies(run)
    return {name: found[name] for name in FILTERS}


def accuracies(run: Path) -> dict[str, float]:
    """Filter of a test -> accuracy."""
    evaluations = read_results(run)["evaluations"]
    return {e["data"]["interpolation"]: e["metrics"]["test/accuracy"] for e in evaluations}


def write(file: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {**options, "rows": rows, "environment": environment_info()}
    replace_text(file, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
