"""Nothing is overwritten that the user did not name as output of this very kind, and a refused call leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from replora.cli.main import main
from replora.io import OutputError, check_output, made_by, new_folder, replacing
from replora.reports.report import is_report
from tests.cli.helpers import fit, refused
from tests.cli.unchanged import unchanged


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, a run of fit and predict, its export, and files of the user beside it."""
    home = tmp_path_factory.mktemp("home")
    fit(home / "run")
    main(["predict", f"--config={home / 'run' / 'fit.yaml'}", "--trainer.enable_progress_bar=false"])
    main(["export", str(home / "run"), f"--out={home / 'exported'}"])
    (home / "in").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(home / "in" / f"{number}.png")
    for name in ("notes.csv", "notes.json", "notes.png", "batch.png", "adapter.safetensors", "unreadable.txt"):
        (home / "mine" / name).parent.mkdir(exist_ok=True)
        (home / "mine" / name).write_text("the user's own")
    shutil.copytree(home / "mine", home / "elsewhere" / "report")
    shutil.copy(home / "in" / "0.png", home / "quickstart.png")
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = Path(shutil.copytree(finished, tmp_path / "home"))
    monkeypatch.chdir(home)
    return home


PREDICT = ["predict-files", "run", "in", "--progress=false"]
FIT = ["fit", "--config=quickstart.yaml", "--data.shots=2", "--trainer.max_epochs=1"]
SWEEP = ["sweep", "--config=sweep/quickstart_low_data.yaml"]
# Verb and options -> a part of the message.
REFUSED = {
    "a picture of the user's": ([*PREDICT, "--contact_sheet=mine/notes.png"], "mine/notes.png already exists"),
    "a picture that is read": ([*PREDICT, "--contact_sheet=in/0.png"], "in/0.png is an input of this call"),
    "a picture that is read, with --overwrite": (
        [*PREDICT, "--contact_sheet=in/0.png", "--overwrite=true"],
        "in/0.png is an input of this call",
    ),
    "a picture that is read, by another name": (
        [*PREDICT, "--contact_sheet=mine/../in/0.png", "--overwrite=true"],
        "is an input of this call",
    ),
    "a picture in another format": ([*PREDICT, "--contact_sheet=new.jpg"], "has to end in .png"),
    "a folder for a picture": ([*PREDICT, "--contact_sheet=in.png"], "it is a folder"),
    "predictions over a file": ([*PREDICT, "--out=mine/notes.csv"], "--overwrite true"),
    "predictions over JSON": ([*PREDICT, "--out=mine/notes.json"], "--overwrite true"),
    "predictions over those of a run": ([*PREDICT, "--out=run/predictions.csv"], "run/predictions.csv is an input"),
    "predictions over the record": (
        [*PREDICT, "--out=run/results.json", "--overwrite=true"],
        "run/results.json is an input",
    ),
    "predictions in another format": ([*PREDICT, "--out=new.xlsx"], "has to end in .csv or .json"),
    "predictions below a file": ([*PREDICT, "--out=mine/notes.csv/new.csv"], "mine/notes.csv is a file"),
    "export over a folder": (["export", "run", "--out=mine"], "--overwrite true"),
    "export over a folder with other files": (["export", "run", "--out=mine", "--overwrite=true"], "is no part of"),
    "export over a file": (["export", "run", "--out=mine/notes.csv", "--overwrite=true"], "a folder is expected"),
    "export over the run": (["export", "run", "--out=run", "--overwrite=true"], "run is an input of this call"),
    "export over a folder with the run": (["export", "run", "--out=.", "--overwrite=true"], "is an input of this call"),
    "adapter over a file": (
        ["export", "run", "--format=adapter", "--out=mine/adapter.safetensors"],
        "--overwrite true",
    ),
    "adapter over its source": (
        ["export", "run", "--format=adapter", "--out=run/adapter.safetensors", "--overwrite=true"],
        "run/adapter.safetensors is an input",
    ),
    "adapter over a folder": (["export", "run", "--format=adapter", "--out=mine"], "a file is expected"),
    "merge over a folder": (["merge", "run", "--out=mine"], "--overwrite true"),
    "merge over a folder with other files": (["merge", "run", "--out=mine", "--overwrite=true"], "is no part of"),
    "merge over an export": (["merge", "run", "--out=exported", "--overwrite=true"], "is no part of this output"),
    "plot over a file": (["plot", "quickstart.yaml", "--out=mine"], "mine/batch.png already exists"),
    "report over other files": (["report", "run", "--out=mine"], "mine already exists"),
    "report over its run": (["report", "run", "--out=run", "--overwrite=true"], "run is an input of this call"),
    "quickstart over a picture": (["quickstart", "--run_dir=."], "quickstart.png already exists"),
    "sweep into other files": ([*SWEEP, "--out=mine"], "mine already exists"),
    "sweep that is only planned": ([*SWEEP, "--out=mine", "--dry_run=true"], "mine already exists"),
    "fit over a run": (["fit", "--config=quickstart.yaml", "--run_dir=run"], "--run_dir"),
    "fit with a wrong rate": ([*FIT, "--model.optimizer.lr=-1"], "Invalid learning rate"),
    "fit with a wrong rate, into a new directory": (
        [*FIT, "--model.optimizer.lr=-1", "--run_dir=a/b/c"],
        "learning rate",
    ),
    "fit with a wrong rate, into an empty directory": ([*FIT, "--model.optimizer.lr=-1", "--run_dir=in.png"], "rate"),
    "fit into a directory of pictures": ([*FIT, "--model.optimizer.lr=-1", "--run_dir=in"], "learning rate"),
    "fit that validates never": ([*FIT, "--trainer.val_check_interval=1000"], "val_check_interval"),
    "fit without a GPU": ([*FIT, "--trainer.accelerator=gpu"], "gpu"),
    "test of a run without its data": (
        ["test", "--config=run/fit.yaml", "--data=ImageFolderDataModule", "--data.root=nowhere"],
        "nowhere",
    ),
    "predict with a wrong batch": (["predict", "--config=run/fit.yaml", "--data.batch_size=0"], "batch_size"),
    "validate without the backbone": (["validate", "--config=run/fit.yaml", "--model.checkpoint=nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_call_leaves_everything_as_it_was(case: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = REFUSED[case]
    (home / "in.png").mkdir()
    with unchanged(home):
        error = refused(capsys, *arguments)
    assert message in error
    assert "Traceback" not in error


def test_the_list_of_unreadable_files_replaces_its_like_alone(home: Path) -> None:
    (home / "photos" / "cat").mkdir(parents=True)
    (home / "photos" / "dog").mkdir()
    for number in range(12):
        for kind in ("cat", "dog"):
            shutil.copy(home / "in" / "1.png", home / "photos" / kind / f"{number}.png")
    (home / "photos" / "cat" / "3.png").write_bytes(b"no image")
    command = ["prepare", "images", "photos", "--unreadable"]
    with unchanged(home), pytest.raises(SystemExit) as stopped:
        main([*command, "mine/unreadable.txt"])
    assert stopped.value.code == 2
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "list.txt"])
        assert stopped.value.code == 1
    assert len((home / "list.txt").read_text().splitlines()) == 1


def test_documented_commands_can_be_given_again(home: Path) -> None:
    for _ in range(2):
        main(["plot", "run"])
        main(["report", "run", "--out=report"])
        main(["report", "report/runs.jsonl", "--out=report"])
        main(["plot", "quickstart.yaml", "--out=pictures"])
    for _ in range(2):
        options = ["--out=new.csv", "--contact_sheet=new.png", "--overwrite=true"]
        main([*PREDICT, *options])
        main(["export", "run", "--out=exported", "--overwrite=true"])
        main(["merge", "run", "--out=merged", "--overwrite=true"])
        main(["export", "run", "--format=adapter", "--overwrite=true"])
    assert not list(home.rglob("*.tmp"))
    assert len((home / "new.csv").read_text().splitlines()) == 4


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "a").write_text(content)
    assert (tmp_path / "out" / "a").read_text() == "new"
    with (
        unchanged(tmp_path),
        pytest.raises(OutputError, match="holds 'a'"),
        new_folder(tmp_path / "out", True) as folder,
    ):
        (folder / "b").write_text("other")
    with unchanged(tmp_path), pytest.raises(KeyError), new_folder(tmp_path / "x" / "y" / "out"):
        raise KeyError
    with unchanged(tmp_path), pytest.raises(KeyError), replacing(tmp_path / "x" / "y" / "file"):
        raise KeyError


def test_an_empty_folder_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount point, or the folder that the user stands in."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    place = Path.cwd().stat().st_ino
    with new_folder(Path()) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("new")
    assert Path.cwd().stat().st_ino == place
    assert [path.name for path in Path.cwd().iterdir()] == ["inner"]
    with unchanged(tmp_path), pytest.raises(OutputError, match="zero byte"):
        check_output(tmp_path / "a\0b")


def test_a_report_is_known_by_more_than_names(tmp_path: Path) -> None:
    for name in ("report.md", "report.html", "runs.csv", "runs.jsonl"):
        (tmp_path / name).write_text("mine")
    assert not is_report(tmp_path)


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "n" * 250 + ".json"
    with replacing(tmp_path / name) as temporary:
        temporary.write_text(json.dumps(1))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_picture_says_what_made_it(home: Path) -> None:
    main(["plot", "run"])
    picture = home / "run" / "plots" / "curves.png"
    assert made_by("replora-cli plot")(picture)
    assert not made_by("replora-cli report")(picture)
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
    check_output(picture, is_own=made_by("replora-cli plot"))
    (home / "link.png").symlink_to(home / "nowhere")
    with pytest.raises(OutputError, match="already exists"):
        check_output(home / "link.png")
