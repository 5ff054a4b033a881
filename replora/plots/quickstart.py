"""The quickstart's table and picture, from the files of its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replora.datasets.image.digits import Digits
from replora.io import read_csv, save_picture
from replora.progress import table_console
from replora.reports.render.fonts import pyplot
from replora.results import PREDICTIONS, read_results

MAKER = "replora-cli quickstart"

METHODS = {"linear_probe": "linear probe", "lora": "LoRA", "replora": "RepLoRA"}
# Okabe and Ito's colors, which are distinct for all kinds of color vision; markers distinguish the lines too.
STYLES: dict[str, dict[str, Any]] = {
    "linear_probe": {"color": "#E69F00", "marker": "s", "linestyle": ":"},
    "lora": {"color": "#0072B2", "marker": "o", "linestyle": "--"},
    "replora": {"color": "#D55E00", "marker": "^", "linestyle": "-"},
}
RIGHT, WRONG = "#000000", "#D55E00"


@dataclass(frozen=True)
class Row:
    """One run in the table.

    Attributes:
        method: Short name of the method.
        images: Number of training images.
        trained: Number of trained parameters, including the head.
        deployed: Number of parameters beside the backbone after training, including the head.
        val_accuracy: Accuracy on the 200 validation images at the last epoch, in [0, 1].
        test_accuracy: Accuracy on the 797 test images at the last epoch, in [0, 1].
        seconds: Duration of training, including validation.
    """

    method: str
    images: int
    trained: int
    deployed: int
    val_accuracy: float
    test_accuracy: float
    seconds: float


def title(method: str, data: str) -> str:
    """Name of a run, shown while it runs."""
    return f"{METHODS[method]}, {'5 images per class' if data == 'few' else 'all images'}"


def row(run: Path) -> Row:
    """The row of one run, from its `results.json`."""
    results = read_results(run)
    counts = results["parameters"]
    return Row(
        method=results["method"],
        images=len(results["data"]["train_indices"]),
        trained=counts["adapter_trained"] + counts["head"],
        deployed=counts["adapter_deployed"] + counts["head"],
        val_accuracy=results["fit"]["metrics"]["val/accuracy"],
        test_accuracy=results["test"]["metrics"]["test/accuracy"],
        seconds=results["fit"]["seconds"],
    )


def table(rows: list[Row]) -> None:
    """Print the rows."""
    from rich.table import Table

    grid = Table(
        title="vit_nano on digits: parameters (with the head) and accuracy at the last epoch",
        title_style="bold",
        min_width=76,
    )
    grid.add_column("method", no_wrap=True)
    for column in ("images", "trained", "deployed", "validation", "test", "seconds"):
        grid.add_column(column, justify="right", no_wrap=True)
    for position, r in enumerate(rows):
        last_of_block = position + 1 < len(rows) and rows[position + 1].images != r.images
        grid.add_row(
            METHODS.get(r.method, r.method),
            f"{r.images:,}",
            f"{r.trained:,}",
            f"{r.deployed:,}",
            f"{r.val_accuracy:.1%}",
            f"{r.test_accuracy:.1%}",
            f"{r.seconds:.0f}",
            end_section=last_of_block,
        )
    table_console().print(grid)


def learning_curve(run: Path) -> tuple[list[int], list[float]]:
    """Epochs (from 1) and validation accuracies of a run, from its `metrics.csv`."""
    lines = [line for line in read_csv(run / "logs" / "fit" / "metrics.csv") if line.get("val/accuracy")]
    return [int(line["epoch"]) + 1 for line in lines], [float(line["val/accuracy"]) for line in lines]


def draw(runs: list[Path], file: Path) -> None:
    """Draw the learning curves of the runs, and predictions of the last run, which has a `predictions.csv`."""
    plt = pyplot()
    rows = {run: row(run) for run in runs}
    sizes = sorted({r.images for r in rows.values()})
    figure = plt.figure(figsize=(11, 8.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    axes = top.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axis, size in zip(axes, sizes, strict=True):
        for run in (run for run in runs if rows[run].images == size):
            name = rows[run].method
            label = f"{METHODS.get(name, name)} (test {rows[run].test_accuracy:.1%})"
            axis.plot(*learning_curve(run), label=label, markersize=6, linewidth=2, **STYLES.get(name, {}))
        axis.set_title(f"Trained on {size} digits")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    axes[0].set_ylabel("accuracy on 200 validation images")
    _draw_predictions(bottom, runs[-1], METHODS.get(rows[runs[-1]].method, ""))
    save_picture(figure, file, MAKER)
    plt.close(figure)


def _draw_predictions(figure: Any, run: Path, method: str, columns: int = 10) -> None:
    """Draw two rows of test images: the first ones, and the first mistakes."""
    digits = Digits("test")
    predictions = read_csv(run / PREDICTIONS)
    mistakes = [p for p in predictions if p["label"] != p["predicted"]]
    accuracy = 1 - len(mistakes) / len(predictions)
    axes = figure.subplots(2, columns)
    for axis in axes.flat:
        axis.axis("off")
    for line, chosen in zip(axes, (predictions[:columns], mistakes[:columns]), strict=True):
        for axis, p in zip(line, chosen, strict=False):
            right = p["label"] == p["predicted"]
            truth = "" if right else f"\nnot {p['label_name']}"
            text = f"{p['predicted_name']} ({float(p['probability']):.0%}){truth}"
            axis.imshow(digits[int(p["index"])]["image"].permute(1, 2, 0).numpy())
            axis.set_title(text, color=RIGHT if right else WRONG, fontsize=10)
    figure.suptitle(
        f"{method} on {len(predictions)} test digits ({accuracy:.1%} right). Above: the first ten. Below: "
        + (f"{min(len(mistakes), columns)} of its {len(mistakes)} mistakes." if mistakes else "no mistakes.")
    )
