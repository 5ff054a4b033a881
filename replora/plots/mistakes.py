"""The test of a run as pictures: its confusion matrix and its worst mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replora.io import read_csv
from replora.plots import contact_sheet
from replora.plots.run import MAKER, draw_confusion
from replora.results import TEST_PREDICTIONS, read_results

SHOWN = 24


def draw_test(run: Path, datamodule: Any) -> list[Path]:
    """Draw `plots/confusion.png` and `plots/mistakes.png` of a run that has been tested on images.

    Args:
        run: Directory of the run.
        datamodule: What the test read.

    Returns:
        The pictures; none for a run without a complete test of images.
    """
    test = read_results(run).get("test", {})
    if not (run / TEST_PREDICTIONS).is_file() or not hasattr(datamodule, "image_size") or test.get("partial"):
        return []
    pictures = [draw_confusion(run, run / "plots" / "confusion.png", TEST_PREDICTIONS)]
    return [*pictures, *draw_mistakes(run, datamodule, run / "plots" / "mistakes.png")]


def draw_mistakes(run: Path, datamodule: Any, file: Path) -> list[Path]:
    """Draw the wrong predictions of a test with the highest probabilities, the surest first.

    Returns:
        `file`; nothing where there are no mistakes, or where the data are not images.
    """
    lines = [line for line in read_csv(run / TEST_PREDICTIONS) if line["label"] != line["predicted"]]
    worst = sorted(lines, key=lambda line: -float(line["probability"]))[:SHOWN]
    dataset = datamodule.build_dataset("test")
    pictures = [dataset[int(line["index"])].get("image") for line in worst]
    if not pictures or pictures[0] is None or pictures[0].is_floating_point():
        return []
    contact_sheet.draw(
        file,
        pictures,
        [f"{line['label_name']} → {line['predicted_name']}" for line in worst],
        [float(line["probability"]) for line in worst],
        [Path(line["path"]).name or f"test image {line['index']}" for line in worst],
        status=lines[0].get("status") or "complete",
        maker=MAKER,
    )
    return [file]
