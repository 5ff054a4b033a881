"""A finished run in use: `replora.load_run`, `export` to every format, and their equal probabilities."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import replora
from replora import RepLoRAError
from replora.cli.main import main
from replora.datasets.image.read import ImageReader
from replora.export import onnx, usage
from tests.cli.helpers import fit
from tests.cli.test_own_data import TINY, refused
from tests.fake_data import write_image_folder

torch.set_num_threads(1)

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
CLASSES = ["<img src=x onerror=alert(1)>", "chat d'été", "x;y,|z"]


def write_odd_photos(folder: Path) -> list[Path]:
    """A photo in every form that files have: turned, gray, palette with transparency, CMYK, 16 bit."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).resize((112, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    photo.convert("L").save(folder / "gray.png")
    palette = photo.quantize(16)
    palette.info["transparency"] = 3
    palette.save(folder / "palette.png", transparency=3)
    photo.convert("CMYK").save(folder / "cmyk.tiff")
    Image.fromarray(rng.integers(0, 65535, (30, 30), dtype=np.uint16)).save(folder / "sixteen.png")
    photo.save(folder / "plain.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, trained on three classes with odd names, and `odd`, photos in every form."""
    home = tmp_path_factory.mktemp("use")
    write_image_folder(home / "pets", CLASSES)
    options = [f"--data.root={home / 'pets'}", "--model.pretrained=true", "--model.optimizer.lr=0.02"]
    options += ["--trainer.max_epochs=3", "--model.schedule.warmup_epochs=0", "--data.framing=crop"]
    main(["fit", "--config=image_folder.yaml", *TINY, *options, f"--run_dir={home / 'run'}"])
    write_odd_photos(home / "odd")
    return home


def test_a_predictor_gives_the_numbers_of_predict_files(home: Path, tmp_path: Path) -> None:
    """To the bit on the same files, whether they are given as paths, as images or as arrays; one or many."""
    files = sorted((home / "odd").iterdir())
    main(["predict-files", str(home / "run"), str(home / "odd"), f"--out={tmp_path / 'p.json'}", "--progress=false"])
    written = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    predictor = replora.load_run(home / "run")
    found = predictor.predict([str(file) for file in files], embeddings=True)
    assert found.class_names == written["class_names"] == sorted(CLASSES)
    assert [entry["probabilities"] for entry in written["predictions"]] == [
        {name: round(p, 6) for name, p in row} for row in found.top(0)
    ]
    assert found.labels == [entry["predicted"] for entry in written["predictions"]]
    images = [Image.open(io.BytesIO(file.read_bytes())) for file in files]
    again = predictor.predict(image for image in images)
    assert torch.equal(again.probabilities, found.probabilities)
    assert again.sources == list(range(len(files)))
    plain = np.asarray(Image.open(home / "odd" / "plain.png"))
    one = predictor.predict(home / "odd" / "plain.png", embeddings=True)
    for given in (plain, plain[None], [plain], np.dstack([plain, np.full(plain.shape[:2], 255, np.uint8)])):
        assert torch.equal(predictor.predict(given).probabilities, one.probabilities)
    assert torch.equal(predictor.predict([Image.open(files[0])] * 40).probabilities[7], found.probabilities[0])
    assert found.embeddings is not None
    head = predictor.model.get_submodule(predictor.head)
    with torch.no_grad():
        torch.testing.assert_close(head(found.embeddings).softmax(dim=1), found.probabilities)
    assert predictor.predict([]).probabilities.shape == (0, 3)


def test_the_example_of_the_page_runs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "load_run" in code)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos").symlink_to(home / "run")
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(home / "odd" / "turned.jpg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "serving.md", "exec"), names)
    assert names["found"].sources == [Path("a.jpg"), Path("b.jpg")]
    assert names["found"].embeddings.shape == (2, 128)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"array of uint8 of shape \(3, 8, 8\). An image is uint8 \(H, W\)"),
        (np.zeros((8, 8, 3)), "array of float64"),
        (torch.zeros(3, 8, 8), "tensor.permute"),
        (7, "An input is '7' .int.. This run takes paths of images, images of Pillow"),
        (b"a.jpg", "An input is .* .bytes."),
        ([Image.new("F", (5, 5))], "in memory .F, 5 x 5 pixels. cannot be used: its pixels are floating-point"),
        ("nowhere.jpg", "nowhere.jpg cannot be read: No such file"),
        (".", "cannot be read: Is a directory. Name the files in it"),
    ],
)
def test_inputs_that_are_no_images_are_named(home: Path, given: object, message: str) -> None:
    with pytest.raises(RepLoRAError, match=message):
        replora.load_run(home / "run").predict(given)


def test_runs_that_cannot_be_used_are_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RepLoRAError, match=r"no fit.yaml \(no such folder\)"):
        replora.load_run(tmp_path / "none")
    with pytest.raises(RepLoRAError, match=r"run is 3 \(int\). It must be a string or a path"):
        replora.load_run(3)  # type: ignore[arg-type]
    with pytest.raises(RepLoRAError, match="The device 'cpi' cannot be used"):
        replora.load_run(home / "run", "cpi")
    with pytest.raises(RepLoRAError, match="batch_size=0 is out of range"):
        replora.load_run(home / "run", torch.device("cpu")).predict("a.jpg", batch_size=0)
    unfinished = fit(tmp_path / "unfinished")
    (unfinished / "adapter.safetensors").unlink()
    with pytest.raises(RepLoRAError, match=r"adapter\.safetensors"):
        replora.load_run(unfinished)


def test_a_moved_run_in_a_folder_that_cannot_be_written(home: Path, tmp_path: Path) -> None:
    (home / "run").rename(tmp_path / "moved")
    try:
        (tmp_path / "moved").chmod(0o555)
        assert len(replora.load_run(tmp_path / "moved").predict(home / "odd" / "gray.png").labels) == 1
    finally:
        (tmp_path / "moved").chmod(0o755)
        (tmp_path / "moved").rename(home / "run")


# --- formats


@pytest.fixture(scope="module")
def exported(home: Path) -> dict[str, Path]:
    """Format -> the folder that it was written to."""
    folders = {}
    for form in ("peft", "adapter", "timm", "onnx"):
        folders[form] = home / form
        out = home / form / "small.safetensors" if form == "adapter" else home / form
        main(["export", str(home / "run"), f"--format={form}", f"--out={out}"])
    return folders


LIBRARIES = {"peft": "peft", "adapter": "replora", "timm": "timm", "onnx": "onnx"}


@pytest.mark.parametrize("form", LIBRARIES)
def test_the_code_of_every_card_gives_the_probabilities_of_the_predictor(
    form: str,
    home: Path,
    exported: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = next(exported[form].glob("*.md")).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    text = card.replace("\\", "")  # Markdown's escapes
    for part in ("chat d'été", "32 x 32 pixels, crop", "test/accuracy", "pets", f'library_name: "{LIBRARIES[form]}"'):
        assert part in text
    assert "<img" not in card.replace("\\<", "")
    monkeypatch.chdir(exported[form])
    predictor = replora.load_run(home / "run")
    for name in ("turned.jpg", "gray.png", "plain.png"):
        shutil.copy(home / "odd" / name, "photo.jpg")
        found = predictor.predict("photo.jpg")
        names: dict = {}
        exec(compile(code, "card", "exec"), names)
        np.testing.assert_allclose(np.asarray(names["probabilities"]), found.probabilities[0], atol=2e-6)
        assert list(names["classes"]) == found.class_names
        assert capsys.readouterr().out.startswith(found.labels[0])
    Path("photo.jpg").unlink()


def test_a_file_of_onnx_takes_batches_and_says_what_it_needs(home: Path, exported: dict[str, Path]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported["onnx"] / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    preprocessing = json.loads(metadata["preprocessing"])
    assert (preprocessing["framing"], preprocessing["upright"], preprocessing["image_size"]) == ("crop", True, 32)
    assert "test/accuracy" in json.loads(metadata["metrics"])
    predictor = replora.load_run(home / "run")
    files = sorted((home / "odd").iterdir()) * 2
    batch = torch.stack([predictor.read(file) for file in files]).div(255).sub(predictor.mean).div(predictor.std)
    (found,) = session.run(["probabilities"], {"image": batch.numpy()})
    np.testing.assert_allclose(found, predictor.predict(files).probabilities, atol=2e-6)
    model = onnx._WithProbabilities(predictor.model)
    assert onnx._verify(model, batch[:2], exported["onnx"] / "model.onnx") < 2e-6
    with torch.no_grad():
        predictor.model.get_submodule(predictor.head).bias += 0.1
    with pytest.raises(RepLoRAError, match=r"The outputs of onnxruntime and torch differ by 0\.1"):
        onnx._verify(model, batch[:2], exported["onnx"] / "model.onnx")


@pytest.mark.parametrize("framing", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "tf1_bilinear"])
def test_the_code_reads_a_photo_as_the_run_does(
    framing: str, interpolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_odd_photos(tmp_path / "odd")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    data = {"image_size": 50, "interpolation": interpolation, "framing": framing, "upright": True}
    data |= {"normalization": {"mean": mean, "std": std}}
    reader = ImageReader(50, interpolation, framing, True, mean=tuple(mean))  # type: ignore[arg-type]
    for name in ("turned.jpg", "plain.png", "cmyk.tiff"):
        shutil.copy(tmp_path / "odd" / name, "photo.jpg")
        names: dict = {}
        exec(usage._joined(usage._photo(data)), names)
        pixels = reader.read(Path("photo.jpg")).permute(1, 2, 0) / 255
        wanted = ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)
        np.testing.assert_allclose(names["batch"][0], wanted, atol=2e-6)


def test_formats_that_do_not_fit_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(home / "run"), f"--out={tmp_path / 'out'}"
    with monkeypatch.context() as patch:
        patch.setattr("replora.export.onnx.find_spec", lambda name: None if name == "onnxruntime" else name)
        error = refused(capsys, "export", run, "--format=onnx", out)
        assert 'needs onnxruntime, which is not installed: pip install "replora[onnx]"' in error
    assert "'onnx'" in refused(capsys, "export", run, "--format=onxx", out)
    assert not any(tmp_path.iterdir())
    (tmp_path / "a.md").write_text("mine")
    file = f"--out={tmp_path / 'a.safetensors'}"
    assert "a.md already exists" in refused(capsys, "export", run, "--format=adapter", file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.md"]
