"""Pictures of a run: training images with their labels, learning curves, and a confusion matrix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from replora.config_files import read_config
from replora.errors import RepLoRAError
from replora.io import Entries, UnreadableFileError, check_types, read_csv, save_picture
from replora.reports.render.fonts import drawable, pyplot
from replora.results import PREDICTIONS, read_results, status_of

# Okabe and Ito's colors, which are distinct for all kinds of color vision; markers and line styles differ too.
SPLITS: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072B2", "marker": "o", "linestyle": "--"},
    "val": {"color": "#D55E00", "marker": "^", "linestyle": "-"},
}
SPLIT_NAMES = {"train": "training", "val": "validation"}
MEASURES = {"loss": "loss", "accuracy": "accuracy (share of images)", "learning_rate": "learning rate"}
NUMBERED = 20  # largest number of classes with a number in each cell of a confusion matrix
NAMED = 60  # largest number of classes with a name at each row
MOST_CONFUSED = 12
NAME_LENGTH = 22
CLASSES = 10_000  # largest number of classes of a confusion matrix


MAKER = "replora-cli plot"


class PictureError(RepLoRAError):
    """There is nothing to draw."""


def draw_batch(config: Path, options: dict[str, Any], count: int, file: Path, of_run: bool = False) -> Path:
    """Draw the first training images of an epoch as the model gets them, with their classes. A video has three frames.

    Args:
        config: A configuration with a `data` section.
        options: Data options that replace those of the configuration.
        count: Number of images, from 1 to 100.
        file: The PNG file to write.
        of_run: Whether the configuration is that of a run, which may be a stranger's: it cannot make code run that is
            not imported already.

    Returns:
        `file`.

    Raises:
        RepLoRAError: `count` is out of range, the configuration has no data, or an option or the data are not valid.
    """
    if not 1 <= count <= 100:
        raise PictureError(f"images: {count} is out of range. A picture shows 1 to 100 images.")
    options = options | {"batch_size": count, "num_workers": 0, "drop_last": False}
    datamodule = datamodule_of(config, options, of_run)
    if not hasattr(datamodule, "image_size"):
        raise PictureError(f"{config} has texts, not images: there is no picture of a batch.")
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    names = [datamodule.class_names[label] for label in batch["label"].tolist()]
    images = batch["image"] if "image" in batch else _strips(batch["video"])
    pixels = images.permute(0, 2, 3, 1).numpy()  # (N, H, W, 3) uint8
    described = datamodule.describe()
    task = described.get("task", described["dataset"])
    plt = pyplot([task, *names])
    columns = min(len(names), max(4, round((1.5 * len(names)) ** 0.5)))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.5 * columns, 1.75 * rows + 0.6), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, name in zip(axes.flat, pixels, names, strict=False):
        axis.imshow(image)
        axis.set_title(_short(drawable(name)), fontsize=9)
    size = described["image_size"]
    figure.suptitle(
        f"{drawable(task)}: {len(names)} training images, {size} x {size} pixels, {described['num_classes']} classes",
        fontsize=10,
        wrap=True,
    )
    return _save(figure, file)


def _strips(video: Tensor) -> Tensor:
    """First, middle and last frame of each clip side by side: uint8 (N, 1, 3, T, H, W) -> (N, 3, H, 3 W)."""
    clips = video[:, 0]
    frames = clips.shape[2]
    return torch.cat([clips[:, :, t] for t in (0, frames // 2, frames - 1)], dim=-1)


def draw_learning_curves(run: Path, file: Path) -> Path:
    """Draw loss, accuracy and learning rate of a run by epoch, also across interruptions.

    Raises:
        PictureError: The run has no CSV log of a fit.
    """
    curves = _curves(run)
    shown = [measure for measure in MEASURES if any(name.endswith(f"/{measure}") for name in curves)]
    if not shown:
        if logs := sorted(run.glob("logs/fit*/metrics.csv")):
            raise PictureError(f"{logs[0]} is no log of a fit, or has no finished epoch: there are no curves to draw.")
        raise PictureError(
            f"{run} has no learning curves: there is no logs/fit*/metrics.csv with a finished epoch. Fit without "
            "--trainer.logger false, for at least one epoch."
        )
    title = _title(run)
    plt = pyplot([title])
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.6), layout="constrained", squeeze=False)
    for axis, measure in zip(axes[0], shown, strict=True):
        for split, style in SPLITS.items():
            points = curves.get(f"{split}/{measure}", {})
            if points:
                marked = {**style, "marker": style["marker"] if len(points) <= 30 else ""}
                label = SPLIT_NAMES[split] if measure != "learning_rate" else None
                axis.plot(list(points), list(points.values()), label=label, markersize=5, **marked)
        axis.set_xlabel("epoch")
        axis.set_ylabel(MEASURES[measure])
        axis.set_ylim(0, 1.02 if measure == "accuracy" else 1.05 * axis.get_ylim()[1])
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if measure != "learning_rate":
            axis.legend()
    figure.suptitle(drawable(title), fontsize=10)
    return _save(figure, file)


def draw_confusion(run: Path, file: Path, predictions: str = PREDICTIONS) -> Path:
    """Draw the confusion matrix of a run from its predictions, those of `predict` or of `test_predictions.csv`.

    Raises:
        PictureError: There are no predictions of labeled images.
    """
    counts, names, status = _confusion(run, predictions)
    classes, total = len(counts), int(counts.sum())
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # of the images of the true class
    title = _title(run, status)
    plt = pyplot([title, *names])
    names = [_short(drawable(name)) for name in names]
    from matplotlib.colors import PowerNorm

    side = min(12.0, max(4.0, 0.5 * classes if classes <= NUMBERED else 0.2 * classes))
    margin = 0.09 * max(map(len, names)) if classes <= NAMED else 0.5
    with_list = classes > NUMBERED
    figure, axes = plt.subplots(
        1,
        2 if with_list else 1,
        figsize=(side + margin + 1.5 + 4.5 * with_list, side + margin + (1.6 if with_list else 0.8)),
        width_ratios=[side, 4.0] if with_list else None,
        layout="constrained",
        squeeze=False,
    )
    axis = axes[0][0]
    scale = PowerNorm(0.5 if with_list else 1, vmin=0, vmax=1)  # makes single mistakes visible in small cells
    shown = axis.imshow(share, cmap="cividis", norm=scale, interpolation="nearest")
    figure.colorbar(shown, ax=axis, label="share of the true class's images", fraction=0.046, pad=0.02)
    if classes <= NAMED:
        size = 9 if classes <= NUMBERED else 7
        axis.set_xticks(range(classes), names, rotation=90, fontsize=size)
        axis.set_yticks(range(classes), names, fontsize=size)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
    else:
        axis.set_xlabel("number of the predicted class")
        axis.set_ylabel("number of the true class")
    if classes <= NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "black" if share[row, column] > 0.55 else "white"
            axis.text(column, row, int(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    if with_list:
        axes[0][1].axis("off")
        axes[0][1].text(0, 1, _most_confused(counts, names), va="top", fontsize=9, linespacing=1.5)
    accuracy = counts.trace() / total
    figure.suptitle(f"{drawable(title)}\n{total:,} images, {accuracy:.1%} right", fontsize=10)
    return _save(figure, file)


def _most_confused(counts: np.ndarray, names: list[str]) -> str:
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:MOST_CONFUSED]
    pairs = [(int(flat) // len(counts), int(flat) % len(counts)) for flat in order if wrong.flat[flat] > 0]
    if not pairs:
        return "No mistakes."
    lines = [
        f"{int(wrong[a, b]):>4} of {int(counts[a].sum())}   {names[a]} ({a})  →  {names[b]} ({b})" for a, b in pairs
    ]
    return "Most frequent mistakes:\nimages   true (number) → predicted\n" + "\n".join(lines)


def _confusion(run: Path, predictions: str = PREDICTIONS) -> tuple[np.ndarray, list[str], str | None]:
    """Counts (true, predicted), int (classes, classes), the names of the classes, and the status of the predictions."""
    file = run / predictions
    if not file.is_file():
        raise PictureError(f"There is no {file}. Write it first: replora-cli predict --config {run / 'fit.yaml'}")
    lines = [line for line in read_csv(file) if line.get("label", "-1") not in ("", "-1")]
    if not lines:
        raise PictureError(f"{file} has no image with a label, so nothing can be compared with the predictions.")
    try:
        pairs = [(int(line["label"]), int(line["predicted"])) for line in lines]
    except (KeyError, ValueError) as error:
        raise UnreadableFileError(f"{file} holds no predictions of a run: {error}. Write it again: predict") from error
    classes = max(read_results(run)["data"]["num_classes"], 1 + max(map(max, pairs)))
    if classes > CLASSES or min(map(min, pairs)) < 0:
        raise PictureError(
            f"{file} has classes from {min(map(min, pairs))} to {classes}, and {CLASSES:,} can be drawn."
        )
    names = [str(number) for number in range(classes)]
    for line, (label, predicted) in zip(lines, pairs, strict=True):
        names[label] = _short(line.get("label_name") or str(label))
        names[predicted] = _short(line.get("predicted_name") or str(predicted))
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    return counts, names, lines[0].get("status")


def _curves(run: Path) -> dict[str, dict[int, float]]:
    """Measure (`val/loss`) -> epoch from 1 -> value. If an epoch was repeated, the later value counts."""
    curves: dict[str, dict[int, float]] = {}
    files = sorted(run.glob("logs/fit*/metrics.csv"), key=lambda file: (len(file.parent.name), file.parent.name))
    for file in files:
        for line in read_csv(file):
            try:
                for name, value in line.items():
                    if value and "/" in name:
                        curves.setdefault(name, {})[int(line["epoch"]) + 1] = float(value)
            except (KeyError, ValueError) as error:
                raise UnreadableFileError(f"{file} is no log of a fit: {error}.") from error
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def datamodule_of(config: Path, options: dict[str, Any], of_run: bool) -> Any:
    """The datamodule of a configuration, with some of its options replaced; `of_run` as in `draw_batch`.

    Raises:
        RepLoRAError: The configuration has no data, or they are not valid.
    """
    from datamodules import BaseDataModule  # not for plots that read no data

    section = read_config(config).get("data")
    if not section:
        raise PictureError(f"{config} has no data section. Name one that has, such as vtab.yaml.")
    check_types(section, {"class_path": str, "init_args": dict}, str(config), "data")
    section = Entries(section, str(config))
    package = section["class_path"].rpartition(".")[0]
    if of_run and package and package not in sys.modules:
        raise PictureError(
            f"{config} has data of {section['class_path']!r}, a class of your own or of a stranger. Import it first: "
            f"--import_module {package}"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, "data")
    section = {"class_path": section["class_path"], "init_args": {**section.get("init_args", {}), **options}}
    try:
        return parser.instantiate(parser.parse_object({"data": section})).data
    except ArgumentError as error:
        raise PictureError(f"The data of {config} with {options}: {error}") from error


def _title(run: Path, status: str | None = None) -> str:
    """What a picture is of. `status`: That of what it shows, if it is not that of the run."""
    results = read_results(run)
    task = results["data"].get("task", results["data"]["dataset"])
    status = status or status_of(results)
    return f"{results['method']} on {results['backbone']['name']}, {task}" + f", {status}" * (status != "complete")


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _save(figure: Any, file: Path) -> Path:
    save_picture(figure, file, MAKER)
    pyplot().close(figure)
    return file
