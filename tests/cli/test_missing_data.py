"""Data that are not there are reported before weights are loaded or downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules import VTABDataModule
from replora.errors import RepLoRAError
from tests.cli.helpers import refused
from tests.fake_data import write_vtab_task

WHERE = "nowhere at all"
CONFIGS = {
    "vtab.yaml": ["--data.task=dtd"],
    "fgvc.yaml": [],
    "small_images.yaml": ["--data.task=fashion_mnist"],
    "image_folder.yaml": [],
    "video_folder.yaml": [],
    "ssv2.yaml": [],
    "hmdb51.yaml": [],
    "image_text.yaml": [],
    "video_text.yaml": [],
    "commonsense.yaml": [],
}


class WeightsLoadedError(RepLoRAError):
    """Weights were asked for."""


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise WeightsLoadedError("Weights were asked for.")

    for builder in (
        "lightning_modules.image_classification.build_vision_backbone",
        "lightning_modules.video_classification.build_video_backbone",
        "lightning_modules.causal_language_model.build_language_backbone",
        "replora.backbones.vl_bart.build_vl_bart",
    ):
        monkeypatch.setattr(builder, load)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.usefixtures("no_weights")
def test_the_data_come_first(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("replora.datasets.image.fashion_mnist.DEBIAN", tmp_path / "debian")
    options = [f"--config={config}", *CONFIGS[config], f"--data.root={WHERE}", "--trainer.accelerator=cpu"]
    error = refused(capsys, "fit", *options, "--run_dir=run")
    assert WHERE in error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_weights")
def test_weights_come_after_the_data(tmp_path, capsys):
    write_vtab_task(tmp_path, "dtd")
    options = ["--config=vtab.yaml", "--data.task=dtd", f"--data.root={tmp_path}", f"--run_dir={tmp_path / 'r'}"]
    assert "Weights were asked for" in refused(capsys, "fit", *options)


class OwnPlace(VTABDataModule):
    """Data whose place is not an option."""

    def __init__(self) -> None:
        super().__init__(Path("own"), "dtd")


@pytest.mark.usefixtures("no_weights")
def test_a_class_without_these_options(tmp_path, capsys):
    options = ["--model=ImageClassification", f"--data={__name__}.OwnPlace", f"--run_dir={tmp_path / 'r'}"]
    assert "Weights were asked for" in refused(capsys, "fit", *options)
