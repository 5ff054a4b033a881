"""What a user did is told in a line, with status 2, whichever library noticed it; a defect has status 1."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from replora.cli import main as cli
from replora.cli.main import main
from replora.cli.user_errors import user_error
from replora.errors import RepLoRAError
from tests.cli.test_trainer_cli import refused

FIT = ["fit", "--config=quickstart.yaml", "--data.shots=2", "--trainer.max_epochs=1"]
FIT += ["--trainer.enable_progress_bar=false", "--test_after_fit=false"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run `run`, a file `file` and a folder `folder`."""
    home = tmp_path_factory.mktemp("home")
    main([*FIT, f"--run_dir={home / 'run'}"])
    (home / "file").write_text("x")
    (home / "folder").mkdir()
    return home


LONG = "n" * 300
OF_THE_SYSTEM = {
    "fit into a file": ([*FIT, "--run_dir=file"], "file"),
    "fit below a file": ([*FIT, "--run_dir=file/x"], "a folder is expected"),
    "fit where nothing can be written": ([*FIT, "--run_dir=/sys/replora"], "/sys/replora"),
    "fit into a long name": ([*FIT, f"--run_dir={LONG}"], "too long"),
    "fit with a folder as configuration": (["fit", "--config=folder"], "no such file"),
    "export below a file": (["export", "run", "--out=file/x"], "file is a file"),
    "export where nothing can be written": (["export", "run", "--out=/sys/x"], "/sys/x"),
    "export into a long name": (["export", "run", f"--out={LONG}"], "too long"),
    "merge into a long name": (["merge", "run", f"--out={LONG}"], "too long"),
    "merge below a file": (["merge", "run", "--out=file/x"], "file is a file"),
    "adapter into a long name": (["export", "run", "--format=adapter", f"--out={LONG}"], "too long"),
    "report into a file": (["report", "run", "--out=file"], "file"),
    "report where nothing can be written": (["report", "run", "--out=/sys/r"], "/sys/r"),
    "report of a file": (["report", "file"], "hold no run"),
    "plot below a file": (["plot", "run", "--out=file/x.png"], "a folder is expected"),
    "predictions of nothing": (["predict-files", "run", "nowhere.png"], "nowhere.png"),
    "predictions below a file": (["predict-files", "run", "image.png", "--out=file/x.csv"], "file"),
    "sweep into a file": (["sweep", "--config=sweep/quickstart_low_data.yaml", "--out=file"], "file"),
}
OF_LIBRARIES = {
    "accelerator=gpu": "finds none on this machine. Set --trainer.accelerator cpu",
    "accelerator=cuda": "finds none on this machine",
    "accelerator=mps": "finds none on this machine",
    "accelerator=abacus": "invalid accelerator name",
    "strategy=nosuch": "invalid strategy name",
    "devices=0": "not a valid input",
    "num_nodes=0": "num_nodes",
    "max_epochs=-5": "max_epochs",
    "max_steps=-7": "max_steps",
    "max_time=abc": "not a valid duration",
    "limit_train_batches=-1": "limit_train_batches",
    "val_check_interval=1000": "val_check_interval",
    "val_check_interval=0": "--trainer.val_check_interval 0 is too small",
    "limit_train_batches=0": "--trainer.limit_train_batches 0 is too small",
    "callbacks=LearningRateFinder": "does not work here: set --model.optimizer.lr",
    "callbacks=BackboneFinetuning": "does not work here: the adapter selects what trains",
    "callbacks=Timer": "does not work here: set --trainer.max_time",
    "logger=WandbLogger": "wandb",
}


@pytest.mark.parametrize("case", OF_THE_SYSTEM)
def test_the_operating_system_refuses(
    case: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    before = sorted(home.iterdir())
    arguments, message = OF_THE_SYSTEM[case]
    error = refused(capsys, *arguments)
    assert message in error
    assert "Traceback" not in error
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize("option", OF_LIBRARIES)
def test_lightning_refuses(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, *FIT, f"--trainer.{option}", f"--run_dir={tmp_path / 'run'}")
    assert OF_LIBRARIES[option] in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.optimizer.lr=-1"], "Invalid learning rate"),
        (["--model.optimizer.weight_decay=-1"], "Invalid weight_decay"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/nosuch"], "`val/accuracy`"),
        (["--trainer.callbacks+=LearningRateMonitor", "--trainer.logger=false"], "no logger"),
    ],
)
def test_a_library_refuses(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, *FIT, *options, f"--run_dir={tmp_path / 'run'}")
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize("callback", ["EarlyStopping", "ModelCheckpoint"])
@pytest.mark.parametrize(("monitor", "meant"), [("val/acc", "val/accuracy"), ("val_loss", "val/loss")])
def test_a_metric_that_does_not_exist_is_noticed_before_an_epoch(
    callback: str, monitor: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--trainer.callbacks+={callback}", f"--trainer.callbacks.monitor={monitor}"]
    error = refused(capsys, *FIT, *options, f"--run_dir={tmp_path / 'run'}")
    assert f"{callback}: monitor is {monitor!r}, and the validation has no such metric" in error
    assert f"'{meant}'" in error.splitlines()[-1]
    assert "epoch 1" not in error
    assert not list(tmp_path.iterdir())


FULL = {
    "export": ["export", "run", "--out=there/out"],
    "adapter": ["export", "run", "--format=adapter", "--out=there/out.safetensors"],
    "merge": ["merge", "run", "--out=there/out"],
    "report": ["report", "run", "--out=there/out"],
    "predict-files": ["predict-files", "run", "image.png", "--out=there/out.csv"],
}


@pytest.mark.parametrize("size", [64, 2_000])
@pytest.mark.parametrize("verb", FULL)
def test_a_file_that_cannot_grow_is_named_and_nothing_is_left(
    verb: str,
    size: int,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a full disk, whose errors name no file; the limit makes each write beyond it fail."""
    shutil.copytree(home / "run", tmp_path / "run")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 if verb == "predict-files" else size, most))  # its file is small
    try:
        error = refused(capsys, *FULL[verb]).splitlines()[-1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert "there/out" in error
    assert "would become larger" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zero_byte_and_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "zero.yaml").write_text('run_dir: "a\\0b"')
    assert "zero byte" in refused(capsys, *FIT, f"--config={tmp_path / 'zero.yaml'}")
    (tmp_path / "red.yaml").write_text('"\\e[2J\\u202ename": 3')
    error = refused(capsys, *FIT, f"--config={tmp_path / 'red.yaml'}")
    assert r"\x1b[2J\u202ename: there is no such option" in error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.EIO])
def test_each_refusal_names_the_path_and_a_remedy(number: int) -> None:
    message = user_error(OSError(number, os.strerror(number), "there/file.bin"))
    assert message is not None
    assert message.startswith("there/file.bin: ")
    wrapped = ValueError("of a parser")
    wrapped.__cause__ = RuntimeError("of a loader")
    wrapped.__cause__.__context__ = OSError(number, "first")
    assert user_error(wrapped) == user_error(OSError(number, "first"))
    wrapped.__cause__.__context__.__context__ = RepLoRAError("ours")
    assert user_error(wrapped) == "ours"


def test_lack_of_memory_is_told() -> None:
    message = user_error(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    assert message is not None
    assert message.startswith("There is not enough memory")
    assert user_error(MemoryError()) == "There is not enough memory. Lower the batch size, or use a smaller model."


def test_a_defect_is_raised_to_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(_arguments: list[str]) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(cli, "run", defect)
    with pytest.raises(KeyError, match="a defect"):
        main([])
    assert user_error(ValueError("of our own code")) is None


def test_a_full_device_as_output(home: Path) -> None:
    command = f"{sys.executable} -m replora configs > /dev/full"
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, cwd=home)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("replora-cli: error: ")
    assert "no space is left" in done.stderr


@pytest.mark.parametrize(
    "statement",
    ["from datamodules import BaseDataModule", "import datamodules.absent", "import lightning_modules.absent"],
)
def test_a_package_that_hides_ours_is_no_defect(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verb names it, not only those that train: their imports fail where they first use one of ours."""
    package = statement.split()[1].partition(".")[0]
    other = types.ModuleType(package)
    other.__file__, other.__path__ = str(tmp_path / package / "__init__.py"), []
    monkeypatch.setitem(sys.modules, package, other)
    with pytest.raises(ImportError) as raised:
        exec(statement)
    assert f"The package {package!r} that Python finds is {other.__file__}" in str(user_error(raised.value))
