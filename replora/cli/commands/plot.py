"""`replora-cli plot`: pictures of a run or of a configuration's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot(source: str, out: Path | None = None, data: dict[str, Any] | None = None, images: int = 24) -> None:
    """Draw a run's learning curves and confusion matrix, or training images of any configuration.

        replora-cli plot runs/NAME
        replora-cli plot vtab.yaml --data.root vtab-1k --data.task dtd

    A run gives curves.png, confusion.png (if `predict` has written predictions.csv) and batch.png; a configuration
    gives batch.png.

    Args:
        source: Directory of a run, or a configuration file, local or from the package.
        out: Directory of the pictures. Default: RUN/plots for a run, the current directory for a configuration.
        data: Options of the data that replace those of the configuration, for example --data.task dtd.
        images: Number of training images to show (1 to 100).
    """
    from replora.config_files import find_config
    from replora.plots.run import draw_batch, draw_confusion, draw_learning_curves
    from replora.results import read_results

    run = Path(source)
    pictures: list[Path] = []
    has_images = True
    if run.is_dir():
        has_images = "image_size" in read_results(run)["data"]
        out = out or run / "plots"
        out.mkdir(parents=True, exist_ok=True)
        pictures.append(draw_learning_curves(run, out / "curves.png"))
        if (run / "predictions.csv").is_file():
            pictures.append(draw_confusion(run, out / "confusion.png"))
        elif has_images:
            print(f"No confusion matrix without predictions. First: replora-cli predict --config {run / 'fit.yaml'}")
        config = run / "fit.yaml"
    else:
        config = find_config(source, "No run, and no configuration")
        out = out or Path()
        out.mkdir(parents=True, exist_ok=True)
    if has_images:
        pictures.append(draw_batch(config, data or {}, images, out / "batch.png"))
    print("\n".join(str(picture) for picture in pictures))
