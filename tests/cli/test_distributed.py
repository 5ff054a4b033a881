"""Runs in separate processes: two at the same time, and one that is killed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch.distributed.tensor import DTensor

import replora
from replora.cli.main import main
from replora.results import read_results
from tests.cli.helpers import EPOCH, fit

REPOSITORY = Path(__file__).parents[2]
OPTIONS = [
    "--config=quickstart.yaml",
    "--config=adapter/replora.yaml",
    "--model.pretrained=false",
    "--model.adapter.rank=2",
    "--model.adapter.hidden=8",
    "--data.shots=4",
    "--trainer.max_epochs=2",
]


def run_process(directory: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`python -m replora` with these arguments in an own process, or by a launcher such as torchrun."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *launcher, "-m", "replora", *arguments]
    return subprocess.run(
        command, check=False, cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )


def predictions(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run in one process and in two: the global batch is 8, the 797 test images are padded to 798."""
    home = tmp_path_factory.mktemp("distributed")
    main(["fit", *OPTIONS, "--data.batch_size=8", "--data.eval_batch_size=64", f"--run_dir={home / 'one'}"])
    main(["predict", f"--config={home / 'one' / 'fit.yaml'}"])
    two = ["--config=trainer/ddp_cpu.yaml", "--data.batch_size=4", "--data.eval_batch_size=64", "--run_dir=two"]
    done = run_process(home, "fit", *OPTIONS, *two)
    assert done.returncode == 0, done.stderr[-3000:]
    (home / "shown.json").write_text(json.dumps([done.stdout, done.stderr]))
    done = run_process(home, "predict", "--config=two/fit.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "one", home / "two"


def test_two_processes_print_once(runs):
    stdout, stderr = json.loads((runs[0].parent / "shown.json").read_text())
    assert EPOCH.findall(stderr) == [("1", "2"), ("2", "2")]
    assert stdout.count("replora on vit_nano, digits") == 1
    assert " of 797" in stdout


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


def assert_same_adapter(one: Path, two: Path) -> None:
    first, second = (replora.read_adapter(run / "adapter.safetensors")[1] for run in (one, two))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-6, msg=name)


def test_torchrun_equals_one_process(runs, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    two = ["--config=trainer/ddp_cpu.yaml", "--data.batch_size=4", "--test_after_fit=false", "--run_dir=two"]
    done = run_process(tmp_path, "fit", *OPTIONS, *two, launcher=torchrun)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_results(tmp_path / "two")["fit"]["devices"] == 2
    assert_same_adapter(runs[0], tmp_path / "two")


def test_a_run_leaves_its_process_group(tmp_path, monkeypatch):
    """Else the process may abort at its end, when its work is done."""

    def run(_arguments: list[str], **_options: bool) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    monkeypatch.setattr("replora.trainer.trainer_cli.TrainerCLI", run)
    main(["fit"])
    assert not torch.distributed.is_initialized()


class Shares(Callback):
    """Writes which share of each kind of parameter this process holds."""

    def on_train_end(self, trainer: Trainer, pl_module) -> None:
        held = {"frozen": [0, 0], "trained": [0, 0]}
        for parameter in pl_module.parameters():
            kind = held["trained" if parameter.requires_grad else "frozen"]
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            kind[0] += local.numel()
            kind[1] += parameter.numel()
        file = Path(trainer.default_root_dir) / f"shares-{trainer.global_rank}.json"
        file.write_text(json.dumps({kind: part / whole for kind, (part, whole) in held.items()}))


def test_sharded_backbone_killed_and_resumed_equals_one_process(runs, tmp_path):
    """`trainer/fsdp.yaml` with gloo instead of NCCL."""
    options = [*OPTIONS, "--config=trainer/fsdp.yaml", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    options += ["--trainer.precision=32-true", "--data.batch_size=4", "--data.eval_batch_size=64", "--run_dir=two"]
    kill = "--trainer.callbacks+=tests.cli.helpers.KillBefore"
    done = run_process(tmp_path, "fit", *options, kill, "--trainer.callbacks.epoch=1")
    assert done.returncode != 0
    shares = "--trainer.callbacks+=tests.cli.test_distributed.Shares"
    done = run_process(tmp_path, "fit", *options, shares, "--ckpt_path=last")
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two"
    assert_same_adapter(runs[0], two)
    assert read_results(two)["test"]["metrics"] == pytest.approx(read_results(runs[0])["test"]["metrics"], rel=1e-3)
    for rank in (0, 1):
        held = json.loads((two / f"shares-{rank}.json").read_text())
        assert held["trained"] == 1
        assert held["frozen"] < 0.53, "half of the blocks, and the embedding whole"


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
