"""The pictures of a report.

The colors are those of Okabe and Ito, which are distinct for all kinds of color vision; markers and line styles also
distinguish the methods without color.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from replora.io import replacing, save_picture
from replora.reports.render.fonts import drawable, pyplot
from replora.reports.statistics import Mean

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
GRAY = "#B0B0B0"
MARKERS = ("o", "^", "D", "v", "s", "P", "X", "*")
LINES = ("--", "-", "-.", (0, (5, 1, 1, 1, 1, 1)), ":", (0, (3, 1)), (0, (1, 1)), (0, (6, 2)))
FEW = 6  # largest number of methods for one panel with a legend
# The same method looks the same in every picture.
PLACES = {"LoRA": 0, "RepLoRA": 1, "DoRA": 2, "linear": 3, "linear probe": 4}

MAKER = "replora-cli report"
_VECTOR: ContextVar[Sequence[str]] = ContextVar("vector", default=())
Curve = Mapping[float, Mean]  # position on the x axis -> mean with its interval, as fractions


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Color, marker and line style of each method. Beyond eight methods colors repeat with other markers, up to 64."""
    free = (i for i in itertools.count() if i not in {PLACES[m] for m in methods if m in PLACES})
    places = {method: PLACES[method] if method in PLACES else next(free) for method in methods}
    return {
        method: {
            "color": COLORS[place % 8],
            "marker": MARKERS[(place + place // 8) % 8],
            "linestyle": LINES[(place + place // 8) % 8],
        }
        for method, place in places.items()
    }


def draw_curves(
    file: Path,
    panels: Mapping[str, Mapping[str, Curve]],
    x_label: str,
    y_label: str,
    *,
    logarithmic: bool = True,
    marked: Mapping[tuple[str, str], float] | None = None,
    zoom: bool = True,
    clip: bool = False,
    behind: tuple[str, Mapping[str, Curve]] | None = None,
) -> Path:
    """Draw one line per method, with its 95 % interval, in panels.

    Args:
        file: The PNG file.
        panels: Title of a panel -> method -> curve.
        x_label: Label of the x axis of every panel.
        y_label: Label of the y axis of every panel. Values are shown in percent if it ends with %.
        logarithmic: Whether the x axis is logarithmic; otherwise its ticks are integers.
        marked: (panel, method) -> position on the x axis that is marked with a ring.
        zoom: Whether the y axis starts near the lowest value instead of 0.
        clip: Whether values below half of the panel's best are drawn as arrows at its lower edge, with their number.
        behind: A name, and curves that every panel shows in gray with the line style and marker of its own curve.
    """
    methods = list(dict.fromkeys(method for curves in panels.values() for method in curves))
    plt = pyplot([*panels, *methods])
    look = styles(methods)
    columns = 2 if len(panels) in (2, 4) else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = 8.5 if len(panels) == 1 else 3.3 * columns
    height = 5.2 if len(panels) == 1 else 3.0 * rows + 0.7
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    scale = 100 if y_label.endswith("%") else 1
    shade = 0.13 if len(methods) <= FEW else 0.05
    gray = behind[1] if behind else {}
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        shown = [*curves.values(), *gray.values()]
        values = [scale * mean.value for curve in shown for mean in curve.values()]
        bottom = _bottom(values) if clip else None
        for name, curve in gray.items():
            below = None if bottom is None else (bottom, None)
            _line(axis, curve, scale, None, look[name] | {"color": GRAY}, 0, below)
        arrows: dict[float, int] = {}
        for method, curve in curves.items():
            counted = None if bottom is None else (bottom, arrows)
            _line(axis, curve, scale, method, look[method], shade, counted)
            ringed = (marked or {}).get((title, method))
            if ringed is not None and ringed in curve:
                y = scale * curve[ringed].value
                axis.plot([ringed], [y], "o", markersize=13, markerfacecolor="none", color=look[method]["color"])
        if logarithmic:
            axis.set_xscale("log")
            places = sorted({x for curve in shown for x in curve})
            _plain_ticks(axis, places, width / columns - 0.8)  # 0.8 inches beside the axis
        else:
            _whole_ticks(axis)
        if scale == 100:  # wide intervals of few seeds reach beyond what an accuracy can be
            low, top = axis.get_ylim()
            axis.set_ylim(max(low, 0), min(top, max(102, 1.05 * max(values, default=0))))
        if bottom is not None:
            axis.set_ylim(bottom=bottom)
        if not zoom:
            axis.set_ylim(bottom=0)
        axis.set_title(drawable(title), fontsize=11)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    if behind:
        axes[0][0].plot([], [], color=GRAY, linewidth=1.8, label=behind[0])
    _legend(figure, axes, width, len(panels))
    return _save(figure, file)


def _line(
    axis: Any,
    curve: Curve,
    scale: float,
    label: str | None,
    look: Mapping[str, Any],
    shade: float,
    below: tuple[float, dict[float, int] | None] | None,
) -> None:
    """Draw a curve with its band. Points below an edge are drawn on the edge, with arrows if these are counted."""
    xs = sorted(curve)
    means = [scale * curve[x].value for x in xs]
    ys = means
    if below is not None:
        edge, arrows = below
        ys = [max(y, edge) for y in means]
        for x, y in zip(xs, means, strict=True):
            if y < edge and arrows is not None:
                arrows[x] = arrows.get(x, 0) + 1
                place = (0, 13 * arrows[x] - 9)
                color = look["color"]
                axis.annotate(f"\u2193{y:.0f}", (x, edge), place, textcoords="offset points", color=color, fontsize=9)
    every = -(-len(xs) // 10) if len(xs) > 20 else 1
    axis.plot(xs, ys, label=label, markersize=6, markevery=every, linewidth=1.8, **look)
    banded = [x for x in xs if shade and curve[x].low is not None]
    if banded:
        low = [scale * (curve[x].low or 0) for x in banded]
        high = [scale * (curve[x].high or 0) for x in banded]
        axis.fill_between(banded, low, high, color=look["color"], alpha=shade, linewidth=0)


def _bottom(values: Sequence[float]) -> float | None:
    """Lower edge of a panel, below the values of at least half of the best; None if it would clip none or most."""
    kept = [value for value in values if value >= max(values) / 2]
    if len(kept) == len(values) or 2 * len(kept) < len(values):
        return None
    return min(kept) - 0.15 * max(max(kept) - min(kept), 1)


def _legend(figure: Any, axes: Any, width: float, panels: int) -> None:
    """Add a legend with each label once: inside a single panel, beside it if there are many labels, else below."""
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(drawable(label), handle)
    if panels == 1 and len(handles) <= FEW:
        axes[0][0].legend(handles.values(), handles.keys(), fontsize=11)
    elif panels == 1:
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=10)
    else:
        entry = 0.8 + 0.085 * max(map(len, handles), default=0)  # inches at this font size
        columns = max(1, min(5, len(handles), int(width / entry)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=11)


def draw_dots(file: Path, panels: Mapping[str, Mapping[str, Mean]], x_label: str, reference: str = "") -> Path:
    """Draw one dot per method with its 95 % interval, in the given order, and one panel per amount of data.

    Args:
        file: The PNG file.
        panels: Title of a panel -> method -> mean as a fraction, shown in percent.
        x_label: Label of the x axis of every panel.
        reference: The method whose mean a gray line marks, if it is there.
    """
    methods = list(dict.fromkeys(method for means in panels.values() for method in means))
    plt = pyplot([*panels, *methods])
    look = styles(methods)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = (8.5 if columns == 1 else 3.4 * columns + 1.2, (0.36 * len(methods) + 1.3) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis, (title, means) in zip(axes.flat, panels.items(), strict=False):
        for place, method in enumerate(methods):
            if method not in means:
                continue
            mean, center = means[method], 100 * means[method].value
            known = mean.low is not None and mean.high is not None
            ends = [[center - 100 * (mean.low or 0)], [100 * (mean.high or 0) - center]] if known else None
            style = {key: look[method][key] for key in ("color", "marker")}
            axis.errorbar([center], [place], xerr=ends, capsize=4, markersize=8, linewidth=1.8, **style)
            if method == reference:
                axis.axvline(center, color=GRAY, linewidth=1, zorder=0)
        axis.set_yticks(range(len(methods)), list(map(drawable, methods)), fontsize=11)
        axis.set_xlabel(x_label)
        axis.set_title(drawable(title), fontsize=11)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_ylim(len(methods) - 0.5, -0.5)  # half a row around each method, however few
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    return _save(figure, file)


def draw_heat_maps(
    file: Path,
    maps: Mapping[str, Mapping[tuple[str, str], float | None]],
    row_label: str,
    column_label: str,
    value_label: str,
    framed: Mapping[str, set[tuple[str, str]]] | None = None,
) -> Path:
    """Draw one heat map per method on a common scale, with the number in each cell. Diverged cells have an X.

    Args:
        file: The PNG file.
        maps: Method -> (row, column) -> value as a fraction; None if the run diverged. Absent cells are blank.
        row_label: Label of the rows.
        column_label: Label of the columns.
        value_label: Label of the color bar.
        framed: Method -> cells that are marked with a frame.
    """
    rows = _in_order(row for cells in maps.values() for row, _ in cells)
    all_columns = {method: _in_order(column for _, column in cells) for method, cells in maps.items()}
    plt = pyplot([*maps, *rows, *itertools.chain(*all_columns.values())])
    columns = min(3, len(maps))
    lines = -(-len(maps) // columns)
    width = max(len(c) for c in all_columns.values())
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=((0.6 * width + 1.1) * columns + 0.8, (0.42 * len(rows) + 1.35) * lines + 0.3),
        layout="constrained",
        squeeze=False,
    )
    known = [100 * v for cells in maps.values() for v in cells.values() if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    shown = None
    for axis, (method, cells) in zip(axes.flat, maps.items(), strict=False):
        names = all_columns[method]
        grid = np.full((len(rows), len(names)), np.nan)
        for (row, column), value in cells.items():
            place = rows.index(row), names.index(column)
            if value is None:
                axis.text(place[1], place[0], "X", ha="center", va="center", fontsize=12)
            else:
                grid[place] = 100 * value
                dark = (100 * value - low) / max(high - low, 1e-9) < 0.5
                text = f"{100 * value:.1f}"
                color = "white" if dark else "black"
                axis.text(place[1], place[0], text, ha="center", va="center", fontsize=9, color=color)
        for row, column in (framed or {}).get(method, set()) & cells.keys():
            corner = names.index(column) - 0.46, rows.index(row) - 0.46
            axis.add_patch(plt.Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2.5, zorder=3))
        shown = axis.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        axis.set_title(drawable(method), fontsize=11)
        axis.set_xticks(range(len(names)), list(map(drawable, names)), fontsize=9)
        axis.set_yticks(range(len(rows)), list(map(drawable, rows)), fontsize=9)
        axis.set_xlabel(column_label)
        axis.set_ylabel(row_label)
    for axis in list(axes.flat)[len(maps) :]:
        axis.axis("off")
    if shown is not None:
        figure.colorbar(shown, ax=axes, label=value_label, shrink=0.8)
    return _save(figure, file)


def _in_order(names: Any) -> list[str]:
    """Names without duplicates; numbers in ascending order."""
    unique = list(dict.fromkeys(names))
    try:
        return sorted(unique, key=lambda name: float(name.split(" ")[0]))
    except ValueError:
        return unique


def _plain_ticks(axis: Any, places: Sequence[float], width: float) -> None:
    """Put ticks at measured positions, as many as fit without overlap on a logarithmic axis of `width` inches."""
    from matplotlib.ticker import NullLocator

    span = math.log(places[-1] / places[0]) if len(places) > 1 else 1.0
    kept: list[float] = []
    free_from = -math.inf
    for place in places:
        center = 0.9 * width * math.log(place / places[0]) / span
        half = 0.04 * len(f"{place:g}")  # inches at this font size
        if center - half > free_from:
            kept.append(place)
            free_from = center + half + 0.05
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(kept, [f"{place:g}" for place in kept], fontsize=9)


def _whole_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


@contextlib.contextmanager
def vector_files(suffixes: Sequence[str]) -> Iterator[None]:
    """Within the context every picture is also saved with these suffixes (pdf, svg), beside its PNG file."""
    token = _VECTOR.set(suffixes)
    try:
        yield
    finally:
        _VECTOR.reset(token)


def _save(figure: Any, file: Path) -> Path:
    import matplotlib as mpl

    save_picture(figure, file, MAKER, dpi=130)
    with mpl.rc_context({"svg.hashsalt": file.name, "svg.fonttype": "none", "pdf.fonttype": 42}):
        for suffix in _VECTOR.get():
            undated = {"Creator": MAKER, "CreationDate" if suffix == "pdf" else "Date": None}
            with replacing(file.with_suffix(f".{suffix}")) as temporary:
                figure.savefig(temporary, format=suffix, metadata=undated)
    pyplot().close(figure)
    return file
