"""`replora-cli tune` with real fits: each kind of data, and a folder of photos from Ctrl-C to predictions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replora.cli.main import run
from tests.fake_data import write_commonsense, write_image_folder, write_vtab
from tests.fake_videos import write_video_folder
from tests.sweeps.test_interrupted import wait_until
from tests.tiny_llama import write_tiny_llama

TINY = ["--model.backbone=vit_nano", "--model.pretrained=false", "--data.image_size=32", "--trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("photos", "5 folds, because 27 examples"),
        ("vtab", "2 folds, because 24 examples"),
        ("videos", "5 folds, because 12 examples"),
        ("texts", "5 folds, because 30 examples"),
    ],
)
def test_every_kind_of_data_is_planned(
    kind: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    if kind == "photos":
        write_image_folder(root)
        options = ["--config=image_folder.yaml", *TINY]
    elif kind == "vtab":
        write_vtab(root, tasks=["eurosat"])
        options = ["--config=vtab.yaml", "--data.task=eurosat", "--data.check_sizes=false", *TINY]
    elif kind == "videos":
        write_video_folder(root, per_class=7)
        small = ["--model.backbone=swin3d_nano", "--data.clips.image_size=32", "--data.clips.num_frames=4"]
        options = ["--config=video_folder.yaml", *small, TINY[1], TINY[3], "--data.num_workers=0"]
    else:
        write_commonsense(root, {"boolq": (20, 5), "ARC-Easy": (10, 5)})
        llama = write_tiny_llama(tmp_path / "llama")
        options = ["--config=commonsense_smollm2.yaml", f"--model.backbone={llama}", "--data.tasks=[boolq,ARC-Easy]"]
        options += ["--data.check_sizes=false", "--data.train_fraction=1.0", "--model.dtype=fp32"]
    run(["tune", *options, f"--data.root={root}", f"--out={tmp_path / 'out'}", "--dry_run=true"])
    shown = capsys.readouterr().out
    assert words in shown
    assert "5 candidates: replora, lr " in shown
    assert "then the final fit (final) with its test" in shown
    assert not (tmp_path / "out").exists()


def test_photos_from_an_interruption_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130, the same command repeats no finished trial, and the final run is a run like any other."""
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "photos", per_class=5)
    options = ["--config=image_folder.yaml", *TINY, "--data.root=photos", "--data.num_workers=0", "--out=out"]
    options += ["--trainer.max_epochs=1", "--rates=[0.005,0.02]", "--folds=2", "--draws=1"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "replora", "tune", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    select = tmp_path / "out" / "select"
    wait_until(lambda: '"sweep"' in "".join(f.read_text() for f in select.rglob("results.json")) or process.poll())
    os.kill(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=200)
    assert process.returncode == 130, shown
    finished = {file: file.stat().st_mtime_ns for file in select.rglob("results.json") if "sweep" in file.read_text()}
    assert finished
    run(["tune", *options])
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert len(list(select.rglob("results.json"))) == 4
    final = tmp_path / "out" / "final"
    content = json.loads((final / "results.json").read_text())
    assert content["data"]["protocol"] == "final"
    assert content["sweep"]["chosen_by"]["chosen"] == json.loads((tmp_path / "out" / "tune.json").read_text())["chosen"]
    run(["predict-files", str(final), "photos/cat/0.jpg", "--out=p.csv", "--progress=false"])
    assert len(Path("p.csv").read_text().splitlines()) == 2
