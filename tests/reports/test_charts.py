"""Properties of figures that can be checked automatically: styles, ticks, clipping."""

from __future__ import annotations

import itertools

import pytest

from replora.reports.render.charts import _bottom, _plain_ticks, draw_curves, draw_dots, styles
from replora.reports.render.fonts import pyplot
from replora.reports.statistics import Mean


def test_no_two_methods_look_the_same():
    look = styles(["LoRA", "RepLoRA", *(f"method {number}" for number in range(30))])
    assert len({(style["color"], style["marker"]) for style in look.values()}) == 32


@pytest.mark.parametrize("width", [1.5, 2.5, 7.0])
def test_ticks_do_not_touch(width):
    figure, axis = pyplot().subplots(figsize=(width + 1, 2))
    axis.set_position([0.5 / (width + 1), 0.3, width / (width + 1), 0.6])
    axis.set_xscale("log")
    places = [0.00125, 0.0025, 0.005, 0.01, 0.02, 0.025, 0.04, 0.05, 0.1, 0.2, 0.4]
    axis.plot(places, places)
    _plain_ticks(axis, places, width)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    pyplot().close(figure)
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("values", "bottom"),
    [
        ([80, 70, 10], 70 - 0.15 * 10),
        ([80, 70, 60], None),
        ([80, 10, 10], None),  # most would be cut off
    ],
)
def test_what_collapsed_does_not_stretch_the_axis(values, bottom):
    assert _bottom(values) == bottom


def test_a_collapsed_run_is_an_arrow_with_its_value(tmp_path, monkeypatch):
    written = []
    plt = pyplot()
    monkeypatch.setattr("matplotlib.axes.Axes.annotate", lambda _, text, *__, **___: written.append(text))
    curve = {x: Mean(y, None, None, 1, None) for x, y in {0.01: 0.7, 0.02: 0.8, 0.04: 0.1}.items()}
    draw_curves(tmp_path / "a.png", {"p": {"LoRA": curve}}, "x", "accuracy, %", clip=True)
    assert written == ["\u219310"]
    draw_curves(tmp_path / "b.png", {"p": {"LoRA": curve}}, "x", "accuracy, %")
    assert written == ["\u219310"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("count", [1, 2, 12])
def test_dots_have_half_a_row_to_each_edge(tmp_path, monkeypatch, count):
    """With two methods the default margin puts them onto the frame."""
    limits = []
    monkeypatch.setattr(
        "replora.reports.render.charts._save", lambda figure, _: limits.append(figure.axes[0].get_ylim())
    )
    draw_dots(tmp_path / "a.png", {"p": {f"m{n}": Mean(0.5, 0.4, 0.6, 3, None) for n in range(count)}}, "x")
    assert limits == [(count - 0.5, -0.5)]
    pyplot().close("all")
