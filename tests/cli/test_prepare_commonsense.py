"""`prepare commonsense`: complete files pass, and every defect is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replora.cli.main import main
from replora.datasets.text.commonsense import COMMONSENSE_TASKS
from tests.fake_data import write_commonsense


def prepare(*arguments: str) -> int:
    try:
        main(["prepare", "commonsense", *arguments])
    except SystemExit as stopped:
        return int(str(stopped.code))
    return 0


def rows(shown: str) -> dict[str, list[str]]:
    """Task -> what its line of the table says."""
    lines = [line.split() for line in shown.splitlines() if line.split()[:1]]
    return {line[0]: line[1:] for line in lines if line[0] in COMMONSENSE_TASKS}


def test_whole_files_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_commonsense(tmp_path)
    assert prepare(f"--root={tmp_path}", "--check_sizes=false") == 0
    shown = capsys.readouterr().out
    assert rows(shown) == {task: ["12", "0", "6", "0", "complete"] for task in COMMONSENSE_TASKS}
    assert f"8 of 8 tasks are complete in {tmp_path}; 96 training records of 170,420." in shown


def test_a_partial_folder_is_told_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_commonsense(tmp_path, {"boolq": (12, 6), "piqa": (0, 6)})
    assert prepare(f"--root={tmp_path}", "--check_sizes=false") == 1
    shown = capsys.readouterr().out
    assert rows(shown)["piqa"] == ["-", "-", "6", "-", "no", "train.json"]
    assert rows(shown)["ARC-Easy"][-1] == "missing"
    assert '--data.tasks "[boolq]"' in shown
    assert f"prepare commonsense --root {tmp_path} --tasks piqa,social_i_qa" in shown
    assert prepare(f"--root={tmp_path}", "--tasks=boolq", "--check_sizes=false") == 0


def test_faults_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_commonsense(tmp_path, {"openbookqa": (12, 6)})
    file = tmp_path / "openbookqa" / "train.json"
    content = json.loads(file.read_text())
    content[4]["answer"] = content[7]["answer"] = "answer5"
    content[2] = content[1]
    content[5] = json.loads((tmp_path / "openbookqa" / "test.json").read_text())[0]
    file.write_text(json.dumps(content))
    assert prepare(f"--root={tmp_path}", "--tasks=openbookqa") == 1
    shown = capsys.readouterr().out
    assert rows(shown)["openbookqa"] == ["12", "1", "6", "1", "corrupt"]
    assert f"2 of 12 records are corrupt, the first: {file}, record 4" in shown
    assert f"{file} has 12 records, 4,957 are expected" in shown
    file.write_text("[")
    assert prepare(f"--root={tmp_path}", "--tasks=openbookqa", "--check_sizes=false") == 1
    assert f"{file} is not JSON" in capsys.readouterr().out


def test_unknown_task_and_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(f"--root={tmp_path}", "--tasks=arc") == 2
    assert "'arc' is not one of the eight" in capsys.readouterr().err
    assert prepare("--help") == 0
    assert "--rebuild" in capsys.readouterr().out
