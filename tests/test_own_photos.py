"""docs/own_photos.md and docs/export.md are true word for word, in an empty folder with drawn photos."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

import replora
from replora.cli.main import main
from replora.results import read_results
from tests.fake_photos import write_tutorial_photos

DOCS = Path(__file__).parents[1] / "docs"
PAGE, EXPORT, SERVING = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("own_photos.md", "export.md", "serving.md")
)
COMMANDS = re.findall(r"^    replora-cli (.*)$", PAGE, flags=re.MULTILINE)
FORMATS = re.findall(r"^    replora-cli (.*)$", EXPORT, flags=re.MULTILINE)
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
OPTIONS = re.findall(r"`(--[^`]+)`", PAGE.partition("## Options")[2])


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("own")
    write_tutorial_photos(home)
    return home


def test_the_page_word_for_word(empty_folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(empty_folder)
    shown = ""
    for command in COMMANDS:
        if not command.startswith("serve"):  # tests/cli/test_serve.py drops photos on that page
            main(shlex.split(command))
            shown += capsys.readouterr().out
    for example in EXAMPLES:
        exec(compile(example, "docs/own_photos.md", "exec"), {})
    shown += capsys.readouterr().out
    for said in ("6    151   17    19", "Chosen: replora, lr", "weakest", "McNemar", "star-000.jpg"):
        assert said in shown
    for file in (
        *("look/batch.png", "runs/photos/tune.png", "runs/photos/final/plots/confusion.png", "sheet.png"),
        *("runs/probe/test_classes.csv", "runs/probe/plots/confusion.png", "predictions.csv"),
        *("model_onnx/model.onnx", "model_timm/model.safetensors", "model_onnx/README.md"),
    ):
        assert Path(file).stat().st_size > 100, file
    for run in ("runs/photos/final", "runs/probe"):
        perfect = read_results(Path(run))["test"]["metrics"]["test/accuracy"] == 1
        assert Path(run, "plots/mistakes.png").exists() == (not perfect), run


def test_each_format_of_the_page_on_export(empty_folder, monkeypatch, tmp_path) -> None:
    """And serving.md's lines, which open a merged model."""
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(empty_folder / "photos")
    small = "--config image_folder.yaml --data.root photos --model.backbone vit_nano --data.image_size 32"
    main(["fit", *small.split(), "--trainer.max_epochs=1", "--run_dir=runs/photos/final"])
    for command in FORMATS:
        main(shlex.split(command))
    for file in ("model_peft/adapter_config.json", "birds.safetensors", "model_onnx/model.onnx"):
        assert Path(file).stat().st_size > 100, file
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", SERVING, flags=re.DOTALL) if "local-dir" in code)
    file = empty_folder / "new_photos" / "star-000.jpg"
    found = replora.load_run("runs/photos/final").predict(file).probabilities
    for folder in ("merged", "model_timm"):
        names: dict = {"timm": timm}
        exec(compile(example.replace("merged", folder), "docs/serving.md", "exec"), names)
        photo = names["transform"](Image.open(file).convert("RGB"))
        made = names["model"](photo[None]).softmax(dim=1).detach()
        torch.testing.assert_close(made, found, rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", [o for o in OPTIONS if o.startswith("--") and "Logger" not in o])
def test_options_of_the_table_are_taken(empty_folder, options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(empty_folder)
    words = [word.replace("runs/photos/checkpoints", str(tmp_path / "run" / "checkpoints")) for word in options.split()]
    if words[0] in ("--config", "--ckpt_path"):
        pytest.skip("an option of another verb")
    small = "--config image_folder.yaml --data.root photos --model.backbone vit_nano --data.image_size 32"
    quick = "--trainer.max_epochs 1 --trainer.limit_train_batches 1 --trainer.limit_test_batches 1 --data.batch_size 8"
    main(["fit", *small.split(), *quick.split(), *words, "--run_dir", str(tmp_path / "run")])
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    if "ModelCheckpoint" in options:
        main(["test", "--config", str(tmp_path / "run" / "fit.yaml"), "--ckpt_path", "best"])
    name, _, value = words[0].removeprefix("--").partition("=")
    given = saved["trainer"] if name.startswith("trainer") else saved[name.partition(".")[0]]["init_args"]
    assert given[name.partition(".")[2].rstrip("+")] not in (None, "none", 0.0), value
