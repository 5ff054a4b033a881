"""The clean track's filter: the same in training, its record, predictions, exported models and later runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datamodules import VTABDataModule
from replora import inference
from replora.adapters.state import read_metadata
from replora.cli.main import main
from replora.identity import differing_options
from replora.results import read_results
from tests.cli.test_own_data import TINY, predictions, refused
from tests.fake_data import write_vtab_task

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, trained on PNG images."""
    home = tmp_path_factory.mktemp("clean")
    write_vtab_task(home, "eurosat", image_format="PNG", image_size=(50, 41))
    main(["fit", *options(home, "run")])
    return home


def options(home: Path, run: str) -> list[str]:
    of_data = [f"--data.root={home}", "--data.task=eurosat", "--data.check_sizes=false"]
    return ["--config=vtab.yaml", "--config=recipe/clean.yaml", *TINY, *of_data, f"--run_dir={home / run}"]


def test_the_filter_is_recorded_and_used_everywhere(home: Path, tmp_path: Path) -> None:
    run = home / "run"
    content = read_results(run)
    of_adapter = json.loads(read_metadata(run / "adapter.safetensors")["data"])
    assert {d["interpolation"] for d in (content["data"], content["test"]["data"], of_adapter)} == {"tf1_bilinear"}
    main(["predict", f"--config={run / 'fit.yaml'}"])
    own = predictions(run)
    files = [str(home / "vtab-1k" / "eurosat" / row["path"]) for row in own]
    main(["predict-files", str(run), *files, f"--out={tmp_path / 'all.csv'}", "--progress=false"])
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as stream:
        found = [float(row["probability"]) for row in csv.DictReader(stream)]
    assert found == pytest.approx([float(row["probability"]) for row in own], abs=1e-4)
    predictor = inference.load_run(run)
    picture = predictor.picture(predictor.read(Path(files[0])))
    assert (picture.dtype, picture.shape) == (torch.uint8, (3, 32, 32))


def test_a_model_card_says_that_timm_lacks_the_filter(home: Path, tmp_path: Path) -> None:
    for verb, out in (("merge", "merged"), ("export", "peft")):
        main([verb, str(home / "run"), f"--out={tmp_path / out}"])
        card = (tmp_path / out / "README.md").read_text("utf-8").replace("\\", "")  # Markdown's escapes
        assert "32 x 32 pixels, squash, filter tf1_bilinear, mean [0.5, 0.5, 0.5]" in card
        assert "timm and torchvision do not have it" in card
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["pretrained_cfg"]["interpolation"] == "bilinear"


def test_a_test_with_another_filter_is_a_further_evaluation(home: Path) -> None:
    main(["fit", *options(home, "again")])
    run = home / "again"
    main(["test", f"--config={run / 'fit.yaml'}", "--data.interpolation=bilinear"])
    content = read_results(run)
    assert [e["data"]["interpolation"] for e in content["evaluations"]] == ["tf1_bilinear", "bilinear"]
    assert content["test"]["data"]["interpolation"] == "tf1_bilinear"


def earlier(home: Path, run: str, tmp_path: Path) -> Path:
    """The fit.yaml of a run from before the clean track had a filter of its own."""
    content: dict[str, Any] = yaml.safe_load((home / run / "fit.yaml").read_text("utf-8"))
    assert content["data"]["init_args"]["interpolation"] == "track"
    content["data"]["init_args"]["interpolation"] = None
    file = tmp_path / "fit.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_file_of_an_earlier_run_means_what_ran_then(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["fit", f"--config={earlier(home, 'run', tmp_path)}", f"--run_dir={run}"])
    assert read_results(run)["data"]["interpolation"] == "bilinear"
    resumed = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    main(["fit", f"--config={run / 'fit.yaml'}", *resumed])
    assert read_results(run)["data"]["interpolation"] == "bilinear"
    resumed[-1] = "--trainer.max_epochs=3"
    error = refused(capsys, "fit", *options(home, "run"), f"--run_dir={run}", *resumed)
    assert "interpolation: 'bilinear' in the checkpoint, 'tf1_bilinear' here" in error
    main(["report", str(run), str(home / "run"), f"--out={tmp_path / 'report'}"])
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "interpolation bilinear" in page
    assert "interpolation tf1_bilinear" in page


@pytest.mark.parametrize(
    ("track", "one", "other", "same"),
    [
        ("archive", None, "track", True),
        ("archive", "bicubic", "track", True),
        ("archive", "bilinear", "track", False),
        ("clean", None, "bilinear", True),
        ("clean", "track", "tf1_bilinear", True),
        ("clean", None, "track", False),
    ],
)
def test_filters_are_compared_by_what_they_mean(track: Any, one: Any, other: Any, same: bool) -> None:
    filters = {VTABDataModule(track=track, interpolation=name).reader.interpolation for name in (one, other)}
    assert (len(filters) == 1) == same
    for prefix in ("data.", "data.init_args."):
        first, second = ({f"{prefix}track": track, f"{prefix}interpolation": name} for name in (one, other))
        assert (differing_options(first, second) == {}) == same
