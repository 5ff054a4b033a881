"""`replora-cli prepare vtab`, alone and as the first step of a fit."""

from __future__ import annotations

import csv
import sys

import pytest

from replora.cli.main import main
from replora.datasets.vtab.dataset import VTAB_TASKS
from replora.reports.grouping import MixedTracksError, common_track
from replora.results import read_results, weights_source
from tests.cli.test_configs import SMALL
from tests.fake_data import write_vtab, write_vtab_task
from tests.fake_tfds import install


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory, monkeypatch):
    """Lists of unreadable files go into the working directory."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def prepare(*arguments: str) -> int:
    """The exit status."""
    try:
        main(["prepare", "vtab", *arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_check_of_a_whole_copy(tmp_path, capsys):
    write_vtab(tmp_path)
    assert prepare(f"--root={tmp_path}", "--check_sizes=false") == 0
    shown = capsys.readouterr()
    assert "19 of 19 tasks are complete" in shown.out
    for task in VTAB_TASKS.values():
        [line] = [line for line in shown.out.splitlines() if line.startswith(f"{task.name} ")]
        assert line.split()[1:6] == ["archive", "16", "8", "24", "8"]
        assert line.split()[6].endswith(f"/{task.num_classes}")
    assert "check smallnorb_ele" in shown.err  # the progress bar


def test_check_that_fails_ends_with_status_1_and_commands_to_copy(tmp_path, capsys):
    home = write_vtab_task(tmp_path, "dtd", folder="dtd")
    (home / "images/test/000000.jpg").write_bytes(b"")
    assert prepare(f"--root={tmp_path}", "--tasks=dtd,kitti") == 1
    shown = capsys.readouterr().out
    assert "problem: dtd: train800.txt lists 16 images, but 800 are expected." in shown
    assert "problem: dtd: 1 of 56 images cannot be decoded" in shown
    assert "0 of 2 tasks are complete" in shown
    assert f"rm -r {home}" in shown
    assert f"replora-cli prepare vtab --root {tmp_path} --tasks dtd,kitti --from_tfds true" in shown


def test_root_comes_from_the_environment_and_tasks_may_be_a_list(tmp_path, monkeypatch, capsys):
    write_vtab(tmp_path, ["dtd", "kitti"])
    monkeypatch.setenv("REPLORA_DATA", str(tmp_path))
    assert prepare("--tasks=[dtd, kitti]", "--check_sizes=false") == 0
    assert "2 of 2 tasks are complete" in capsys.readouterr().out
    assert prepare("--tasks=dtd", "--track=clean", "--check_sizes=false") == 1
    assert "Of the track archive, not clean: dtd" in capsys.readouterr().out


def test_mistakes(tmp_path, monkeypatch, capsys):
    assert prepare(f"--root={tmp_path}", "--tasks=dtdd") == 2
    assert "Did you mean 'dtd'" in capsys.readouterr().err
    assert prepare(f"--root={tmp_path}", "--track=clear") == 2
    with pytest.raises(SystemExit):
        main(["prepare", "vtba"])
    assert "vtab" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert prepare(f"--root={tmp_path}", "--tasks=dtd", "--from_tfds=true") == 2
    assert 'pip install "replora[tfds]"' in capsys.readouterr().err


def test_help_needs_no_second_look(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "vtab", "--help"])
    shown = capsys.readouterr().out
    for option in ("root", "tasks", "from_tfds", "hub", "track", "tfds_dir", "check_sizes"):
        assert f"--{option}" in shown


def run(root, task: str, track: str, run_dir) -> dict:
    """prepare -> fit -> test -> predict; what the run recorded."""
    data = [f"--root={root}", f"--tasks={task}", f"--track={track}", "--check_sizes=false"]
    with pytest.MonkeyPatch.context() as monkeypatch:  # TensorBoard, of the fit, wants no false TensorFlow
        install(monkeypatch)
        assert prepare("--from_tfds=true", *data) == 0
    recipe = ["--config=recipe/clean.yaml"] if track == "clean" else []
    options = [f"--data.root={root}", f"--data.task={task}", "--config=adapter/linear_probe.yaml", *SMALL]
    main(["fit", "--config=vtab.yaml", *recipe, *options, f"--run_dir={run_dir}", "--test_after_fit=false"])
    for verb in ("test", "predict"):
        main([verb, f"--config={run_dir / 'fit.yaml'}"])
    with (run_dir / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    return read_results(run_dir)


@pytest.mark.parametrize("task", VTAB_TASKS)
def test_every_task_from_its_original_to_predictions(task, tmp_path):
    # The tracks by turns, and both for the task where they differ most.
    tracks = ["archive", "clean"] if task == "cifar" else [["archive", "clean"][list(VTAB_TASKS).index(task) % 2]]
    results = {track: run(tmp_path / track, task, track, tmp_path / f"run-{track}") for track in tracks}
    for track, content in results.items():
        data = content["data"]
        assert (data["task"], data["track"]) == (task, track)
        assert data["interpolation"] == ("bicubic" if track == "archive" else "tf1_bilinear")
        assert data["normalization"]["name"] == ("imagenet" if track == "archive" else "half")
        assert data["source"].startswith("tensorflow_datasets ")
        assert content["parameters"]["head"] == 129 * VTAB_TASKS[task].num_classes
        assert weights_source(content["test"]).endswith("last.ckpt (after 1 epochs)")
        assert 0 <= content["test"]["metrics"]["test/accuracy"] <= 1
    if len(results) == 2:
        with pytest.raises(MixedTracksError):
            common_track(results)
