"""`predict-files`: files, folders and patterns to CSV and JSON, preprocessed as in the run's own evaluation."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightning_modules.predictors import ImagePredictor, VideoPredictor
from replora import RepLoRAError, inference
from replora.adapters.state import read_metadata
from replora.cli.main import main
from replora.runs import import_module
from tests.cli.helpers import fit as fit_digits
from tests.cli.test_own_data import TINY, predictions, refused
from tests.fake_data import write_image_folder
from tests.fake_videos import write_avi, write_frames

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pets`, a folder of images, and `run`, trained on it until it is right."""
    home = tmp_path_factory.mktemp("home")
    write_image_folder(home / "pets")
    options = [f"--data.root={home / 'pets'}", "--model.pretrained=true", "--model.optimizer.lr=0.02"]
    options += ["--trainer.max_epochs=6", "--model.schedule.warmup_epochs=1", f"--run_dir={home / 'run'}"]
    main(["fit", "--config=image_folder.yaml", *TINY, *options])
    main(["predict", f"--config={home / 'run' / 'fit.yaml'}"])
    return home


def predict(home: Path, *arguments: str) -> None:
    main(["predict-files", str(home / "run"), *arguments, "--progress=false"])


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_equal_to_the_predictions_of_the_run(home: Path, tmp_path: Path) -> None:
    own = predictions(home / "run")
    files = [str(home / "pets" / row["path"]) for row in own]
    predict(home, *files, f"--out={tmp_path / 'new.csv'}", "--batch_size=2")
    found = rows(tmp_path / "new.csv")
    assert [row["path"] for row in found] == files
    for mine, theirs in zip(found, own, strict=True):
        assert mine["predicted"] == theirs["predicted_name"]
        assert abs(float(mine["probability"]) - float(theirs["probability"])) < 1e-4


def test_folder_to_csv_with_the_classes_in_order(home: Path, tmp_path: Path) -> None:
    predict(home, str(home / "pets"), f"--out={tmp_path / 'new' / 'all.csv'}")
    found = rows(tmp_path / "new" / "all.csv")
    assert len(found) == 30
    right = sum(row["predicted"] == Path(row["path"]).parent.name for row in found)
    assert right >= 27
    columns = ["path", "predicted", "probability", "predicted_2", "probability_2", "predicted_3", "probability_3"]
    assert list(found[0]) == columns
    for row in found:
        assert {row["predicted"], row["predicted_2"], row["predicted_3"]} == {"cat", "dog", "eel"}
        probabilities = [float(row[name]) for name in columns[2::2]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert abs(sum(probabilities) - 1) < 1e-5


def test_all_probabilities_and_batches(home: Path, tmp_path: Path) -> None:
    pattern = str(home / "pets" / "**" / "[0-3].jpg")
    predict(home, pattern, f"--out={tmp_path / 'a.csv'}", "--top_k=0", "--batch_size=5")
    predict(home, pattern, f"--out={tmp_path / 'b.csv'}", "--top_k=0")
    found, again = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert len(found) == 12
    assert list(found[0]) == ["path", "predicted", "probability", "p(cat)", "p(dog)", "p(eel)"]
    for one, other in zip(found, again, strict=True):
        assert one["path"] == other["path"]
        assert float(one["p(dog)"]) == pytest.approx(float(other["p(dog)"]), abs=1e-4)


def test_json_and_contact_sheet(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "$a$.jpg").write_bytes((home / "pets" / "cat" / "0.jpg").read_bytes())
    options = [f"--out={tmp_path / 'p.json'}", "--top_k=2", f"--contact_sheet={tmp_path / 'sheets' / 'sheet.png'}"]
    predict(home, str(tmp_path), str(home / "pets" / "dog"), *options)
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["class_names"] == ["cat", "dog", "eel"]
    assert len(content["predictions"]) == 11
    assert content["skipped"] == []
    first = content["predictions"][0]
    assert first["path"] == str(tmp_path / "$a$.jpg")
    assert next(iter(first["probabilities"])) == first["predicted"]
    assert len(first["probabilities"]) == 2
    with Image.open(tmp_path / "sheets" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 8 * 100
        colored = sum(max(pixel) - min(pixel) > 40 for pixel in sheet.convert("RGB").resize((80, 40)).getdata())
        assert colored > 0.2 * 80 * 40 * 11 / 16  # 11 of 16 places have a picture
    shown = capsys.readouterr().out
    assert "11 predictions are in" in shown
    predicted = [prediction["predicted"] for prediction in content["predictions"]]
    assert all(f"{name} {predicted.count(name)}" in shown for name in set(predicted))


def test_corrupt_images(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "pets" / "cat", tmp_path / "cat")
    whole = (tmp_path / "cat" / "1.jpg").read_bytes()
    (tmp_path / "cat" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat" / "2.jpg").write_bytes(b"")
    arguments = [str(home / "run"), str(tmp_path / "cat"), f"--out={tmp_path / 'p.json'}", "--progress=false"]
    error = refused(capsys, "predict-files", *arguments)
    assert f"{tmp_path / 'cat' / '1.jpg'} cannot be read" in error
    assert "--skip_corrupt true" in error
    assert not (tmp_path / "p.json").exists()
    main(["predict-files", *arguments, "--skip_corrupt=true", "--batch_size=1"])
    assert "2 of 10 files could not be read" in capsys.readouterr().out
    content = json.loads((tmp_path / "p.json").read_text())
    assert len(content["predictions"]) == 8
    assert [Path(entry["path"]).name for entry in content["skipped"]] == ["1.jpg", "2.jpg"]
    for file in (tmp_path / "cat").iterdir():
        file.write_bytes(b"")
    error = refused(capsys, "predict-files", *arguments, "--skip_corrupt=true", "--overwrite=true")
    assert "None of the 10 files can be read" in error


def test_what_there_is_to_predict(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    one = Path("pets/cat/0.jpg")
    found = inference.find_files(["pets/cat/0.jpg", "pets/cat", "pets/*/0.jpg"], ImagePredictor)
    assert found[0] == one
    assert len(found) == len(set(found)) == 12
    odd = tmp_path / "photo[1].data"
    odd.write_bytes(b"")
    assert inference.find_files([str(odd)], ImagePredictor) == [odd]
    for name, message in [(str(tmp_path), "the folder holds no image"), ("nothing/*.jpg", "no such file, folder")]:
        with pytest.raises(inference.PredictionError, match=message):
            inference.find_files([name], ImagePredictor)


def test_videos_are_files_and_folders_of_images(tmp_path: Path) -> None:
    write_avi(tmp_path / "a" / "1.avi")
    write_frames(tmp_path / "a" / "2")
    (tmp_path / "a" / "preview.jpg").touch()
    assert inference.find_files([str(tmp_path)], VideoPredictor) == [tmp_path / "a" / "1.avi", tmp_path / "a" / "2"]
    assert inference.find_files([str(tmp_path / "a" / "2")], VideoPredictor) == [tmp_path / "a" / "2"]
    assert inference.find_files([str(tmp_path / "a" / "*.avi")], VideoPredictor) == [tmp_path / "a" / "1.avi"]
    (tmp_path / "none").mkdir()
    with pytest.raises(inference.PredictionError, match=r"the folder holds no video .*Videos end in \.mp4"):
        inference.find_files([str(tmp_path / "none")], VideoPredictor)


def test_wrong_options(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, image = str(home / "run"), str(home / "pets" / "cat" / "0.jpg")
    assert "has to end in .csv or .json" in refused(capsys, "predict-files", run, image, "--out=p.txt")
    assert "top_k is at least 0" in refused(capsys, "predict-files", run, image, "--top_k=-1")
    assert "it has no fit.yaml (no such folder)" in refused(capsys, "predict-files", str(tmp_path / "no"), image)
    error = refused(capsys, "predict-files", run, image, "--device=cpi")
    assert "The device 'cpi' cannot be used" in error
    assert "Did you mean 'cpu'" in error
    assert "there is no file" in refused(capsys, "predict-files", run, image, "--checkpoint=nowhere.npz")


def test_the_backbone_has_to_be_that_of_the_run(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    config["model"]["init_args"]["pretrained"] = False
    (tmp_path / "run" / "fit.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RepLoRAError, match=r"The backbone's weights \(random\) are not those that .* was trained on"):
        inference.load_run(tmp_path / "run")
    config["model"]["class_path"] = "mine.Regression"
    (tmp_path / "run" / "fit.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RepLoRAError, match=r"is of 'mine.Regression', but this is for a run"):
        inference.load_run(tmp_path / "run")


def test_a_module_of_ones_own(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs by its class path alone; its run is opened once the module that defines it is imported."""
    (tmp_path / "my_task.py").write_text(
        "from lightning_modules import ImageClassification\n\n\nclass MyTask(ImageClassification):\n    pass\n"
    )
    run = tmp_path / "run"
    model = [option for option in TINY if option.startswith("--model")]
    rest = [option for option in TINY if not option.startswith("--model")]
    image = str(home / "pets" / "cat" / "0.jpg")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "replora", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    data = [f"--data.root={home / 'pets'}", f"--run_dir={run}", "--trainer.max_epochs=1"]
    fit = call("fit", "--config=image_folder.yaml", "--model=my_task.MyTask", *model, *rest, *data)
    assert fit.returncode == 0, fit.stderr
    error = refused(capsys, "predict-files", str(run), image, f"--out={tmp_path / 'p.csv'}")
    assert "is of 'my_task.MyTask'" in error
    assert "--import_module my_task" in error
    found = call("predict-files", str(run), image, f"--out={tmp_path / 'p.csv'}", "--import_module=my_task")
    assert found.returncode == 0, found.stderr
    assert len(rows(tmp_path / "p.csv")) == 1
    with pytest.raises(RepLoRAError, match=r"--import_module no_such_module"):
        import_module("no_such_module")


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    run = fit_digits(tmp_path / "run", "--seed_everything=7")
    state = torch.get_rng_state()
    predictor = inference.load_run(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert predictor.class_names == [str(digit) for digit in range(10)]
    assert (predictor.reader.framing, predictor.reader.image_size) == ("squash", 32)
    data = json.loads(read_metadata(run / "adapter.safetensors")["data"])
    assert data["normalization"]["name"] == "half"
    assert not data["upright"]


@pytest.mark.parametrize("method", ["lora", "dora", "bitfit", "linear_probe", "full"])
def test_every_method(method: str, home: Path, tmp_path: Path) -> None:
    small = [option for option in TINY if "adapter" not in option]
    options = [f"--config=adapter/{method}.yaml", f"--data.root={home / 'pets'}", f"--run_dir={tmp_path / 'run'}"]
    main(["fit", "--config=image_folder.yaml", *options, *small])
    main(["predict", f"--config={tmp_path / 'run' / 'fit.yaml'}"])
    own = predictions(tmp_path / "run")
    found = inference.load_run(tmp_path / "run").predict([home / "pets" / row["path"] for row in own])
    expected = torch.tensor([float(row["probability"]) for row in own])
    assert torch.allclose(found.probabilities.max(dim=1).values, expected, atol=1e-4)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict-files", "--help"])
    shown = capsys.readouterr().out
    assert "--contact_sheet" in shown
    assert "Classify image or video files with a trained run" in shown


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_files_as_people_have_them(home: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that are not UTF-8, photos with odd EXIF data, copies in foreign folders: the rest is not lost."""
    photos = tmp_path / "photos"
    write_image_folder(photos, ["a", "@eaDir", ".thumbnails"], 2)
    odd = photos / os.fsdecode(b"caf\xe9.jpg")
    try:
        shutil.copy(photos / "a" / "0.jpg", odd)
    except OSError:
        pytest.skip("the file system takes UTF-8 names alone")
    (photos / os.fsdecode(b"no\xe9.jpg")).write_bytes(b"no image")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().replace(b"MM\0*\0\0\0\x08\0\x01", b"MM\0*\0\0\0\x08\0\x02")
    data = data[:-4] + b"\x01\x32\0\x0b\0\0\0\x01\0\0\0\x07" + bytes(4)  # DateTime as a float
    Image.new("RGB", (40, 30), "red").save(photos / "turned.jpg", exif=data)
    out = tmp_path / f"out{suffix}"
    predict(home, str(photos), f"--out={out}", "--skip_corrupt=true")
    printed = capsys.readouterr().out
    assert "4 predictions are in" in printed
    assert "skipped: " in printed
    assert "no\\xe9.jpg" in printed
    listed = rows(out) if suffix == ".csv" else json.loads(out.read_text(encoding="utf-8"))["predictions"]
    assert f"{photos}/caf\\xe9.jpg" in [row["path"] for row in listed]


def test_patterns_leave_foreign_folders_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image_folder(tmp_path, ["a", "@eaDir", "thumbs"], 1)
    (tmp_path / "a" / "b.heic").touch()
    found = inference.find_files([str(tmp_path / "**" / "*.jpg")], ImagePredictor)
    assert found == [tmp_path / "a" / "0.jpg", tmp_path / "thumbs" / "0.jpg"]  # asked for by its own wildcard
    assert inference.find_files([str(tmp_path / "@eaDir" / "*.jpg")], ImagePredictor) == [tmp_path / "@eaDir" / "0.jpg"]
    assert inference.find_files([str(tmp_path)], ImagePredictor) == [tmp_path / "a" / "0.jpg"]
    assert "left out: 2 hidden, foreign or preview folder, 1 .heic" in caplog.text
