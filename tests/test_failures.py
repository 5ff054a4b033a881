"""Failures during a run: the run must end with a clear message, and nothing may be lost."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import Dataset

import replora
from datamodules.loader import EpochLoader
from lightning_modules.callbacks import last_checkpoint
from replora.cli.main import main
from replora.datasets.errors import CorruptImageError, LoaderWorkerError
from replora.results import read_results, weights_source
from tests.cli.helpers import DIGITS
from tests.cli.test_distributed import run_process
from tests.fake_data import write_vtab_task

OPTIONS = [*DIGITS, "--data.shots=3", "--data.batch_size=6", "--model.drop_path_rate=0.2", "--test_after_fit=false"]


class TerminateAt(Callback):
    """Sends a signal to its own process inside a training or validation batch.

    Args:
        epoch: Which epoch.
        batch: Which batch of it.
        validation: Whether the batch is one of the validation.
        rank: Which process.
        by: Name of the signal.
        times: How often it is sent.
    """

    def __init__(
        self,
        epoch: int,
        batch: int,
        validation: bool = False,
        rank: int = 0,
        by: str = "SIGTERM",
        times: int = 1,
    ) -> None:
        self.where = (epoch, batch)
        self.by, self.times = signal.Signals[by], times
        self.validation, self.rank = validation, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx) -> None:  # noqa: ARG002
        if not self.validation:
            self._send(trainer, batch_idx)

    def on_validation_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:  # noqa: ARG002
        if self.validation and not trainer.sanity_checking:
            self._send(trainer, batch_idx)

    def _send(self, trainer: Trainer, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.where and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.by)


class PoisonAt(Callback):
    """Makes the head NaN before a training batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.where = (epoch, batch)

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx) -> None:  # noqa: ARG002
        if (trainer.current_epoch, batch_idx) == self.where:
            with torch.no_grad():
                pl_module.model.head.weight.fill_(float("nan"))


class StopAt(Callback):
    """Asks the trainer to stop after a training batch, as early stopping and `max_time` do."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.where = (epoch, batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx) -> None:  # noqa: ARG002
        if (trainer.current_epoch, batch_idx) == self.where:
            trainer.should_stop = True


def callback(kind: type[Callback], **options: object) -> list[str]:
    name = f"--trainer.callbacks+=tests.test_failures.{kind.__name__}"
    return [name, *(f"--trainer.callbacks.{key}={value}" for key, value in options.items())]


def fit(run: Path, *options: str) -> Path:
    main(["fit", *OPTIONS, f"--run_dir={run}", *options])
    return run


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal_runs(one: Path, two: Path) -> None:
    first, second = last(one), last(two)
    assert first["global_step"] == second["global_step"]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    a, b = (content["optimizer_states"][0]["state"] for content in (first, second))
    assert all(torch.equal(a[i]["exp_avg_sq"], b[i]["exp_avg_sq"]) for i in a)
    assert first["lr_schedulers"] == second["lr_schedulers"]


# --- SIGTERM


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 3 epochs of 5 steps that nothing interrupts."""
    return fit(tmp_path_factory.mktemp("whole") / "run", "--trainer.max_epochs=3")


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 2), (1, 4)])
def test_a_run_that_was_stopped_inside_an_epoch_finishes_it_when_resumed(whole, epoch, batch, tmp_path):
    fit(tmp_path, "--trainer.max_epochs=3", *callback(StopAt, epoch=epoch, batch=batch))
    assert last(tmp_path)["global_step"] == 5 * epoch + batch + 1
    fit(tmp_path, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert_equal_runs(whole, tmp_path)


@pytest.mark.parametrize("steps", [2, 5, 7])
def test_a_run_that_max_steps_cut_finishes_its_epoch_when_resumed(steps, tmp_path):
    fit(tmp_path, "--trainer.max_epochs=2", f"--trainer.max_steps={steps}")
    assert last(tmp_path)["global_step"] == steps
    fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert last(tmp_path)["global_step"] == 10


@pytest.mark.parametrize(("by", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize(
    ("where", "step"),
    [
        ({"epoch": 0, "batch": 0}, 1),
        ({"epoch": 1, "batch": 2}, 8),
        ({"epoch": 1, "batch": 4}, 10),
        ({"epoch": 1, "batch": 0, "validation": True}, 10),
    ],
    ids=["first batch", "middle of an epoch", "last batch", "validation"],
)
def test_a_signal_keeps_the_step_and_the_resumed_run_equals_the_whole_one(
    whole, where, step, by, status, tmp_path, capsys
):
    options = ["--trainer.max_epochs=3"]
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, *options, *callback(TerminateAt, **where, by=by))
    assert stopped.value.code == status
    # Lightning leaves SIGINT ignored behind, so that it ends in peace; the process ends then.
    signal.signal(signal.SIGINT, handlers[1])
    assert signal.getsignal(signal.SIGTERM) == handlers[0]
    assert last(tmp_path)["global_step"] == step
    assert not (tmp_path / "results.json").exists()
    fit(tmp_path, *options, "--ckpt_path=last")
    assert_equal_runs(whole, tmp_path)
    assert read_results(tmp_path)["fit"]["metrics"]["val/loss"] == read_results(whole)["fit"]["metrics"]["val/loss"]
    assert "not resumable" not in capsys.readouterr().err


def test_a_second_interrupt_stops_at_once(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "--trainer.max_epochs=3", *callback(TerminateAt, epoch=1, batch=2, by="SIGINT", times=2))
    signal.signal(signal.SIGINT, handler)
    assert stopped.value.code == 130
    assert last(tmp_path)["global_step"] == 5  # of the epoch before


def test_sigterm_waits_for_the_end_of_an_accumulation(tmp_path):
    options = ["--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2"]
    fit(tmp_path / "whole", *options)
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", *options, *callback(TerminateAt, epoch=1, batch=0))
    assert last(tmp_path / "cut")["global_step"] == 4
    fit(tmp_path / "cut", *options, "--ckpt_path=last")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_loader_processes_resume_in_the_right_epoch(tmp_path):
    options = ["--trainer.max_epochs=3", "--data.num_workers=1", "--trainer.limit_val_batches=0"]
    fit(tmp_path / "whole", *options)
    for epoch, batch in ((1, 1), (1, 4)):
        run = tmp_path / f"cut{batch}"
        with pytest.raises(SystemExit):
            fit(run, *options, *callback(TerminateAt, epoch=epoch, batch=batch))
        fit(run, *options, "--ckpt_path=last")
        assert_equal_runs(tmp_path / "whole", run)


def test_a_checkpoint_inside_an_epoch_is_named_as_such(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, "--trainer.max_epochs=3", *callback(TerminateAt, epoch=1, batch=2))
    main(["validate", *OPTIONS, f"--run_dir={tmp_path}"])
    assert weights_source(read_results(tmp_path)["validate"]).endswith("last.ckpt (after 1 epochs and 3 batches)")


# --- NaN


def test_nan_ends_the_run_with_its_step_and_keeps_the_last_good_checkpoint(whole, tmp_path, capsys):
    options = ["--trainer.max_epochs=3"]
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, *options, *callback(PoisonAt, epoch=2, batch=1))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "The loss is nan in epoch 2, batch 1 (step 11)" in error
    assert "Traceback" not in error
    kept = last(tmp_path)
    assert kept["global_step"] == 10
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())
    fit(tmp_path, *options, "--ckpt_path=last")
    assert_equal_runs(whole, tmp_path)


# --- disk full


def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path, capsys, monkeypatch):
    replace, written = Path.replace, []

    def full_at_the_second(source: Path, target: Path) -> Path:
        written.append(target)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    monkeypatch.setattr(last_checkpoint.Path, "replace", full_at_the_second)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "--trainer.max_epochs=3")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "The checkpoint after step 10 could not be written" in error
    assert "No space left on device" in error
    assert "last.ckpt is still whole" in error
    assert last(tmp_path)["global_step"] == 5
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_while_writing(tmp_path, capsys):
    """The temporary file is a link to a device that is always full."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.tmp").symlink_to("/dev/full")
    with pytest.raises(SystemExit):
        fit(tmp_path, *callback(WritesInPlace))
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert Path("/dev/full").exists()


class WritesInPlace(Callback):
    """Makes the trainer write checkpoints straight to their path, so that the device decides."""

    def setup(self, trainer: Trainer, pl_module, stage) -> None:  # noqa: ARG002
        def write(path: Path, weights_only: bool) -> None:  # noqa: ARG001
            with path.open("wb") as stream:
                stream.write(b"x")

        trainer.save_checkpoint = write


# --- loader processes


class Deadly(Dataset):
    """Ends the process that reads it, or fails as a broken image does."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        if self.broken:
            raise CorruptImageError(f"image {index} cannot be decoded")
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


def test_a_loader_process_that_dies_is_named():
    with pytest.raises(LoaderWorkerError, match=r"died \(DataLoader worker .*--data\.num_workers \(0 loads in"):
        list(EpochLoader(Deadly(broken=False), num_workers=1))


def test_an_error_in_a_loader_process_is_one_sentence():
    with pytest.raises(CorruptImageError, match=r"^image 0 cannot be decoded$"):
        list(EpochLoader(Deadly(broken=True), num_workers=1))


class KillLoader(Callback):
    """Kills a loader process in a training batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx) -> None:  # noqa: ARG002
        if (trainer.current_epoch, batch_idx) == (1, 2):
            for worker in torch.multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()


def test_a_run_whose_loader_dies_keeps_its_checkpoint_and_resumes(tmp_path, capsys, whole):
    options = ["--trainer.max_epochs=3", "--data.num_workers=1"]
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, *options, *callback(KillLoader))
    assert stopped.value.code == 2
    assert "A loader process died" in capsys.readouterr().err
    assert last(tmp_path)["global_step"] == 5
    fit(tmp_path, *options, "--ckpt_path=last")
    assert_equal_runs(whole, tmp_path)


# --- data


def cut(home: Path) -> None:
    image = home / "images" / "train800val200" / "000003.jpg"
    image.write_bytes(image.read_bytes()[:200])


def empty(home: Path) -> None:
    (home / "images" / "train800val200" / "000003.jpg").write_bytes(b"")


def listed(line: str):
    def add(home: Path) -> None:
        file = home / "train800val200.txt"
        file.write_text(file.read_text() + line + "\n")

    return add


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (cut, ["train800val200/000003.jpg"]),
        (empty, ["train800val200/000003.jpg", "empty (0 bytes)"]),
        (listed("images/train800val200/000000.jpg 47"), ["train800val200.txt", "47"]),
        (listed("../../secret.jpg 1"), ["train800val200.txt", "leaves the data"]),
        (listed("images/train800val200/999999.jpg 1"), ["images/train800val200/999999.jpg", "missing"]),
    ],
    ids=["truncated", "zero bytes", "label out of range", "path out of the data", "missing image"],
)
@pytest.mark.parametrize("options", [[], ["--data.cache_bytes=0", "--data.num_workers=1"]], ids=["memory", "disk"])
def test_damaged_data_end_the_run_with_the_file_and_no_result(damage, messages, options, tmp_path, capfd):
    damage(write_vtab_task(tmp_path, "dtd"))
    arguments = ["--config=vtab.yaml", "--config=adapter/linear_probe.yaml", "--model.backbone=vit_nano"]
    arguments += ["--model.pretrained=false", f"--data.root={tmp_path}", "--data.task=dtd", "--data.image_size=32"]
    arguments += ["--data.check_sizes=false", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, *options, f"--run_dir={tmp_path / 'run'}", "--trainer.enable_progress_bar=false"])
    assert stopped.value.code == 2
    error = capfd.readouterr().err
    assert [message for message in messages if message not in error] == []
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "results.json").exists()


# --- two processes


def test_sigterm_to_one_of_two_processes(tmp_path):
    options = [*OPTIONS, "--config=trainer/ddp_cpu.yaml", "--trainer.max_epochs=2", "--data.batch_size=3"]
    done = run_process(tmp_path, "fit", *options, "--run_dir=whole")
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_process(tmp_path, "fit", *options, "--run_dir=cut", *callback(TerminateAt, epoch=1, batch=1, rank=1))
    assert done.returncode != 0
    assert last(tmp_path / "cut")["global_step"] == 7
    done = run_process(tmp_path, "fit", *options, "--run_dir=cut", "--ckpt_path=last")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    one, two = (replora.read_adapter(tmp_path / run / "adapter.safetensors")[1] for run in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
