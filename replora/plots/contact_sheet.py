"""A picture of images with their predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from replora.io import save_picture
from replora.reports.render.fonts import drawable, use_fonts_for


def draw(
    file: Path,
    pictures: Sequence[Tensor],
    names: Sequence[str],
    probabilities: Sequence[float],
    sources: Sequence[str],
    columns: int = 8,
    status: str = "complete",
    maker: str = "replora-cli predict-files",
) -> None:
    """Draw the pictures in rows, with the class and probability above each, and its source below.

    Args:
        file: The PNG file to write; its folder is created if it does not exist.
        pictures: At least one image, uint8 (3, H, W). All are drawn.
        names: Predicted class of each picture.
        probabilities: Probability of that class, in [0, 1].
        sources: File name of each picture.
        columns: Number of pictures per row.
        status: That of the run; `partial: ...` and `diverged` are written above the pictures.
        maker: The command that draws it, for the file's metadata.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    use_fonts_for([*names, *sources])
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.6 * columns + 0.2, 2.1 * rows + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, picture, name, probability, source in zip(axes, pictures, names, probabilities, sources, strict=False):
        axis.imshow(picture.permute(1, 2, 0).numpy())
        axis.set_title(f"{_short(drawable(name))}\n{probability:.0%}", fontsize=8)
        below = {"ha": "center", "va": "top", "transform": axis.transAxes}
        axis.text(0.5, -0.03, _short(drawable(source)), fontsize=6, **below)
    if status != "complete":
        figure.suptitle(f"Status of the run: {status}", fontsize=10)
    save_picture(figure, file, maker)


def _short(text: str, length: int = 20) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
