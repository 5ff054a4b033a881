"""Runs in processes of their own: two at once, and one that is killed."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import replora
from replora.cli import main
from replora.reports.results import read_results
from tests.cli.helpers import fit

REPOSITORY = Path(__file__).parents[2]


def run_process(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m replora` with these arguments in an own process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "replora", *arguments]
    return subprocess.run(
        command, check=False, cwd=directory, env=environment, capture_output=True, text=True, timeout=300
    )


def predictions(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run in one process and in two: the global batch is 8, the 797 test images are padded to 798."""
    home = tmp_path_factory.mktemp("distributed")
    options = [
        "--config=quickstart.yaml",
        "--config=adapter/replora.yaml",
        "--model.pretrained=false",
        "--model.adapter.rank=2",
        "--model.adapter.hidden=8",
        "--data.shots=4",
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
    ]
    main(["fit", *options, "--data.batch_size=8", "--data.eval_batch_size=64", f"--run_dir={home / 'one'}"])
    main(["predict", f"--config={home / 'one' / 'fit.yaml'}"])
    two = ["--config=trainer/ddp_cpu.yaml", "--data.batch_size=4", "--data.eval_batch_size=64", "--run_dir=two"]
    done = run_process(home, "fit", *options, *two)
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_process(home, "predict", "--config=two/fit.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "one", home / "two"


def test_two_processes_train_as_one_with_the_same_global_batch(runs):
    one, two = (replora.read_adapter(run / "adapter.safetensors")[1] for run in runs)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


def test_two_processes_count_every_image_once(runs):
    one, two = (read_results(run) for run in runs)
    assert (one["fit"]["devices"], two["fit"]["devices"]) == (1, 2)
    assert one["fit"]["steps"] == two["fit"]["steps"] == 10
    for verb in ("fit", "test"):
        assert one[verb]["metrics"].keys() == two[verb]["metrics"].keys()
        for name, value in one[verb]["metrics"].items():
            assert two[verb]["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    right = two["test"]["metrics"]["test/accuracy"] * 797
    assert right == pytest.approx(round(right), abs=1e-3), "a share of 797 images, not of 798"


def test_two_processes_share_one_directory(runs):
    one, two = ({file.name for file in run.rglob("*") if "tfevents" not in file.name} for run in runs)
    assert one == two


def test_two_processes_write_every_prediction_once(runs):
    one, two = map(predictions, runs)
    assert len(two) == 797
    assert [row["index"] for row in two] == [row["index"] for row in one] == [str(i) for i in range(797)]
    agreeing = sum(a["predicted"] == b["predicted"] for a, b in zip(one, two, strict=True))
    assert agreeing >= 796


def test_a_killed_run_resumes_as_if_nothing_had_been(tmp_path):
    options = ["--seed_everything=5", "--model.drop_path_rate=0.2", "--trainer.max_epochs=3"]
    whole = fit(tmp_path / "whole", *options)
    config = yaml.safe_load((whole / "fit.yaml").read_text())
    config["run_dir"] = "killed"
    (tmp_path / "killed.yaml").write_text(yaml.safe_dump(config))
    callback = "--trainer.callbacks+=tests.cli.helpers.KillBefore"
    done = run_process(tmp_path, "fit", "--config=killed.yaml", callback, "--trainer.callbacks.epoch=2")
    assert done.returncode == 9, done.stderr[-3000:]
    assert not (tmp_path / "killed" / "results.json").exists()

    killed = tmp_path / "killed"
    last = killed / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    main(
        [
            "fit",
            f"--config={killed / 'fit.yaml'}",
            f"--run_dir={killed}",
            "--ckpt_path=last",
            "--trainer.callbacks=null",
        ]
    )
    files = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed)]
    assert files[0]["state_dict"].keys() == files[1]["state_dict"].keys()
    for name, tensor in files[0]["state_dict"].items():
        assert torch.equal(tensor, files[1]["state_dict"][name]), name
    assert read_results(whole)["test"]["metrics"] == read_results(killed)["test"]["metrics"]
