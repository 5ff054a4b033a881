"""The verbs of `replora-cli` that need no Trainer configuration: plain functions, their arguments are the options."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from pathlib import Path
from typing import Any

# The quickstart's methods (files of configs/adapter) and training sets, with the options of each.
QUICKSTART_METHODS = ("linear_probe", "lora", "replora")
QUICKSTART_DATA = {
    "few": ["--data.shots=5", "--trainer.max_epochs=40", "--trainer.check_val_every_n_epoch=4"],
    "all": [],
}


def configs() -> None:
    """List the configurations that ship with the package, one line each."""
    from replora.cli import packaged_configs

    files = packaged_configs()
    width = max(map(len, files))
    for name, file in files.items():
        print(f"{name:<{width}}  {file.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


def plot(source: str, output: Path | None = None, data: dict[str, Any] | None = None, images: int = 24) -> None:
    """Draw a run's learning curves and confusion matrix, or training images of any configuration.

        replora-cli plot runs/NAME
        replora-cli plot vtab.yaml --data.root vtab-1k --data.task dtd

    A run gives curves.png, confusion.png (where `predict` has written its predictions.csv) and batch.png; a
    configuration gives batch.png.

    Args:
        source: A run's directory, or a configuration file of one's own or from the package.
        output: Directory of the pictures. Default: RUN/plots, and the current directory for a configuration.
        data: Options of the data that replace those of the configuration, for example --data.task dtd.
        images: How many training images to show, from 1 to 100.
    """
    from replora.cli import find_config
    from replora.reports.pictures import draw_batch, draw_confusion, draw_learning_curves

    run = Path(source)
    pictures: list[Path] = []
    if run.is_dir():
        output = output or run / "plots"
        output.mkdir(parents=True, exist_ok=True)
        pictures.append(draw_learning_curves(run, output / "curves.png"))
        if (run / "predictions.csv").is_file():
            pictures.append(draw_confusion(run, output / "confusion.png"))
        else:
            print(f"No confusion matrix without predictions. First: replora-cli predict --config {run / 'fit.yaml'}")
        config = run / "fit.yaml"
    else:
        output = output or Path()
        output.mkdir(parents=True, exist_ok=True)
        config = find_config(source)
    pictures.append(draw_batch(config, data or {}, images, output / "batch.png"))
    print("\n".join(str(picture) for picture in pictures))


def quickstart(run_dir: Path | None = None, seed: int = 0) -> None:
    """Compare linear probe, LoRA and RepLoRA on digits, offline, in about two minutes.

    Six runs on two CPU cores: three methods, each with 5 images a class and with all 800. Ends with a table and a
    picture of the learning curves and some predictions.

    Args:
        run_dir: Directory for the six runs and the picture. Default: runs/<time>-quickstart.
        seed: Of the heads, the adapters and the training, at least 0.
    """
    import lightning.pytorch  # noqa: F401  (it sets the level of its loggers when it is imported)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from replora.cli import main
    from replora.reports.quickstart import draw, row, table, title

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    home = run_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-quickstart"
    started = time.monotonic()
    runs: list[Path] = []
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(QUICKSTART_METHODS) * len(QUICKSTART_DATA))
        for data, options in QUICKSTART_DATA.items():
            for method in QUICKSTART_METHODS:
                progress.update(bar, description=title(method, data))
                runs.append(home / f"{data}-{method}")
                main(
                    [
                        "fit",
                        "--config=quickstart.yaml",
                        f"--config=adapter/{method}.yaml",
                        *options,
                        f"--seed_everything={seed}",
                        f"--run_dir={runs[-1]}",
                        "--trainer.enable_progress_bar=false",
                    ]
                )
                progress.advance(bar)
        progress.update(bar, description="predictions")
        main(["predict", f"--config={runs[-1] / 'fit.yaml'}", "--trainer.enable_progress_bar=false"])
    picture = home / "quickstart.png"
    draw(runs, picture)
    table([row(run) for run in runs])
    print(f"{time.monotonic() - started:.0f} seconds. Learning curves and predictions: {picture}")
    print(f"Everything about a run, for example: {runs[-1] / 'results.json'}")
