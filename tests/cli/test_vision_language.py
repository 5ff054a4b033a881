"""The eight vision-and-language tasks through the command line, on a few records in their true layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import replora
from datamodules import ImageTextDataModule
from replora.backbones import vl_bart
from replora.cli.main import main
from replora.errors import RepLoRAError
from replora.results import read_results
from tests.cli.test_distributed import run_process
from tests.fake_vl import write_image_text, write_video_text
from tests.test_failures import TerminateAt, assert_equal_runs, callback
from tests.tiny_bart import write_tiny_bart

torch.set_num_threads(1)
SMALL = [
    "--model.feature_size=6",
    "--data.feature_size=6",
    "--data.num_workers=0",
    "--model.caption_tokenizer=approximate",
    "--model.adapter.rank=2",
    "--model.adapter.alpha=2",
    "--data.batch_size=6",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--trainer.num_sanity_val_steps=0",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("vl")
    write_tiny_bart(home / "bart")
    write_video_text(write_image_text(home / "data"))
    return home


def options(home: Path, config: str, *more: str) -> list[str]:
    return [f"--config={config}", f"--model.backbone={home / 'bart'}", f"--data.root={home / 'data'}", *SMALL, *more]


def test_image_tasks_from_training_to_submission(home, tmp_path, caplog, capsys):
    run = tmp_path / "run"
    with caplog.at_level("INFO", "lightning.pytorch"):
        main(["fit", *options(home, "image_text.yaml"), "--trainer.max_epochs=1", f"--run_dir={run}"])
    for split in ("val", "test"):  # one line for all tasks, and no table of Lightning for each of their loaders
        lines = [text for text in caplog.messages if text.startswith(f"{split}: vqa accuracy ")]
        assert len(lines) == 1
        assert all(words in lines[0] for words in ("gqa accuracy", "nlvr2 accuracy", "coco cider", "score"))
    assert "DataLoader" not in capsys.readouterr().out
    found = read_results(run)
    metrics = {
        "accuracy/vqa",
        "label_score/vqa",
        "accuracy/gqa",
        "accuracy/nlvr2",
        "consistency/nlvr2",
        "cider/coco",
        "score",
    }
    assert {f"val/{name}" for name in metrics} <= set(found["fit"]["metrics"])
    assert {f"test/{name}" for name in metrics} == set(found["test"]["metrics"])
    assert all(0 <= value < 10 for value in found["test"]["metrics"].values())
    assert found["test"]["answers"] == {"vqa": 3, "gqa": 3, "nlvr2": 4, "coco": 3}
    assert found["test"]["caption_tokenizer"] == "approximate"
    assert found["test"]["generation"]["coco"]["num_beams"] == 5
    assert found["data"]["split_sizes"]["train"] == {"vqa": 8, "gqa": 8, "nlvr2": 8, "coco": 40}
    assert found["data"]["batch_sizes"] == {"vqa": 6, "gqa": 10, "nlvr2": 2, "coco": 5}
    assert found["fit"]["steps"] == 2 + 1 + 4 + 8
    extra = found["extra_parameters"]
    assert found["parameters"]["head"] == extra["visual_embedding"] + extra["biases"]
    files = {file.name: file.read_text() for file in (run / "predictions").iterdir()}
    assert set(files) == {
        "vqa_test_predictions.json",
        "gqa_test_predictions.json",
        "nlvr2_test_predictions.csv",
        "coco_test_predictions.json",
    }
    assert [row["question_id"] for row in json.loads(files["vqa_test_predictions.json"])] == [
        11000,
        12001,
        13002,
    ]
    assert [line.split(",")[0] for line in files["nlvr2_test_predictions.csv"].splitlines()] == [
        "test-0-0-0",
        "test-0-1-0",
        "test-1-0-0",
        "test-1-1-0",
    ]
    main(["test", f"--config={run / 'fit.yaml'}", f"--run_dir={run}"])
    again = read_results(run)["test"]
    assert again["metrics"] == found["test"]["metrics"], "the checkpoint holds all that was trained"
    assert {file.name: file.read_text() for file in (run / "predictions").iterdir()} == files
    submit = ["--data.predict_split=submit", "--data.tasks=[gqa]"]
    main(["predict", f"--config={run / 'fit.yaml'}", f"--run_dir={run}", *submit])
    rows = json.loads((run / "predictions" / "gqa_submit_predictions.json").read_text())
    assert [set(row) for row in rows] == [{"questionId", "prediction"}] * 2


def test_the_revision_of_the_model_is_that_of_the_datas_tokenizer(home, tmp_path, monkeypatch):
    asked = []

    def load(*given):
        asked.append(given)
        raise RepLoRAError("enough")

    def setup(data, stage):  # noqa: ARG001
        monkeypatch.setattr(vl_bart, "load_vl_tokenizer", load)
        return data.tokenizer

    monkeypatch.setattr(ImageTextDataModule, "setup", setup)
    with pytest.raises(SystemExit):
        main(["fit", *options(home, "image_text.yaml"), "--model.revision=abc", f"--run_dir={tmp_path}"])
    assert asked == [(str(home / "bart"), "abc")]


@pytest.mark.parametrize("recipe", ["", "recipe/vl_video_dora.yaml"])
def test_video_tasks_from_training_to_submission(home, tmp_path, recipe):
    run = tmp_path / "run"
    recipes = [f"--config={recipe}"] if recipe else []
    given = [*recipes, *options(home, "video_text.yaml")[1:], "--trainer.max_epochs=1", f"--run_dir={run}"]
    main(["fit", "--config=video_text.yaml", *given])
    main(["validate", f"--config={run / 'fit.yaml'}", f"--run_dir={run}"])
    found = read_results(run)
    assert found["method"] == ("dora" if recipe else "replora")
    expected = {
        "accuracy/tvqa",
        "unparsed/tvqa",
        "accuracy/how2qa",
        "unparsed/how2qa",
        "cider/tvc",
        "cider/yc2c",
        "score",
    }
    assert {f"val/{name}" for name in expected} == set(found["validate"]["metrics"])
    assert "test" not in found
    for name, value in found["validate"]["metrics"].items():
        assert found["fit"]["metrics"][name] == value
    names = {f"{task}_val_predictions.json" for task in ("tvqa", "how2qa")}
    names |= {f"{task}_val_predictions.jsonl" for task in ("tvc", "yc2c")}
    assert {file.name for file in (run / "predictions").iterdir()} == names
    if not recipe:
        main(["predict", f"--config={run / 'fit.yaml'}", f"--run_dir={run}", "--data.predict_split=test"])
        answers = json.loads((run / "predictions" / "tvqa_test_predictions.json").read_text())
        assert set(answers) == {"100", "101", "102"}
        assert all(0 <= answer < 5 for answer in answers.values())


def test_a_trained_run_is_merged_into_a_plain_model_but_not_exported(home, tmp_path, capsys):
    """What it says before and after merging is the same; biases and visual embedding are in it."""
    from replora.backbones.vl_bart import VLBart
    from replora.runs import open_run

    run = tmp_path / "run"
    small = ["--data.tasks=[nlvr2]", "--trainer.max_epochs=1", "--model.optimizer.lr=0.05", "--test_after_fit=false"]
    main(["fit", *options(home, "image_text.yaml", *small), f"--run_dir={run}"])
    main(["merge", str(run), "--out", str(tmp_path / "merged")])
    trained, merged = open_run(run).model, VLBart.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        logits = [model(**trained.dummy_inputs).logits for model in (trained, merged)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    state = replora.read_adapter(run / "adapter.safetensors")[1]
    assert torch.equal(state["model.encoder.layers.0.fc1.bias"], merged.model.encoder.layers[0].fc1.bias)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "from replora.backbones.vl_bart import VLBart" in card
    assert "Loading it needs that software" in card
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", str(tmp_path / "peft")])
    message = " ".join(capsys.readouterr().err.split())
    assert "parameters of the backbone trained beside the adapter" in message
    assert "replora-cli merge" in message
    assert not (tmp_path / "peft").exists()


FEW = [
    "--data.tasks=[vqa, nlvr2, coco]",
    "--model.dropout=0",
    "--model.adapter.dropout=0",
    "--trainer.limit_val_batches=0",
]
FEW += ["--test_after_fit=false", "--data.task_batch_sizes={vqa: 4, nlvr2: 4, coco: 8}", "--trainer.max_epochs=2"]


def test_a_run_cut_in_the_middle_of_an_epoch_equals_the_whole_one(home, tmp_path):
    given = options(home, "image_text.yaml", *FEW, "--model.dropout=0.1")
    main(["fit", *given, f"--run_dir={tmp_path / 'whole'}"])
    cut = [*given, f"--run_dir={tmp_path / 'cut'}"]
    with pytest.raises(SystemExit):
        main(["fit", *cut, *callback(TerminateAt, epoch=1, batch=3)])
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9 + 4
    main(["fit", *cut, "--ckpt_path=last"])
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_two_processes_train_and_measure_as_one(home, tmp_path):
    """Batches that do not divide by two, weighted answers, and means over tokens."""
    one = [*options(home, "image_text.yaml", *FEW), "--test_after_fit=true"]
    main(["fit", *one, f"--run_dir={tmp_path / 'one'}"])
    two = [
        *one,
        "--config=trainer/ddp_cpu.yaml",
        "--data.task_batch_sizes={vqa: 2, nlvr2: 2, coco: 4}",
        "--run_dir=two",
    ]
    two += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = run_process(tmp_path, "fit", *two)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sync_dist" not in done.stderr
    first, second = (replora.read_adapter(tmp_path / name / "adapter.safetensors")[1] for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5, msg=name)
    found = [read_results(tmp_path / name) for name in ("one", "two")]
    assert [content["fit"]["devices"] for content in found] == [1, 2]
    losses = [{k: v for k, v in c["fit"]["metrics"].items() if k.startswith("train/loss")} for c in found]
    assert set(losses[0]) == {"train/loss", "train/loss/vqa", "train/loss/nlvr2", "train/loss/coco"}
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert found[0]["test"]["answers"] == found[1]["test"]["answers"] == {"vqa": 3, "nlvr2": 4, "coco": 3}
    assert found[1]["test"]["metrics"] == pytest.approx(found[0]["test"]["metrics"], abs=1e-4)
    for file in (tmp_path / "one" / "predictions").iterdir():
        assert (tmp_path / "two" / "predictions" / file.name).read_text() == file.read_text()
