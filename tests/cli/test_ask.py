"""`ask` and `predict-files` with runs of images or videos and text: answers about one's own files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch import nn

from datamodules import VLDemoDataModule
from replora import inference
from replora.cli.main import main
from replora.datasets.vision_language import clip_encoder
from replora.datasets.vision_language.clip_encoder import FEATURE_SIZES, TIMM_NAMES, ClipEncoder, encoder_of
from replora.datasets.vision_language.demo import demo_records, demo_scenes
from replora.datasets.vision_language.questions import sort_arguments
from replora.datasets.vision_language.tasks import VL_TASKS, vl_task
from replora.errors import RepLoRAError
from tests.cli.helpers import fit as fit_digits
from tests.cli.test_own_data import refused
from tests.datasets.test_clip_features import write_video
from tests.fake_videos import write_frames
from tests.fake_vl import write_image_text, write_video_text
from tests.tiny_bart import write_tiny_bart

torch.set_num_threads(1)


class TinyClip(nn.Module):
    """Random weights with the shapes of CLIP's encoders."""

    def __init__(self, name: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Conv2d(3, FEATURE_SIZES[name], 32, stride=32)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * self.patches(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_features(images).mean((2, 3))


@pytest.fixture(autouse=True, scope="module")
def _tiny_clip():
    """Encoders whose weights are a seed in a file, so that other weights are other features."""

    def load(name, weights=None, device="cpu", option="--checkpoint"):
        seed = 0
        if weights is not None:
            if not weights.exists():
                return real(name, weights, device, option)
            seed = int(weights.read_text())
        model = TinyClip(name, seed).eval()
        return ClipEncoder(name, encoder_of(name, model), torch.device(device), clip_encoder._digest(model))

    real = clip_encoder.load_encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_encoder, "load_encoder", load)
        patch.setattr("datamodules.vision_language.base.load_encoder", load)
        yield


SMALL = ["--model.caption_tokenizer=approximate", "--model.adapter.rank=2", "--model.adapter.alpha=2"]
SMALL += ["--data.batch_size=6", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
SMALL += ["--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0", "--trainer.max_epochs=1"]
SMALL += ["--model.optimizer.lr=0.02"]


def write_pictures(data: Path, out: Path) -> dict[str, dict[str, Path]]:
    """A random picture for each image of the records, and its features extracted by `prepare clip-features`."""
    random = np.random.default_rng(3)
    found: dict[str, dict[str, Path]] = {}
    for home in ("COCO", "VG", "GQA", "nlvr"):
        features = data / home / "clip_features" / "data_clip_RN101_att"
        names = [file.stem for file in features.iterdir()]
        shutil.rmtree(features)
        (out / home).mkdir(parents=True)
        found[home] = {}
        for name in names:
            found[home][name] = out / home / f"{name}.png"
            small = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(small).resize((90, 60), Image.Resampling.NEAREST).save(found[home][name])
        main(["prepare", "clip-features", str(out / home), str(features), "--progress=false", "--device=cpu"])
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `pictures` of it, and `run`, trained on all image tasks."""
    pytest.importorskip("h5py")
    home = tmp_path_factory.mktemp("images")
    write_tiny_bart(home / "bart")
    write_image_text(home / "data")
    write_pictures(home / "data", home / "pictures")
    options = [f"--model.backbone={home / 'bart'}", f"--data.root={home / 'data'}", f"--run_dir={home / 'run'}"]
    main(["fit", "--config=image_text.yaml", *options, *SMALL])
    return home


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the video tasks, from video files at a frame every 0.5 seconds."""
    pytest.importorskip("h5py")
    home = tmp_path_factory.mktemp("videos")
    write_tiny_bart(home / "bart")
    write_video_text(home / "data")
    for channel in ("tv", "how2", "yc2"):
        features = home / "data" / "video" / "vis_features" / channel / "clip-vit"
        shutil.rmtree(features)
        (home / channel).mkdir()
        for seconds, name in enumerate(("short", "exact", "long"), start=2):
            write_video(home / channel / f"{channel}_{name}.mp4", seconds)
        prepare = ["prepare", "clip-features", str(home / channel), str(features), "--encoder=vit_b32"]
        main([*prepare, "--seconds=0.5", "--progress=false", "--device=cpu"])
    options = [f"--model.backbone={home / 'bart'}", f"--data.root={home / 'data'}", f"--run_dir={home / 'run'}"]
    main(["fit", "--config=video_text.yaml", *options, *SMALL])
    main(["validate", f"--config={home / 'run' / 'fit.yaml'}", f"--run_dir={home / 'run'}"])
    return home


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def submitted(run: Path, name: str) -> list[dict]:
    return json.loads((run / "predictions" / name).read_text())


def test_questions_have_the_answers_of_the_test(images: Path, tmp_path: Path) -> None:
    """Of prepared features, and of files: VQA by a list, captions by a folder, GQA and NLVR2 by lists."""
    run, data, pictures = images / "run", images / "data", images / "pictures"
    vqa = json.loads((data / "vqa" / "karpathy_test.json").read_text())
    listed = [{"image": f"COCO/{row['img_id']}.png", "question": row["sent"]} for row in vqa]
    (pictures / "vqa.json").write_text(json.dumps(listed))
    main(["ask", str(run), str(pictures / "vqa.json"), f"--out={tmp_path / 'vqa.csv'}"])
    theirs = [row["answer"] for row in submitted(run, "vqa_test_predictions.json")]
    found = rows(tmp_path / "vqa.csv")
    assert [row["answer"] for row in found] == theirs
    assert any(theirs)
    assert list(found[0]) == ["image", "question", "answer", "task"]
    assert {row["task"] for row in found} == {"vqa"}

    gqa = json.loads((data / "GQA" / "testdev.json").read_text())
    lines = ["image;question", *(f"GQA/{row['img_id']}.png;{row['sent']}" for row in gqa)]
    (pictures / "gqa.csv").write_text("\n".join(lines))
    predict = ["predict-files", str(run), str(pictures / "gqa.csv"), "--task=gqa", "--progress=false"]
    main([*predict, f"--out={tmp_path / 'gqa.json'}", "--batch_size=2"])
    content = json.loads((tmp_path / "gqa.json").read_text())
    assert content["task"] == "gqa"
    theirs = [row["prediction"] for row in submitted(run, "gqa_test_predictions.json")]
    assert [row["answer"] for row in content["answers"]] == theirs

    nlvr = json.loads((data / "nlvr" / "test.json").read_text())
    lines = ["image,image2,question"]
    lines += [f"nlvr/{row['img0']}.png,nlvr/{row['img1']}.png,{row['sent']}" for row in nlvr]
    (pictures / "nlvr.csv").write_text("\n".join(lines))
    main(["ask", str(run), str(pictures / "nlvr.csv"), f"--out={tmp_path / 'nlvr.csv'}"])  # two images: NLVR2
    theirs = (run / "predictions" / "nlvr2_test_predictions.csv").read_text().splitlines()
    found = rows(tmp_path / "nlvr.csv")
    assert [row["answer"] for row in found] == [line.split(",")[1].lower() for line in theirs]
    assert found[0]["image2"].endswith("test-0-img1.png")

    captions = submitted(run, "coco_test_predictions.json")
    coco = json.loads((data / "COCO" / "dataset_coco.json").read_text())["images"]
    names = {image["cocoid"]: image["filename"].removesuffix(".jpg") for image in coco}
    files = [str(pictures / "COCO" / f"{names[row['image_id']]}.png") for row in captions]
    main(["ask", str(run), *files, f"--out={tmp_path / 'coco.csv'}"])
    assert [row["answer"] for row in rows(tmp_path / "coco.csv")] == [row["caption"] for row in captions]


def test_each_question_is_asked_about_each_image(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = sorted(map(str, (images / "pictures" / "GQA").iterdir()))[:2]
    (tmp_path / "more.txt").write_text('Where?\n\nWho is "she"?\n', encoding="utf-8")
    capsys.readouterr()
    main(["ask", str(images / "run"), *files, "What is it?", str(tmp_path / "more.txt")])
    printed = capsys.readouterr().out.splitlines()
    asked = ["What is it?", "Where?", 'Who is "she"?']
    assert printed[0::2] == [f"{file} | {text}" for file in files for text in asked]
    assert all(line.startswith("  ") for line in printed[1::2])
    main(["ask", str(images / "run"), *files, "Both are green.", "--task", "nlvr2"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{files[0]} | {files[1]} | Both are green."
    assert printed[1].strip() in ("true", "false")


def test_videos_are_read_as_the_features_of_the_training_were(videos: Path, tmp_path: Path) -> None:
    run = videos / "run"
    lists = {"tvqa": "tvqa/tvqa_val", "how2qa": "how2qa/how2qa_val_release", "yc2c": "yc2c/yc2c_val_release"}
    channels = {"tvqa": "tv", "how2qa": "how2", "yc2c": "yc2"}
    for task, name in lists.items():
        lines = (videos / "data" / "video" / "ann" / f"{name}.jsonl").read_text().splitlines()
        asked = [
            {"video": f"{channels[task]}/{row['vid_name']}.mp4", "question": row.get("q"), "times": row.get("ts", "")}
            | {"subtitles": "Hello there. Bye."}
            | {key: value for key, value in row.items() if key in ("a0", "a1", "a2", "a3", "a4")}
            for row in map(json.loads, lines)
        ]
        (videos / f"{task}.jsonl").write_text("\n".join(map(json.dumps, asked)))
        out = tmp_path / f"{task}.csv"
        main(["ask", str(run), str(videos / f"{task}.jsonl"), f"--task={task}", f"--out={out}"])
        data = inference.data_of(run)
        data.root = videos / "data"
        records, features = data.read_task(task, "val")
        selected, questions = inference.find_questions([str(videos / f"{task}.jsonl")], data, task, {})
        answerer = inference.load_answerer(run, data, selected)
        for record, question in zip(records, questions, strict=True):
            torch.testing.assert_close(answerer.features.read(str(question.files[0])), features.read(record.images[0]))
        theirs = run / "predictions" / f"{task}_val_predictions.json"
        found = [row["answer"] for row in rows(out)]
        if task == "yc2c":
            said = [json.loads(line) for line in theirs.with_suffix(".jsonl").read_text().splitlines()]
            assert found == [row["descs"][0]["desc"] for row in said]
        else:
            written = json.loads(theirs.read_text())
            numbers = [int(text[1:]) if text in ("a0", "a1", "a2", "a3", "a4") else None for text in found]
            assert all(n is None or n == m for n, m in zip(numbers, written.values(), strict=True))


def test_frames_of_a_video(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    frames = write_frames(tmp_path / "clip", count=8)
    assert "--fps 3" in refused(capsys, "ask", str(videos / "run"), str(frames), "--task=tvc")
    main(["ask", str(videos / "run"), str(frames), "--task=tvc", "--fps=3"])
    choices = '--choices=["in the kitchen", "at home"]'
    main(["ask", str(videos / "run"), str(frames), "Where?", "--fps=3", choices, "--times=0-2"])
    assert f"{frames} | Where?" in capsys.readouterr().out
    error = refused(capsys, "ask", str(videos / "run"), str(frames), "Where?", "--fps=3")
    assert "tvqa needs 2 to 5 choices" in error


def test_pictures_of_the_demonstration(tmp_path: Path) -> None:
    """The answers of a short run to scenes in files are those of its test."""
    run = tmp_path / "run"
    main(["fit", "--config=vl_demo.yaml", *SMALL[:1], "--trainer.max_epochs=1", f"--run_dir={run}", *SMALL[5:6]])
    scenes = demo_scenes("test")
    records = demo_records("vqa", "test", scenes)[:40]
    for record in records:
        Image.fromarray(scenes[record.images[0]].picture()).save(tmp_path / f"{record.images[0]}.png")
    listed = [{"image": f"{record.images[0]}.png", "question": record.text} for record in records]
    (tmp_path / "questions.json").write_text(json.dumps(listed))
    main(["ask", str(run), str(tmp_path / "questions.json"), f"--out={tmp_path / 'a.csv'}"])
    theirs = {row["question_id"]: row["answer"] for row in submitted(run, "vqa_test_predictions.json")}
    found = rows(tmp_path / "a.csv")
    equal = sum(row["answer"] == theirs[record.id] for row, record in zip(found, records, strict=True))
    assert equal >= 39  # colors of 8 bits differ in the third digit


def test_the_encoder_is_that_of_the_training(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = str(next((images / "pictures" / "GQA").iterdir()))
    (tmp_path / "other").write_text("1")
    error = refused(capsys, "ask", str(images / "run"), picture, "Why?", f"--encoder={tmp_path / 'other'}")
    assert "not those that extracted the features" in error
    error = refused(capsys, "ask", str(images / "run"), picture, "Why?", f"--encoder={tmp_path / 'none'}")
    assert "Fetch its model.safetensors from huggingface.co/timm/" in error
    assert "give it with --encoder" in error
    record = json.loads((images / "run" / "results.json").read_text())["data"]["extractions"]
    assert set(record) == {"vqa", "gqa", "nlvr2", "coco"}
    assert record["vqa"]["encoder"] == "rn101"
    assert len(record["vqa"]["weights"]) == 16


def test_a_run_on_features_of_unknown_origin(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog
) -> None:
    """Features of another width are refused; of the right one, an encoder is assumed with a warning."""
    write_image_text(tmp_path / "data")
    run = tmp_path / "run"
    options = [f"--model.backbone={images / 'bart'}", f"--data.root={tmp_path / 'data'}", "--data.tasks=[vqa]"]
    widths = ["--data.feature_size=6", "--model.feature_size=6"]
    main(["fit", "--config=image_text.yaml", *options, *SMALL, *widths, f"--run_dir={run}"])
    picture = str(next((images / "pictures" / "GQA").iterdir()))
    assert "trained on features of width 6 of an encoder that no" in refused(capsys, "ask", str(run), picture, "Why?")
    for record in (images / "data").glob("*/clip_features/*/extraction.json"):
        shutil.copy(record, tmp_path / f"{record.parts[-4]}.json")
        record.unlink()
    unknown = tmp_path / "unknown"
    options = [f"--model.backbone={images / 'bart'}", f"--data.root={images / 'data'}", "--data.tasks=[vqa]"]
    main(["fit", "--config=image_text.yaml", *options, *SMALL, f"--run_dir={unknown}"])
    main(["ask", str(unknown), picture, "Why?"])
    assert "does not record how the features" in caplog.text
    for home in ("COCO", "VG", "GQA", "nlvr"):
        features = images / "data" / home / "clip_features" / "data_clip_RN101_att"
        shutil.copy(tmp_path / f"{home}.json", features / "extraction.json")


def test_splits_of_two_encoders_are_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(images / "data", tmp_path / "data")
    record = tmp_path / "data" / "GQA" / "clip_features" / "data_clip_RN101_att" / "extraction.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weights": "other"}))
    options = [f"--model.backbone={images / 'bart'}", f"--data.root={tmp_path / 'data'}", "--data.tasks=[gqa]"]
    error = refused(capsys, "fit", "--config=image_text.yaml", *options, *SMALL, f"--run_dir={tmp_path / 'run'}")
    assert "gqa: the features of the split 'test' have another weights (other)" in error or "split 'val'" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{picture}", "What?", "--task=vqq"], "the run was not trained on 'vqq'. Did you mean 'vqa'"),
        (["{picture}", "What?", "--task=coco"], "coco describes what it sees and takes no question"),
        (["{picture}", "--task=vqa"], "vqa needs a question, but '' was given"),
        (["{picture}", " ? ", "--task=vqa"], "vqa needs a question"),
        (["{picture}", "Both?", "--task=nlvr2"], "nlvr2 asks about two images at once, but 1 was given"),
        (["What is it?"], "No image was given for the question 'What is it?'"),
        (["fotos/a.jpg", "What?"], "fotos/a.jpg: there is no such file"),
        (["{picture}", "none.csv"], "There is no list of questions none.csv"),
        (["{picture}", "What?", "--batch_size=0"], "batch_size"),
        (["{picture}", "What?", "--out=a.png"], "the file has to end in .csv or .json"),
        (["{picture}", "What?", "--times=1-2"], "neither subtitles nor times"),
        (["{picture}", "What?", '--choices=["a", "b"]'], "vqa has no choices"),
        (["{picture}", "What?", "--device=cuda:99"], "The device 'cuda:99' cannot be used"),
        (["{picture}", "caf\udce9?"], "The argument caf\\xe9? is not UTF-8 text"),
    ],
)
def test_what_cannot_be_asked(images: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str) -> None:
    picture = str(next((images / "pictures" / "GQA").iterdir()))
    given = [argument.format(picture=picture) for argument in arguments]
    assert message in refused(capsys, "ask", str(images / "run"), *given)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "picture,question\nx.png,What?\n", "names no file: it has picture, question"),
        ("a.csv", "image,question\nx.png,What?\n", "a.csv, line 2: there is no"),
        ("a.csv", "image,question\nx.png,What?,more\n", "has more cells than the first line"),
        ("a.csv", "", "holds no question"),
        ("a.txt", "\n\n", "holds no question"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"image": "x.png"}', "holds a dict, not a list"),
        ("a.json", '["x.png"]', "record 1 is 'x.png', not an object"),
        ("a.jsonl", '{"image": "x.png"}\n{', "is not JSON (line 2"),
        ("a.csv", "caf\u00e9", "is not UTF-8 text"),
    ],
)
def test_lists_that_are_wrong(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    assert message in refused(capsys, "ask", str(images / "run"), str(tmp_path / name))


def test_runs_of_other_kinds(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = str(next((images / "pictures" / "GQA").iterdir()))
    run = fit_digits(tmp_path / "digits")
    error = refused(capsys, "ask", str(run), picture, "What?")
    assert "is of 'ImageClassification', but only a run of 'VisionLanguage' answers" in error
    assert "replora-cli predict-files" in error
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        assert "is not the directory of a finished fit" in refused(capsys, "ask", str(folder), picture, "What?")
    sheet = f"--contact_sheet={tmp_path / 's.png'}"
    assert "contact_sheet" in refused(capsys, "predict-files", str(images / "run"), picture, "What?", sheet)
    shutil.copytree(images / "run", tmp_path / "run")
    (tmp_path / "run" / "adapter.safetensors").unlink()
    assert "adapter.safetensors" in refused(capsys, "ask", str(tmp_path / "run"), picture, "What?")


def test_damaged_images(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = next((images / "pictures" / "GQA").iterdir())
    shutil.copy(good, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(good.read_bytes()[:60])
    error = refused(capsys, "ask", str(images / "run"), str(tmp_path), "What?")
    assert "b.png cannot be read" in error
    assert "--skip_corrupt true" in error
    main(["ask", str(images / "run"), str(tmp_path), "What?", "Who?", "--skip_corrupt=true"])
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'a.png'} | What?" in printed
    assert "2 of 4 questions are about such files" in printed
    (tmp_path / "a.png").write_bytes(b"")
    assert "None of the files" in refused(
        capsys, "ask", str(images / "run"), str(tmp_path), "What?", "--skip_corrupt=true"
    )


@pytest.mark.parametrize("kind", ["encoder", "demonstration"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_was_stored_turned_is_seen_upright(
    images: Path, tmp_path: Path, kind: str, orientation: int
) -> None:
    """A phone stores what its sensor saw and says in EXIF how to turn it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        ImageOps.exif_transpose(photo).save(tmp_path / "upright.png", exif=Image.Exif())
    if kind == "encoder":
        data = inference.data_of(images / "run")
        load = [
            inference.load_answerer(images / "run", data, vl_task("vqa"), upright=u).features for u in (True, False)
        ]
    else:
        load = [VLDemoDataModule().file_features({}, None, "cpu", upright=upright) for upright in (True, False)]
    turned, stored = (features.read(str(tmp_path / "photo.png")) for features in load)
    torch.testing.assert_close(turned, load[1].read(str(tmp_path / "upright.png")), rtol=0, atol=0)
    torch.testing.assert_close(stored, load[1].read(str(tmp_path / "plain.png")), rtol=0, atol=0)
    assert torch.equal(turned, stored) == (orientation == 1)


def test_photos_are_turned_unless_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By both verbs that answer questions."""
    picture = str(next((images / "pictures" / "GQA").iterdir()))
    given: list[bool] = []
    real = clip_encoder.FileFeatures.__init__

    def init(self, *arguments, **options) -> None:
        real(self, *arguments, **options)
        given.append(self.reader.upright)

    monkeypatch.setattr(clip_encoder.FileFeatures, "__init__", init)
    main(["ask", str(images / "run"), picture, "Why?"])
    main(["ask", str(images / "run"), picture, "Why?", "--upright=false"])
    main(["predict-files", str(images / "run"), picture, "Why?", f"--out={tmp_path / 'a.csv'}", "--progress=false"])
    assert given == [True, False, True]


def test_texts_are_asked_as_they_are(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture, caplog) -> None:
    picture = str(next((images / "pictures" / "GQA").iterdir()))
    texts = ["Is it \"red\", or 'blue'?", "¿Qué es 🐕?", "two\nlines", "- what?\\n", "5", "null", "[a, b]: {c}", "#"]
    main(["ask", str(images / "run"), picture, *texts[:-1], f"--out={tmp_path / 'a.json'}"])
    content = json.loads((tmp_path / "a.json").read_text())
    assert [row["question"] for row in content["answers"]] == texts[:-1]
    error = refused(capsys, "ask", str(images / "run"), picture, "Who?", f"--out={tmp_path / 'a.json'}")
    assert "a.json already exists and is not overwritten" in error
    main(["ask", str(images / "run"), picture, "Who?", f"--out={tmp_path / 'a.json'}", "--overwrite=true"])
    assert len(json.loads((tmp_path / "a.json").read_text())["answers"]) == 1
    assert "vqa needs a question, but '#' was given" in refused(
        capsys, "ask", str(images / "run"), picture, "#", "--task=vqa"
    )
    main(["ask", str(images / "run"), picture, "why " * 50])
    assert "1 of 1 texts are longer than the 20 tokens that vqa reads" in caplog.text


def test_what_is_a_file_and_what_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a dog").touch()
    given = [
        "a dog",
        "x.jpg",
        "What is x.jpg?",
        "photos/*.jpg",
        "red/blue?",
        "fotos/",
        "q.txt",
        "what.txt is it",
        "n" * 5000,
    ]
    files, lists, texts = sort_arguments([*given, ""], [".jpg"])
    assert files == ["a dog", "x.jpg", "photos/*.jpg", "fotos/"]
    assert lists == [Path("q.txt")]
    assert texts == ["What is x.jpg?", "red/blue?", "what.txt is it", "n" * 5000, ""]


def test_every_task_has_an_encoder() -> None:
    assert {task.video for task in VL_TASKS.values()} == {True, False}
    assert set(TIMM_NAMES) == set(FEATURE_SIZES)
    with pytest.raises(RepLoRAError, match="not the directory"):
        inference.answers_questions(Path("nowhere"))
