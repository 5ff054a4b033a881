"""`replora-cli plot`: pictures of a run or of a configuration's data."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from replora.io import check_output, made_by, replacing


def plot(
    source: str,
    out: Path | None = None,
    data: dict[str, Any] | None = None,
    images: int = 24,
    overwrite: bool = False,
    import_module: str | None = None,
) -> None:
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
        overwrite: Whether to replace pictures of these names that this command did not draw.
        import_module: Python module that defines the run's datamodule, if it is your own.
    """
    from replora.config_files import find_config
    from replora.plots.run import MAKER, draw_batch, draw_confusion, draw_learning_curves
    from replora.results import read_results

    if import_module is not None:
        from replora import runs  # imports torch and Lightning

        runs.import_module(import_module)
    run = Path(source) if Path(source).is_dir() else None
    config = find_config(source, "No run, and no configuration") if run is None else run / "fit.yaml"
    has_images = run is None or "image_size" in read_results(run)["data"]
    out = out or (Path() if run is None else run / "plots")
    with tempfile.TemporaryDirectory() as folder:  # all pictures or none
        pictures: list[Path] = []
        if run is not None:
            pictures.append(draw_learning_curves(run, Path(folder) / "curves.png"))
            if (run / "predictions.csv").is_file():
                pictures.append(draw_confusion(run, Path(folder) / "confusion.png"))
            elif has_images:
                print(f"No confusion matrix without predictions. First: replora-cli predict --config {config}")
        if has_images:
            pictures.append(draw_batch(config, data or {}, images, Path(folder) / "batch.png", run is not None))
        for picture in pictures:
            check_output(out / picture.name, overwrite, is_own=made_by(MAKER))
        for picture in pictures:
            with replacing(out / picture.name) as temporary:
                shutil.copyfile(picture, temporary)
            print(out / picture.name)
