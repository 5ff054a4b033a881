"""The templates of the eight tasks, and possible defects of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replora.datasets.errors import DatasetNotFoundError, RecordError, UnknownTaskError
from replora.datasets.text.commonsense import (
    COMMONSENSE_TASKS,
    MIXED,
    MIXED_TASKS,
    UNION_SIZE,
    CommonsenseRecord,
    commonsense_task,
    duplicate_count,
    read_task,
    read_union,
)
from tests.fake_data import write_commonsense

# Every byte of an instruction: question and options -> text.
INSTRUCTIONS: list[tuple[str, str, list[str], str]] = [
    (
        "boolq",
        "can a fish drown in air",
        [],
        "Please answer the following question with true or false, question: can a fish drown in air?\n\n"
        "Answer format: true/false",
    ),
    (
        "piqa",
        "How do I dry a wet book?",
        ["Put it in the sun. ", "Put it in the sea."],
        "Please choose the correct solution to the question: How do I dry a wet book?\n\n"
        "Solution1: Put it in the sun. \n\nSolution2: Put it in the sea.\n\nAnswer format: solution1/solution2",
    ),
    (
        "social_i_qa",
        "Ann lent Eve her bike. What will Eve want to do next?",
        ["ride it", "eat it", "thank Ann"],
        "Please choose the correct answer to the question: Ann lent Eve her bike. What will Eve want to do next?\n\n"
        "Answer1: ride it Answer2: eat it Answer3: thank Ann\n\nAnswer format: answer1/answer2/answer3",
    ),
    (
        "hellaswag",
        "Making tea: [header] How to make tea [title] Boil water. She",
        ["pours it.", "paints it.", "runs away.", "sleeps [step] on."],
        "Please choose the correct ending to complete the given sentence: Making tea: [header] How to make tea [title] "
        "Boil water. She\n\nEnding1: pours it. Ending2: paints it. Ending3: runs away. Ending4: sleeps [step] on.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
    ),
    (
        "winogrande",
        "Ann thanked Eve because _ had helped.",
        ["Ann", "Eve"],
        "Please choose the correct answer to fill in the blank to complete the given sentence: Ann thanked Eve because "
        "_ had helped.\n\nOption1: Ann Option2: Eve Answer format: option1/option2",
    ),
    (
        "ARC-Easy",
        "Which is a metal?",
        ["iron", "wood", "salt"],
        "Please choose the correct answer to the question: Which is a metal?\n\nAnswer1: iron Answer2: wood "
        "Answer3: salt\n\nAnswer format: answer1/answer2/answer3",
    ),
    (
        "ARC-Challenge",
        "Which is a gas?",
        ["air", "wood", "salt", "iron", "ice"],
        "Please choose the correct answer to the question: Which is a gas?\n\nAnswer1: air Answer2: wood Answer3: salt "
        "Answer4: iron Answer5: ice\n\nAnswer format: answer1/answer2/answer3/answer4/answer5",
    ),
    (
        "openbookqa",
        "The sun gives",
        ["light", "sand", "rain", "shade"],
        "Please choose the correct answer to the question: The sun gives\n\nAnswer1: light Answer2: sand Answer3: rain "
        "Answer4: shade\n\nAnswer format: answer1/answer2/answer3/answer4",
    ),
]


@pytest.mark.parametrize(("task", "question", "options", "text"), INSTRUCTIONS)
def test_instructions_and_what_is_read_out_of_them(task: str, question: str, options: list[str], text: str) -> None:
    template = commonsense_task(task)
    assert template.instruction(question, options) == text
    found = template.parse(text)
    assert (found.text, found.options, found.ambiguous) == (question, tuple(options), False)
    assert found.labels == template.labels(len(options) or 2)


def test_all_tasks_are_in_the_golden_instructions() -> None:
    assert [task for task, *_ in INSTRUCTIONS] == list(COMMONSENSE_TASKS)


def test_sizes_add_up_to_the_union() -> None:
    assert sum(task.train_size for task in COMMONSENSE_TASKS.values()) == UNION_SIZE == 170_420
    assert sum(task.test_size for task in COMMONSENSE_TASKS.values()) == 22_419


def test_words_of_an_option_inside_another_are_told() -> None:
    template = commonsense_task("openbookqa")
    found = template.parse(template.instruction("Q", ["a", "b Answer3: c", "d", "e"]))
    assert found.ambiguous
    assert found.options == ("a", "b", "c Answer3: d", "e")


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("boolq", "What?\n\nAnswer format: true/false", "should begin with `Please answer"),
        ("boolq", INSTRUCTIONS[0][3].replace("?\n\n", "\n\n"), r"should follow '\?\\n\\n'"),
        ("openbookqa", INSTRUCTIONS[5][3], "should end with `Answer format: answer1/answer2/answer3/answer4`"),
        ("openbookqa", INSTRUCTIONS[7][3].replace("Answer3: ", ""), "should be 4 options, but 'Answer3:' is missing"),
        ("openbookqa", INSTRUCTIONS[1][3], "should end with"),
        ("winogrande", "", "should end with"),
    ],
)
def test_what_is_not_of_the_form_is_refused(task: str, text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        commonsense_task(task).parse(text)
    record = CommonsenseRecord(task, 7, text, "", "", "some/test.json")
    with pytest.raises(RecordError, match=r"some/test.json, record 7 "):
        _ = record.question


def test_unknown_task() -> None:
    with pytest.raises(UnknownTaskError, match=r"'arc-easy' is not one of the eight.*Did you mean 'ARC-Easy'"):
        commonsense_task("arc-easy")


# --- files


@pytest.mark.parametrize("folder", ["", "commonsense", "dataset"])
def test_files_of_a_task(tmp_path: Path, folder: str) -> None:
    write_commonsense(tmp_path, folder=folder)
    for task in COMMONSENSE_TASKS:
        records = read_task(tmp_path, task, "train", check_size=False)
        assert [record.index for record in records] == list(range(12))
        assert {record.task for record in records} == {task}
        assert all(record.answer in record.question.labels for record in records)
        assert len(read_task(tmp_path, task, "test", check_size=False)) == 6


def test_wrong_size_is_named(tmp_path: Path) -> None:
    write_commonsense(tmp_path, {"ARC-Easy": (12, 6)})
    with pytest.raises(RecordError, match=r"ARC-Easy/train.json has 12 records, but 2,251 are expected"):
        read_task(tmp_path, "ARC-Easy", "train")


def test_missing_file_tells_what_there_is(tmp_path: Path) -> None:
    write_commonsense(tmp_path, {"ARC-Easy": (12, 6), "boolq": (3, 0)})
    with pytest.raises(
        DatasetNotFoundError, match=r"no piqa/train.json in .*train files of: boolq, ARC-Easy\..*--tasks"
    ):
        read_task(tmp_path, "piqa", "train")
    with pytest.raises(DatasetNotFoundError, match="There is none of any task"):
        read_task(tmp_path / "none", "piqa", "train")


def entries(file: Path) -> list[Any]:
    found: list[Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "answer9", "output": "the correct answer is answer9"}, "'answer9' is not one of answer1/"),
        ({"output": "answer1"}, "'output' should be 'the correct answer is ' followed by 'answer'"),
        ({"input": "more"}, "'input' should be empty"),
        ({"instruction": 3}, "'instruction' is missing or not a text"),
        ({"instruction": "What is this?"}, "should end with `Answer format: .*What is this"),
    ],
)
def test_damaged_record_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_commonsense(tmp_path, {"openbookqa": (5, 0)})
    file = tmp_path / "openbookqa" / "train.json"
    content = entries(file)
    content[3] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=rf"openbookqa/train.json, record 3 \(counted from 0\): .*{message}"):
        read_task(tmp_path, "openbookqa", "train", check_size=False)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '["text"]', "\udcff"])
def test_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    write_commonsense(tmp_path, {"boolq": (5, 0)})
    (tmp_path / "boolq" / "train.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordError, match=r"boolq/train.json"):
        read_task(tmp_path, "boolq", "train")


def test_duplicates_are_counted(tmp_path: Path) -> None:
    write_commonsense(tmp_path, {"boolq": (5, 0)})
    records = read_task(tmp_path, "boolq", "train", check_size=False)
    assert duplicate_count(records) == 0
    assert duplicate_count(records + records[:2] + records[:1]) == 3


# --- the union file


def write_union(root: Path, sizes: dict[str, int]) -> Path:
    """One file with records of several tasks, and records of the first repeated where its size is large."""
    write_commonsense(root / "tasks", {task: (min(size, 7), 0) for task, size in sizes.items()})
    content: list[Any] = []
    for task, size in sizes.items():
        few = entries(root / "tasks" / task / "train.json")
        content += [few[i % len(few)] for i in range(size)]
    file = root / "commonsense_170k.json"
    file.write_text(json.dumps(content))
    return file


def test_tasks_of_a_union_file_are_told_by_their_templates(tmp_path: Path) -> None:
    records = read_union(write_union(tmp_path, dict.fromkeys(COMMONSENSE_TASKS, 2)), check_size=False)
    expected = [MIXED if task in MIXED_TASKS else task for task in COMMONSENSE_TASKS for _ in range(2)]
    assert [record.task for record in records] == expected
    assert [record.index for record in records] == list(range(16))


def test_the_whole_union_has_170420_records(tmp_path: Path) -> None:
    sizes = {task.name: task.train_size for task in COMMONSENSE_TASKS.values()}
    file = write_union(tmp_path, sizes)
    assert len(read_union(file)) == UNION_SIZE
    content = entries(file)
    file.write_text(json.dumps(content[1:]))
    with pytest.raises(RecordError, match=r"170,420 are expected \(boolq: 9,426 instead of 9,427\)"):
        read_union(file)


def test_union_file_that_is_missing_or_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"There is no file .*--hub"):
        read_union(tmp_path / "commonsense_170k.json")
    file = write_union(tmp_path, {"boolq": 3})
    content = entries(file)
    content[1]["instruction"] = "Say something."
    file.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"record 1 .*it begins like no task.*Say something"):
        read_union(file, check_size=False)
