"""The commonsense files from a stand-in for the Hugging Face hub: copies of them, and their original datasets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from replora.datasets.errors import PrepareError
from replora.datasets.prepare.commonsense import CommonsenseReport, prepare_commonsense
from replora.datasets.text.commonsense import COMMONSENSE_TASKS, UNION_FILE, read_task, read_union
from replora.datasets.text.rebuild import ORIGINALS, make_entry
from tests.fake_data import write_commonsense
from tests.fake_hub import fake_hub

# A row of each original data set, as its columns are on the hub -> its question in our record, and the answer.
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "boolq": (
        {"question": "can a fish drown in air", "answer": False, "passage": "Fish breathe."},
        "question: can a fish drown in air?\n\nAnswer format: true/false",
        "false",
    ),
    "piqa": (
        {"goal": "Dry a book", "sol1": "In the sea.", "sol2": "In the sun.", "label": 1},
        "question: Dry a book\n\nSolution1: In the sea.\n\nSolution2: In the sun.\n\nAnswer",
        "solution2",
    ),
    "social_i_qa": (
        {
            "context": "Ann lent Eve a bike.",
            "question": "What next?",
            "answerA": "eat it",
            "answerB": "sell it",
            "answerC": "ride it",
            "label": "3",
        },
        "question: Ann lent Eve a bike. What next?\n\nAnswer1: eat it Answer2: sell it Answer3: ride it\n\nAnswer",
        "answer3",
    ),
    "hellaswag": (
        {
            "activity_label": "Making tea",
            "ctx_a": "She boils water.",
            "ctx_b": "she",
            "ctx": "She boils water. she",
            "endings": ["runs.", "pours.", "sits.", "sings."],
            "label": "1",
        },
        "sentence: Making tea: She boils water. she\n\nEnding1: runs. Ending2: pours. Ending3: sits. Ending4: sings.",
        "ending2",
    ),
    "winogrande": (
        {"sentence": "Ann thanked Eve as _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        "sentence: Ann thanked Eve as _ had helped.\n\nOption1: Ann Option2: Eve Answer format",
        "option2",
    ),
    "ARC-Easy": (
        {
            "question": "Which is a metal?",
            "choices": {"text": ["wood", "salt", "iron"], "label": ["A", "B", "C"]},
            "answerKey": "C",
        },
        "question: Which is a metal?\n\nAnswer1: wood Answer2: salt Answer3: iron\n\nAnswer format: answer1",
        "answer3",
    ),
    "ARC-Challenge": (
        {
            "question": "Which is a gas?",
            "choices": {"text": ["wood", "air", "salt", "iron"], "label": ["1", "2", "3", "4"]},
            "answerKey": "2",
        },
        "question: Which is a gas?\n\nAnswer1: wood Answer2: air Answer3: salt Answer4: iron\n\nAnswer format",
        "answer2",
    ),
    "openbookqa": (
        {
            "question_stem": "The sun gives",
            "choices": {"text": ["light", "sand", "rain", "shade"], "label": ["A", "B", "C", "D"]},
            "answerKey": "A",
        },
        "question: The sun gives\n\nAnswer1: light Answer2: sand Answer3: rain Answer4: shade\n\nAnswer format",
        "answer1",
    ),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Repositories as folders; a parquet file is JSON that a stand-in for pyarrow reads."""
    parquet = ModuleType("pyarrow.parquet")
    parquet.read_table = lambda file: SimpleNamespace(to_pylist=lambda: json.loads(file.read_text()))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    return fake_hub(monkeypatch, tmp_path / "hub")


def write_original(hub: Path, task: str) -> None:
    """Two files of every split of every configuration."""
    original = ORIGINALS[task]
    row, _, _ = ROWS[task]
    for configuration in original.configurations:
        for split in ("train", original.test_split):
            folder = hub / original.repository / configuration / split
            folder.mkdir(parents=True)
            for number in range(2):
                (folder / f"000{number}.parquet").write_text(json.dumps([row]))


@pytest.mark.parametrize("task", COMMONSENSE_TASKS)
def test_a_row_becomes_a_record(task: str) -> None:
    row, text, answer = ROWS[task]
    entry = make_entry(task, row)
    assert entry["instruction"].startswith(COMMONSENSE_TASKS[task].lead)
    assert text in entry["instruction"]
    assert (entry["answer"], entry["input"]) == (answer, "")
    assert entry["output"] == f"the correct answer is {answer}"


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("ARC-Easy", {"answerKey": "E"}),
        ("piqa", {"label": -1}),  # as in test sets whose answers are secret
        ("hellaswag", {"label": ""}),
        ("winogrande", {"answer": ""}),
        ("boolq", {"question": None}),
        ("social_i_qa", {"label": "4"}),
    ],
)
def test_a_row_without_an_answer_is_refused(task: str, change: dict[str, Any]) -> None:
    row = ROWS[task][0] | change
    if row.get("question", "") is None:
        del row["question"]
    with pytest.raises(PrepareError, match=f"A row of {ORIGINALS[task].repository} "):
        make_entry(task, row)


def test_all_tasks_are_rebuilt(hub: Path, tmp_path: Path) -> None:
    for task in COMMONSENSE_TASKS:
        write_original(hub, task)
    root = tmp_path / "data"
    reports = prepare_commonsense(root, from_originals=True, check_sizes=False)
    assert {report.name: report.state for report in reports} == dict.fromkeys(COMMONSENSE_TASKS, "complete")
    sizes = {report.name: (report.sizes["train"], report.sizes["test"]) for report in reports}
    # WinoGrande's training set is its six subsets.
    assert sizes == dict.fromkeys(COMMONSENSE_TASKS, (2, 2)) | {"winogrande": (12, 2)}
    for task in COMMONSENSE_TASKS:
        for split in ("train", "test"):
            assert {r.answer for r in read_task(root, task, split, check_size=False)} == {ROWS[task][2]}  # type: ignore[arg-type]
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_a_rebuild_keeps_what_is_there_and_goes_on_after_a_failure(hub: Path, tmp_path: Path) -> None:
    write_original(hub, "openbookqa")
    root = write_commonsense(tmp_path / "data", {"openbookqa": (9, 0), "boolq": (4, 4)})
    reports = {r.name: r for r in prepare_commonsense(root, from_originals=True, check_sizes=False)}
    assert reports["openbookqa"].sizes == {"train": 9, "test": 2}
    assert reports["boolq"].sizes == {"train": 4, "test": 4}
    (problem,) = reports["piqa"].problems
    assert "baber/piqa could not be downloaded" in problem


def test_pyarrow_is_asked_for(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_original(hub, "boolq")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (report,) = prepare_commonsense(tmp_path / "data", ["boolq"], from_originals=True)
    assert "pip install pyarrow" in report.problems[0]


def copy(root: Path, *tasks: str) -> dict[str, CommonsenseReport]:
    reports = prepare_commonsense(root, list(tasks) or None, hub="someone/copy", check_sizes=False)
    return {report.name: report for report in reports}


def test_a_copy_of_the_files(hub: Path, tmp_path: Path) -> None:
    write_commonsense(hub / "someone" / "copy", folder="dataset")
    root = write_commonsense(tmp_path / "data", {"boolq": (4, 0)})
    reports = copy(root, "boolq", "piqa")
    assert {name: report.sizes for name, report in reports.items()} == {
        "boolq": {"train": 4, "test": 6},
        "piqa": {"train": 12, "test": 6},
    }
    assert sorted(path.name for path in root.iterdir()) == ["boolq", "piqa"]


def test_a_copy_of_the_union(hub: Path, tmp_path: Path) -> None:
    source = hub / "someone" / "copy"
    write_commonsense(tmp_path / "some", {"boolq": (4, 0)})
    records = json.loads((tmp_path / "some" / "boolq" / "train.json").read_text())
    source.mkdir(parents=True)
    (source / UNION_FILE).write_text(json.dumps(records))
    found = copy(tmp_path / "data")
    assert found[UNION_FILE].sizes == {"train": 4}
    assert len(read_union(tmp_path / "data" / UNION_FILE, check_size=False)) == 4


@pytest.mark.parametrize("empty", [{}, {"input": None}, {"input": ""}])
def test_a_copy_of_the_union_in_parquet(hub: Path, tmp_path: Path, empty: dict[str, Any]) -> None:
    write_commonsense(tmp_path / "some", {"boolq": (4, 0)})
    records = json.loads((tmp_path / "some" / "boolq" / "train.json").read_text())
    data = hub / "someone" / "copy" / "data"
    data.mkdir(parents=True)
    rows = [{"query": r["instruction"], "answer": r["answer"], "output": r["output"], **empty} for r in records]
    (data / "train-00000-of-00001.parquet").write_text(json.dumps(rows))
    copy(tmp_path / "data")
    assert json.loads((tmp_path / "data" / UNION_FILE).read_text()) == records


def test_a_repository_of_something_else(hub: Path, tmp_path: Path) -> None:
    (hub / "someone" / "copy").mkdir(parents=True)
    (hub / "someone" / "copy" / "README.md").write_text("hello")
    with pytest.raises(PrepareError, match=r"someone/copy has nothing that .*It has: README.md"):
        copy(tmp_path / "data")
    with pytest.raises(PrepareError, match="choose one source"):
        prepare_commonsense(tmp_path, hub="someone/copy", from_originals=True)
