from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lightning_modules.callbacks.prediction_writer import COLUMNS
from replora.cli.main import main
from replora.plots.run import PictureError, _confusion, _curves, _most_confused, draw_confusion
from tests.cli.helpers import fit
from tests.fake_data import write_vtab_task


def predicted_run(run: Path, classes: int, pairs: list[tuple[int, int]]) -> Path:
    """A directory with predictions (true, predicted) and what a picture's title needs."""
    run.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "method": "lora", "backbone": {"name": "vit_nano"}}
    content["data"] = {"task": "things", "dataset": "Things", "num_classes": classes}
    (run / "results.json").write_text(json.dumps(content))
    with (run / "predictions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for index, (label, best) in enumerate(pairs):
            name = f"class {label}" if label >= 0 else ""
            writer.writerow([index, "", label, name, best, f"class {best}", 0.5])
    return run


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        assert len(image.convert("L").getcolors()) > 2, "not empty"
        return image.size


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = fit(tmp_path_factory.mktemp("plots") / "run", "--trainer.max_epochs=2", "--test_after_fit=false")
    main(["fit", f"--config={run / 'fit.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=3"])
    main(["predict", f"--config={run / 'fit.yaml'}", "--trainer.limit_predict_batches=1"])
    return run


def test_plots_of_a_run(finished, capsys):
    main(["plot", str(finished)])
    shown = capsys.readouterr().out.split()
    for name in ("curves", "confusion", "batch"):
        file = finished / "plots" / f"{name}.png"
        assert str(file) in shown
        assert min(size(file)) > 300


def test_curves_go_on_where_a_run_was_resumed(finished):
    curves = _curves(finished)
    assert list(curves["val/accuracy"]) == list(curves["train/loss"]) == [1, 2, 3]
    assert len({*curves["train/learning_rate"].values()}) > 1


def test_without_predictions_the_command_is_told(finished, tmp_path, capsys):
    shutil.copytree(finished, run := tmp_path / "run")
    (run / "predictions.csv").unlink()
    main(["plot", str(run), f"--out={tmp_path / 'pictures'}", "--images=3"])
    assert f"replora-cli predict --config {run / 'fit.yaml'}" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "pictures").iterdir()} >= {"curves.png", "batch.png"}


def test_batch_of_a_packaged_configuration_with_other_options(tmp_path):
    write_vtab_task(tmp_path, "dtd")
    options = [f"--data.root={tmp_path}", "--data.task=dtd", "--data.check_sizes=false", "--data.image_size=32"]
    main(["plot", "vtab.yaml", *options, "--images=7", f"--out={tmp_path / 'out'}"])
    assert min(size(tmp_path / "out" / "batch.png")) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart.yaml", "--images=0"], "images: 0 is out of range"),
        (["quickstart.yaml", "--data.shotts=3"], "shotts"),
        (["trainer/cpu.yaml"], "has no data section"),
        (["nothing.yaml"], "none of that name ships"),
    ],
)
def test_mistakes(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plot", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_without_logs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["plot", str(predicted_run(tmp_path / "run", 2, [(0, 0)]))])
    assert "has no learning curves" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [2, 20, 47, 200])
def test_confusion_of_few_and_many_classes(classes, tmp_path):
    pairs = [(c, c if c % 3 else (c + 1) % classes) for c in range(classes)]
    file = draw_confusion(predicted_run(tmp_path / "run", classes, pairs), tmp_path / "confusion.png")
    assert min(size(file)) > 400


def test_confusion_counts(tmp_path):
    run = predicted_run(tmp_path / "run", 3, [(0, 0), (0, 1), (0, 1), (2, 2), (-1, 1)])
    counts, names, status = _confusion(run)
    assert status is None
    assert counts.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert names == ["class 0", "class 1", "class 2"]
    assert "2 of 3   class 0 (0)  →  class 1 (1)" in _most_confused(counts, names)


def test_predictions_without_labels(tmp_path):
    with pytest.raises(PictureError, match="no image with a label"):
        _confusion(predicted_run(tmp_path / "run", 3, [(-1, 1)]))
    (tmp_path / "run" / "predictions.csv").unlink()
    with pytest.raises(PictureError, match="replora-cli predict"):
        _confusion(tmp_path / "run")
