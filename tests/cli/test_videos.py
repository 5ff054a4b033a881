"""SSv2, HMDB51 and custom videos through the command line, in their real containers, codecs and formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from replora.adapters.state import read_metadata
from replora.cli.main import main
from replora.results import read_results, weights_source
from tests.backbones.test_video import videomae_folder
from tests.fake_videos import write_hmdb51, write_ssv2, write_video_folder
from tests.lightning_modules.helpers import StopError

torch.set_num_threads(1)

TINY = [
    "--model.backbone=swin3d_nano",
    "--model.pretrained=false",
    "--model.adapter.rank=2",
    "--model.adapter.hidden=8",
    "--data.clips.image_size=16",
    "--data.clips.num_frames=4",
    "--data.batch_size=4",
    "--data.num_workers=0",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def predictions(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ssv2(tmp_path_factory.mktemp("ssv2") / "data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_folder(tmp_path_factory.mktemp("own") / "moves")


def test_ssv2_from_prepare_to_predict(ssv2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["prepare", "ssv2", "--root", str(ssv2), "--check_sizes", "false"])
    assert "complete" in capsys.readouterr().out
    run = tmp_path / "run"
    main(["fit", "--config=ssv2.yaml", *TINY, f"--data.root={ssv2}", "--data.check_sizes=false", f"--run_dir={run}"])
    main(["test", f"--config={run / 'fit.yaml'}"])
    main(["predict", f"--config={run / 'fit.yaml'}"])
    content = read_results(run)
    data = content["data"]
    batch = content["fit"]["batch"]["per_process"]
    assert content["fit"]["optimizer"]["lr"] == pytest.approx(0.1 * batch / 256)
    assert (data["task"], data["reported_on"]) == ("ssv2", "the official validation set")
    assert data["recipe"] == "v_petl, changed: batch_size, clips.image_size, clips.num_frames, max_epochs"
    assert (data["clips"]["test_clips"], data["clips"]["test_crops"], data["clips"]["flip"]) == (4, 3, 0.0)
    assert data["split_sizes"] == {"trainval": 9, "test": 6}
    assert content["test"]["metrics"]["test/skipped"] == 0
    assert weights_source(content["test"]).endswith("(after 1 epochs)")
    rows = predictions(run)
    assert [row["path"] for row in rows] == [f"{number}.webm" for number in range(1010, 1016)]
    assert rows[0]["label_name"] == "Pushing something from left to right"
    correct = sum(row["label"] == row["predicted"] for row in rows) / 6
    assert content["test"]["metrics"]["test/accuracy"] == pytest.approx(correct, abs=1e-5)
    header = json.loads(read_metadata(run / "adapter.safetensors")["data"])
    assert header["class_names"][2] == "Folding something"
    videos = ssv2 / "20bn-something-something-v2"
    files = [str(videos / row["path"]) for row in rows]
    sheet = tmp_path / "sheet.png"
    main(["predict-files", str(run), *files, f"--out={tmp_path / 'new.csv'}", f"--contact_sheet={sheet}"])
    with (tmp_path / "new.csv").open(newline="", encoding="utf-8") as stream:
        new = list(csv.DictReader(stream))
    assert [row["path"] for row in new] == files
    assert [row["predicted"] for row in new] == [row["predicted_name"] for row in rows]
    for mine, theirs in zip(new, rows, strict=True):
        assert float(mine["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-4)
    assert sheet.stat().st_size > 1000


def test_options_are_chosen_on_training_videos(ssv2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--data.root={ssv2}", "--data.check_sizes=false", "--data.protocol=tune", "--data.val_fraction=0.3"]
    run = tmp_path / "run"
    recipe = ["--config=recipe/tuned_video.yaml", "--model.optimizer=SGD", "--model.optimizer.lr=0.1"]
    main(["fit", "--config=ssv2.yaml", *recipe, *TINY, *options, f"--run_dir={run}"])
    content = read_results(run)
    assert content["data"]["split_sizes"] == {"train": 6, "val": 3}
    changed = "batch_size, clips.image_size, clips.num_frames, max_epochs"
    assert content["data"]["recipe"] == f"tuned, changed: {changed}, optimizer.class_path, optimizer.lr"
    assert content["data"]["clips"]["sampling"] == "uniform"
    assert "val/accuracy" in content["fit"]["metrics"]
    assert "test" not in content
    assert "protocol 'tune'" in refused(capsys, "test", f"--config={run / 'fit.yaml'}")
    error = refused(capsys, "fit", "--config=ssv2.yaml", *TINY, *options, "--data.clips.flip=0.5")
    assert "a mirrored video of Something-Something-V2 belongs to another class" in error


@pytest.mark.parametrize("split", [1, 3])
def test_hmdb51_from_prepare_to_predict(split: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_hmdb51(tmp_path / "data", classes=("brush_hair", "wave"), films=3)
    main(["prepare", "hmdb51", "--root", str(root), "--check_sizes", "false"])
    assert capsys.readouterr().out.count("complete") == 3
    run = tmp_path / "run"
    options = [f"--data.root={root}", "--data.check_sizes=false", f"--data.split={split}", f"--run_dir={run}"]
    main(["fit", "--config=hmdb51.yaml", *TINY, *options])
    main(["test", f"--config={run / 'fit.yaml'}"])
    main(["predict", f"--config={run / 'fit.yaml'}"])
    content = read_results(run)
    assert (content["data"]["task"], content["data"]["official_split"]) == ("hmdb51", split)
    assert content["data"]["split_sizes"] == {"trainval": 8, "test": 2}
    assert [row["path"].split("_")[0] for row in predictions(run)] == [
        f"brush_hair/Film!{split - 1}(x)".split("_")[0],
        f"wave/Film!{split - 1}(x)".split("_")[0],
    ]


def test_own_videos_with_few_shots_and_a_cache(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [f"--data.root={folder}", "--data.shots=2", f"--data.cache_dir={tmp_path / 'cache'}", f"--run_dir={run}"]
    main(["fit", "--config=video_folder.yaml", *TINY, *options, "--trainer.max_epochs=2"])
    data = read_results(run)["data"]
    assert (data["task"], data["videos"], data["shots"]) == ("moves", 12, 2)
    assert data["split_sizes"] == {"train": 4, "val": 2, "test": 2}
    assert len(data["train_indices"]) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 8
    main(["plot", str(run)])
    assert (run / "plots" / "batch.png").stat().st_size > 1000
    main(["merge", str(run), "--out", str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_videomae(folder: Path, tmp_path: Path) -> None:
    mae = videomae_folder(tmp_path / "mae")
    run = tmp_path / "run"
    configs = ["--config=video_folder.yaml", "--config=recipe/videomae.yaml"]
    options = [f"--model.backbone={mae}", "--model.pretrained=true", f"--run_dir={run}"]
    main(["fit", *configs, *TINY, *options, f"--data.root={folder}"])
    content = read_results(run)
    assert content["targets"][0] == "model.videomae.encoder.layer.0.attention.attention.query"
    assert content["test"]["metrics"]["test/accuracy"] >= 0


def test_a_corrupt_video_stops_the_run_or_counts_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_ssv2(tmp_path / "data", train=3, validation=3)
    (root / "20bn-something-something-v2" / "1005.webm").write_bytes(b"damaged")
    (root / "20bn-something-something-v2" / "1002.webm").write_bytes(b"damaged")
    listed = tmp_path / "unreadable.txt"
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "ssv2", "--root", str(root), "--check_sizes", "false", "--unreadable", str(listed)])
    assert stopped.value.code == 1
    assert len(listed.read_text("utf-8").splitlines()) == 2
    printed = capsys.readouterr().out
    assert "2 of 6 videos cannot be decoded" in printed
    assert "1005.webm" in printed
    main(["prepare", "ssv2", "--root", str(root), "--check_sizes", "false", "--decode", "false"])
    options = ["--config=ssv2.yaml", *TINY, f"--data.root={root}", "--data.check_sizes=false"]
    error = refused(capsys, "fit", *options, "--data.num_workers=1", f"--run_dir={tmp_path / 'stopped'}")
    assert "1002.webm cannot be decoded" in error
    assert "--data.skip_corrupt true" in error
    run = tmp_path / "run"
    main(["fit", *options, "--data.skip_corrupt=true", "--data.batch_size=1", f"--run_dir={run}"])
    main(["predict", f"--config={run / 'fit.yaml'}"])
    content = read_results(run)
    assert content["fit"]["metrics"]["train/skipped"] == 1
    assert content["test"]["metrics"]["test/skipped"] == 1
    rows = predictions(run)
    assert [row["path"] for row in rows] == ["1004.webm", "1006.webm"]
    # The accuracy is that of the videos that could be decoded.
    correct = sum(row["label"] == row["predicted"] for row in rows) / 2
    assert content["test"]["metrics"]["test/accuracy"] == pytest.approx(correct)


def test_a_resumed_run_equals_the_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    options = ["fit", "--config=video_folder.yaml", *TINY, f"--data.root={folder}", "--test_after_fit=false"]
    options += ["--trainer.max_epochs=2"]
    main([*options, "--data.num_workers=1", f"--run_dir={tmp_path / 'whole'}"])
    stop = ["--trainer.callbacks+=tests.lightning_modules.helpers.StopBefore", "--trainer.callbacks.epoch=1"]
    with pytest.raises(StopError):
        main([*options, *stop, f"--run_dir={tmp_path / 'part'}"])
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    main([*options, f"--ckpt_path={last}"])
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    resumed = torch.load(last, weights_only=True)
    assert whole["global_step"] == resumed["global_step"] > 1
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_the_demonstration_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [f"--data.root={tmp_path / 'motion'}", "--data.shots=4", "--trainer.limit_test_batches=1"]
    main(["fit", "--config=video_demo.yaml", *TINY[6:], *options, f"--run_dir={run}"])
    content = read_results(run)
    assert content["data"]["videos"] == 900
    assert content["data"]["split_sizes"] == {"train": 16, "val": 100, "test": 400}


def test_num_frames_is_the_data_s(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "fit", "--config=video_folder.yaml", *TINY, f"--data.root={folder}", "--model.num_frames=9")
    assert "the number of frames is the data's. Set --data.clips.num_frames." in error
