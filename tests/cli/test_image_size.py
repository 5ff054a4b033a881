"""A size of images that the backbone was not made for: training, record, resuming, predictions and export."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import timm
import torch

import replora
from replora import inference
from replora.adapters.state import read_metadata
from replora.backbones import vision
from replora.cli.main import main
from replora.results import read_results
from replora.runs import open_run
from tests.cli.test_own_data import TINY, predictions, refused
from tests.fake_data import write_image_folder
from tests.lightning_modules.helpers import StopError

torch.set_num_threads(1)
SMALL = [option for option in TINY if not option.startswith(("--data.image_size", "--model.backbone"))]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("size") / "pets")


def options(pets: Path, run: Path, backbone: str = "vit_nano", size: int = 48) -> list[str]:
    places = [f"--data.root={pets}", f"--run_dir={run}", f"--model.backbone={backbone}", f"--data.image_size={size}"]
    return ["--config=image_folder.yaml", *SMALL, *places]


# test_vit is timm's smallest: 160 x 160 in patches of 16. Swin has windows.
@pytest.mark.parametrize(
    ("backbone", "made_for", "size"),
    [("vit_nano", 32, 48), ("vit_nano", 32, 20), ("test_vit", 160, 96), ("swin_tiny_patch4_window7_224", 224, 64)],
)
def test_from_training_to_export(backbone: str, made_for: int, size: int, pets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["fit", *options(pets, run, backbone, size)])
    content = read_results(run)
    assert content["backbone"]["resampled"] == {"from": made_for, "to": size}
    assert content["data"]["image_size"] == content["test"]["data"]["image_size"] == size
    assert json.loads(read_metadata(run / "adapter.safetensors")["backbone"])["resampled"]["to"] == size

    main(["test", f"--config={run / 'fit.yaml'}"])
    assert len(read_results(run)["evaluations"]) == 1, "the same measurement"
    main(["predict", f"--config={run / 'fit.yaml'}"])
    own = predictions(run)
    files = [str(pets / row["path"]) for row in own]
    main(["predict-files", str(run), *files, f"--out={tmp_path / 'p.csv'}", "--progress=false"])
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as stream:
        found = [float(row["probability"]) for row in csv.DictReader(stream)]
    assert found == pytest.approx([float(row["probability"]) for row in own], abs=1e-4)

    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        want = open_run(run).model(image)
    main(["merge", str(run), f"--out={tmp_path / 'merged'}"])
    stock = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    assert timm.data.resolve_model_data_config(stock)["input_size"] == (3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(stock(image), want, atol=1e-4, rtol=1e-4)
    main(["export", str(run), f"--out={tmp_path / 'peft'}"])
    if backbone != "vit_nano":  # which timm does not know
        assert re.search(f"im(g|age)_size={size}\\b", (tmp_path / "peft" / "README.md").read_text())
    main(["export", str(run), f"--out={tmp_path / 'small.safetensors'}", "--format=adapter"])
    plain = replora.remove(open_run(run).model)
    replora.load_adapter(plain, tmp_path / "small.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(plain(image), want, atol=1e-4, rtol=1e-4)


def test_a_run_is_opened_on_another_kind_of_processor(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, a few of the resampled values differ in the last bit."""
    run = tmp_path / "run"
    main(["fit", *options(pets, run)])
    resample = vision.resample

    def elsewhere(model, *arguments) -> None:
        resample(model, *arguments)
        with torch.no_grad():
            model.pos_embed.copy_(torch.nextafter(model.pos_embed, torch.tensor(1.0)))

    monkeypatch.setattr(vision, "resample", elsewhere)
    assert open_run(run).backbone.resampled_from == 32


def test_an_adapter_file_and_its_base_are_merged_at_the_size_of_the_training(pets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["fit", *options(pets, run), "--model.pretrained=true"])
    main(["merge", str(run / "adapter.safetensors"), "--base=vit_nano", f"--out={tmp_path / 'merged'}"])
    stock = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(stock(image), open_run(run).model(image), atol=1e-4, rtol=1e-4)


def test_a_resumed_run_equals_the_uninterrupted_one_and_another_size_is_refused(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = ["--trainer.max_epochs=2", "--test_after_fit=false"]
    main(["fit", *options(pets, tmp_path / "whole"), *epochs])
    stop = ["--trainer.callbacks+=tests.lightning_modules.helpers.StopBefore", "--trainer.callbacks.epoch=1"]
    with pytest.raises(StopError):
        main(["fit", *options(pets, tmp_path / "part"), *epochs, *stop])
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    for size in (32, 40):
        other = options(pets, tmp_path / "part", size=size)
        assert "image_size: 48 in the checkpoint, " in refused(capsys, "fit", *other, *epochs, f"--ckpt_path={last}")
        assert "image_size: 48 in the checkpoint, " in refused(capsys, "test", *other, f"--ckpt_path={last}")
    main(["fit", *options(pets, tmp_path / "part"), *epochs, f"--ckpt_path={last}"])
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    resumed = torch.load(last, weights_only=True)
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_the_own_size_is_recorded_as_before(pets: Path, tmp_path: Path) -> None:
    main(["fit", *options(pets, tmp_path / "run", size=32)])
    assert "resampled" not in read_results(tmp_path / "run")["backbone"]
    assert inference.load_run(tmp_path / "run").reader.image_size == 32


def test_mistakes_name_the_remedy(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "fit", *options(pets, tmp_path / "run", size=33))
    assert "which do not divide 33 x 33. Set --data.image_size 32 or 36" in error
    error = refused(capsys, "fit", *options(pets, tmp_path / "run"), "--model.image_size=48")
    assert "the size of the images is the data's. Set --data.image_size." in error
