"""Names of any script in every picture: no warning, and names that differ look different."""

from __future__ import annotations

import csv
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib.font_manager import fontManager
from PIL import Image

from lightning_modules.callbacks.prediction_writer import COLUMNS
from replora.plots import contact_sheet
from replora.plots.run import draw_batch, draw_confusion
from replora.reports.render import charts
from replora.reports.render.fonts import drawable, use_fonts_for
from replora.reports.statistics import Mean

NAMES = [
    *("猫", "犬と猫の写真がたくさんある分類の長い名前です", "고양이", "قط", "बिल्ली", "é"),
    *("🐈", "👩\u200d🔬", "$x^{$", "$\\frac$", "a\tb", "\U000e0001"),
]


@pytest.fixture(autouse=True)
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts with matplotlib's own fonts alone, whatever this machine has, and fails at any warning."""
    own = [font for font in fontManager.ttflist if Path(font.fname).is_relative_to(mpl.get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", own)
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawable(name: str) -> None:
    shown = drawable(name)
    assert shown.isprintable()
    use_fonts_for([shown])
    assert drawable(shown.replace(r"\$", "$")) == shown


def test_names_that_differ_look_different() -> None:
    assert len({drawable(name) for name in NAMES}) == len(NAMES)
    assert drawable("猫") == r"\u732b"
    assert drawable("🐈 x") == ":cat: x"
    assert drawable("naïve Größe, Ω") == "naïve Größe, Ω"


def test_characters_without_a_font_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        use_fonts_for(["plain", "é"])
        assert not caplog.messages
        use_fonts_for(["猫🐈"])
    [message] = caplog.messages
    assert r"猫 (\u732b), 🐈 (:cat:)" in message
    assert "Noto Sans CJK" in message


def test_a_font_of_the_machine_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A font of one character."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": Glyph(), "cat": Glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "cat": (900, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Only Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    fontManager.addfont(str(tmp_path / "cats.ttf"))
    use_fonts_for(["猫"])
    assert mpl.rcParams["font.family"][-1] == "Only Cats"
    assert drawable("猫犬") == r"猫\u72ac"
    assert not caplog.messages


def test_confusion(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    content = {"format": 1, "method": "lora", "backbone": {"name": "vit_nano"}}
    content["data"] = {"task": "写真", "dataset": "F", "num_classes": len(NAMES)}
    (run / "results.json").write_text(json.dumps(content), encoding="utf-8")
    with (run / "predictions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for label, name in enumerate(NAMES):
            best = (label + 1) % len(NAMES)
            writer.writerow([label, "", label, name, best, NAMES[best], 0.5])
    height, width = pixels(draw_confusion(run, tmp_path / "confusion.png")).shape
    assert max(height, width) < 2500  # long names with escapes are cut


def test_contact_sheet(tmp_path: Path) -> None:
    file = tmp_path / "sheet.png"
    files = [f"{name}.png" for name in NAMES]
    pictures = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(NAMES)
    contact_sheet.draw(file, pictures, NAMES, [0.5] * len(NAMES), files, status="partial: $")
    assert pixels(file).std() > 1


def test_charts(tmp_path: Path) -> None:
    mean = Mean(0.5, 0.4, 0.6, 3, 0.1)
    curves = {f"task {name}": {other: {1.0: mean, 2.0: mean} for other in NAMES} for name in NAMES[:3]}
    charts.draw_curves(tmp_path / "curves.png", curves, "x", "accuracy (%)")
    charts.draw_curves(tmp_path / "curve.png", {"猫": {"犬": {1.0: mean}}}, "x", "accuracy (%)")
    charts.draw_dots(tmp_path / "dots.png", {"猫": dict.fromkeys(NAMES, mean)}, "x")
    charts.draw_heat_maps(tmp_path / "maps.png", {"猫": {(a, b): 0.5 for a in NAMES for b in NAMES}}, "a", "b", "c")
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_folders_of_images(tmp_path: Path) -> None:
    for name in ("猫", "🐈", "$x^{$"):
        (tmp_path / "写真" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (16, 16), (number, 9, 9)).save(tmp_path / "写真" / name / f"{number}.png")
    config = tmp_path / "data.yaml"
    data = {"class_path": "ImageFolderDataModule", "init_args": {"root": str(tmp_path / "写真"), "image_size": 16}}
    config.write_text(json.dumps({"data": data}), encoding="utf-8")
    assert pixels(draw_batch(config, {}, 6, tmp_path / "batch.png")).std() > 1
