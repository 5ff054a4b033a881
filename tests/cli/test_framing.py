"""`--data.framing` and `--data.background`: the same in training, its record, predictions and exported models."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from replora import inference
from replora.adapters.state import read_metadata
from replora.cli.main import main
from replora.results import read_results
from tests.cli.test_own_data import TINY, predictions, refused
from tests.fake_data import write_fgvc_task, write_image_folder, write_vtab_task

torch.set_num_threads(1)
FAST = [*TINY, "--trainer.limit_train_batches=1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many shapes, some with transparent pixels."""
    home = write_image_folder(tmp_path_factory.mktemp("framing") / "pets")
    for file in sorted(home.rglob("[0-4].jpg")):
        Image.open(file).convert("RGBA").resize((90, 30)).rotate(30).save(file.with_suffix(".png"))
    return home


def compare(run: Path, photos: Path, out: Path) -> None:
    """`predict-files` says of the run's test images what `predict` says."""
    main(["predict", f"--config={run / 'fit.yaml'}"])
    own = predictions(run)
    assert any(row["path"].endswith(".png") for row in own)
    main(["predict-files", str(run), *(str(photos / row["path"]) for row in own), f"--out={out}", "--progress=false"])
    with out.open(newline="", encoding="utf-8") as stream:
        found = [float(row["probability"]) for row in csv.DictReader(stream)]
    assert found == pytest.approx([float(row["probability"]) for row in own], abs=1e-4)


@pytest.mark.parametrize("augmentation", ["crop_flip", "none"])
@pytest.mark.parametrize("framing", ["crop", "pad", "squash"])
def test_a_framing_is_recorded_and_used_everywhere(
    framing: str, augmentation: str, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [f"--data.framing={framing}", f"--data.augmentation={augmentation}", "--data.background=336699"]
    options += ["--data.test_fraction=0.3", f"--data.root={photos}", f"--run_dir={run}"]
    main(["fit", "--config=image_folder.yaml", *FAST, *options])
    content = read_results(run)
    of_adapter = json.loads(read_metadata(run / "adapter.safetensors")["data"])
    for data in (content["data"], content["test"]["data"], of_adapter):
        assert (data["framing"], data["background"]) == (framing, "336699")
    compare(run, photos, tmp_path / "found.csv")


@pytest.mark.parametrize("size", [32, 36])  # vit_nano was made for 32
@pytest.mark.parametrize("framing", ["crop", "pad", "squash"])
def test_a_merged_model_tells_timm_how_to_frame(framing: str, size: int, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [f"--data.framing={framing}", f"--data.root={photos}", f"--data.image_size={size}", f"--run_dir={run}"]
    main(["fit", "--config=image_folder.yaml", *FAST, *options, "--data.normalization=imagenet"])
    main(["merge", str(run), f"--out={tmp_path / 'merged'}"])
    model = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    predictor = inference.load_run(run)
    files = sorted(photos.rglob("*.jpg"))[:4]
    with torch.no_grad():
        theirs = model(torch.stack([transform(Image.open(file).convert("RGB")) for file in files])).softmax(-1)
    torch.testing.assert_close(predictor.predict(files).probabilities, theirs, atol=1e-4, rtol=1e-4)


def test_benchmarks_are_framed_too(tmp_path: Path) -> None:
    write_vtab_task(tmp_path, "eurosat")
    write_fgvc_task(tmp_path, "stanford_dogs")
    for config, task in (("vtab.yaml", "eurosat"), ("fgvc.yaml", "stanford_dogs")):
        run = tmp_path / f"run_{task}"
        options = [f"--data.root={tmp_path}", f"--data.task={task}", "--data.check_sizes=false", "--data.framing=pad"]
        main(["fit", f"--config={config}", *FAST, *options, f"--run_dir={run}"])
        assert read_results(run)["data"]["framing"] == "pad"


def test_mistakes_name_the_choices(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*FAST, f"--data.root={photos}", f"--run_dir={tmp_path / 'run'}"]
    error = refused(capsys, "fit", "--config=image_folder.yaml", *options, "--data.framing=padd")
    assert "'padd' is not an option. Did you mean 'pad'" in error
    error = refused(capsys, "fit", "--config=image_folder.yaml", *options, "--data.background=#ffffff")
    assert "background=None is no color" in error  # in YAML, # begins a comment
    error = refused(capsys, "fit", "--config=image_folder.yaml", *options, "--data.background=whit")
    assert (
        "background='whit' is no color: give a name of CSS, or RRGGBB in hexadecimal digits. Did you mean 'white'"
        in error
    )


def test_a_run_of_an_earlier_release_has_white_behind_it(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["fit", "--config=image_folder.yaml", *FAST, f"--data.root={photos}", f"--run_dir={run}"])
    assert "background" not in json.loads(read_metadata(run / "adapter.safetensors")["data"])
    assert "background" not in read_results(run)["data"]
    assert inference.load_run(run).reader.background == "white"
