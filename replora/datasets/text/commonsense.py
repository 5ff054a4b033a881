"""The eight commonsense tasks of LLM-Adapters (Hu et al. 2023, arXiv 2304.01933): their questions, files and sizes.

Each task has a folder with `train.json` and `test.json`, or all training sets are one file, `commonsense_170k.json`
(https://github.com/AGI-Edgerunners/LLM-Adapters, data under ODC-By). A file is a list of records

    {"instruction": "Please ... Answer format: answer1/answer2", "input": "", "answer": "answer2",
     "output": "the correct answer is answer2"}

whose question and options are written into `instruction` by the template of the task.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from replora.datasets.common.text_files import parse_json_or_lines, read_json
from replora.datasets.errors import DatasetNotFoundError, RecordError, UnknownTaskError
from replora.errors import nearest

CommonsenseSplit = Literal["train", "test"]
UNION_FILE = "commonsense_170k.json"
UNION_SIZE = 170_420
OUTPUT = "the correct answer is "
FORMAT = "Answer format: "
FOLDERS = ("", "commonsense", "dataset")  # places of the tasks' folders below the root

# These share a template, so the task of their records in a union file is unknown.
MIXED_TASKS = ("social_i_qa", "ARC-Easy", "ARC-Challenge", "openbookqa")
MIXED = f"{', '.join(MIXED_TASKS[:-1])} and {MIXED_TASKS[-1]}"


@dataclass(frozen=True)
class CommonsenseTask:
    """One task: its sizes and the template of its instructions."""

    name: str  # name of the task and its folder
    train_size: int  # records of `train.json`
    test_size: int  # records of `test.json`
    lead: str  # beginning of an instruction, before the question
    # name of an option (`Answer1: ...`, label `answer1`); empty if the answer is true or false
    word: str = "Answer"
    counts: tuple[int, ...] = (4,)  # possible numbers of options
    between: str = " "  # separator of two options
    after: str = "\n\n"  # text after the last option

    def labels(self, count: int = 2) -> tuple[str, ...]:
        """The labels of a question with `count` options."""
        if not self.word:
            return ("true", "false")
        return tuple(f"{self.word.lower()}{number}" for number in range(1, count + 1))

    def instruction(self, question: str, options: Sequence[str] = ()) -> str:
        """The instruction of a question and its options, which is the inverse of `parse`."""
        if not self.word:
            return f"{self.lead}{question}?\n\n{FORMAT}{'/'.join(self.labels())}"
        listed = self.between.join(f"{self.word}{i}: {text}" for i, text in enumerate(options, 1))
        return f"{self.lead}{question}\n\n{listed}{self.after}{FORMAT}{'/'.join(self.labels(len(options)))}"

    def parse(self, instruction: str) -> Question:
        """The question and the options of an instruction.

        If the words that begin an option occur twice, the first ones count (`prepare commonsense` reports them).

        Raises:
            RecordError: The instruction does not have the form of this task.
        """
        body, _, listed = instruction.rpartition(FORMAT)
        labels = tuple(listed.split("/"))
        known = [self.labels(count) for count in self.counts] if self.word else [self.labels()]
        if labels not in known:
            raise RecordError(f"it should end with `{FORMAT}{'/'.join(known[-1])}`")
        if not body.startswith(self.lead):
            raise RecordError(f"it should begin with `{self.lead}`")
        if not self.word:
            marks, end = [], "?\n\n"
        else:
            marks = [f"\n\n{self.word}1: "] + [f"{self.between}{self.word}{i + 1}: " for i in range(1, len(labels))]
            end = self.after
        if not body.endswith(end):
            raise RecordError(f"`{FORMAT}` should follow {end!r}")
        rest = body[len(self.lead) : len(body) - len(end)]
        ambiguous = any(rest.count(mark) > 1 for mark in marks)
        parts = []
        for mark in marks:
            part, found, rest = rest.partition(mark)
            if not found:
                raise RecordError(f"there should be {len(labels)} options, but {mark.strip()!r} is missing")
            parts.append(part)
        question, *options = [*parts, rest]
        return Question(question, tuple(options), labels, ambiguous)


@dataclass(frozen=True)
class Question:
    """The question of an instruction."""

    text: str  # question of the original data set
    options: tuple[str, ...]  # texts of the options; empty if the answer is true or false
    labels: tuple[str, ...]  # labels of the options
    ambiguous: bool = False  # whether the words that begin an option occur elsewhere too


@dataclass(frozen=True)
class CommonsenseRecord:
    """One record of a file."""

    task: str  # name of the task; `MIXED` for a record of a union file that may be of four tasks
    index: int  # position in the file
    instruction: str  # question, options and answer format
    answer: str  # the label of the right option
    output: str  # text to learn
    file: str  # file of the record

    @property
    def question(self) -> Question:
        """Question and options.

        Raises:
            RecordError: The instruction is not of the task's form; the message names file, record and text.
        """
        try:
            return _template(self.task).parse(self.instruction)
        except RecordError as error:
            raise record_error(self.file, self.index, str(error), self.instruction) from error


_QUESTION = "Please choose the correct answer to the question: "
# Counted in the files; the training sets of piqa, social_i_qa, hellaswag and winogrande and the test set of hellaswag
# by their original data sets. WinoGrande's training set is its six published subsets one after another, so most of its
# records occur more than once.
COMMONSENSE_TASKS: dict[str, CommonsenseTask] = {
    task.name: task
    for task in (
        CommonsenseTask(
            "boolq", 9_427, 3_270, "Please answer the following question with true or false, question: ", "", (2,)
        ),
        CommonsenseTask(
            "piqa",
            16_113,
            1_838,
            "Please choose the correct solution to the question: ",
            "Solution",
            (2,),
            between="\n\n",
        ),
        CommonsenseTask("social_i_qa", 33_410, 1_954, _QUESTION, counts=(3,)),
        CommonsenseTask(
            "hellaswag", 39_905, 10_042, "Please choose the correct ending to complete the given sentence: ", "Ending"
        ),
        CommonsenseTask(
            "winogrande",
            63_238,
            1_267,
            "Please choose the correct answer to fill in the blank to complete the given sentence: ",
            "Option",
            (2,),
            after=" ",
        ),
        CommonsenseTask("ARC-Easy", 2_251, 2_376, _QUESTION, counts=(3, 4, 5)),
        CommonsenseTask("ARC-Challenge", 1_119, 1_172, _QUESTION, counts=(3, 4, 5)),
        CommonsenseTask("openbookqa", 4_957, 500, _QUESTION),
    )
}
_MIXED_TASK = CommonsenseTask(
    MIXED, sum(COMMONSENSE_TASKS[name].train_size for name in MIXED_TASKS), 0, _QUESTION, counts=(3, 4, 5)
)


def commonsense_task(name: str) -> CommonsenseTask:
    """The task of this name. Raises UnknownTaskError if there is no such task."""
    if name in COMMONSENSE_TASKS:
        return COMMONSENSE_TASKS[name]
    raise UnknownTaskError(f"{name!r} is not one of the eight commonsense tasks. {nearest(name, COMMONSENSE_TASKS)}")


# --- files


def find_task_file(root: Path, task: str, split: CommonsenseSplit) -> Path:
    """`train.json` or `test.json` of a task.

    Args:
        root: Folder of the tasks' folders, or its parent if it is called `commonsense` or `dataset`.
        task: Name of the task.
        split: `train` or `test`.

    Raises:
        DatasetNotFoundError: The file is not found; the message names those that are.
    """
    for folder in FOLDERS:
        if (file := root / folder / task / f"{split}.json").is_file():
            return file
    present = [
        name for name in COMMONSENSE_TASKS if any((root / f / name / f"{split}.json").is_file() for f in FOLDERS)
    ]
    there = f"There are {split} files of: {', '.join(present)}." if present else "There is none of any task."
    raise DatasetNotFoundError(
        f"There is no {task}/{split}.json in {root} (nor in its folders commonsense and dataset). {there} Choose "
        f"among them with --data.tasks, or get what is missing: replora-cli prepare commonsense --root {root} "
        f"--tasks {task} --rebuild true"
    )


def read_task(root: Path, task: str, split: CommonsenseSplit, check_size: bool = True) -> list[CommonsenseRecord]:
    """All records of a task, each checked, from the file of `find_task_file`.

    Raises:
        RecordError: The file is corrupt, `check_size` is set and its number of records is not that of the table, or a
            record does not have the form of the task.
    """
    file, known = find_task_file(root, task, split), commonsense_task(task)
    records = read_records(file, task)
    expected = known.train_size if split == "train" else known.test_size
    if check_size and len(records) != expected:
        raise RecordError(
            f"{file} has {len(records):,} records, but {expected:,} are expected. Get it again (replora-cli prepare "
            "commonsense --help), or use smaller data with --data.check_sizes false."
        )
    return records


def read_union(file: Path, check_size: bool = True) -> list[CommonsenseRecord]:
    """All records of a file with the training sets of all tasks, each checked.

    The task of a record follows from its template; `MIXED` stands for the four tasks that share one.

    Raises:
        DatasetNotFoundError: The file is not found.
        RecordError: The file is corrupt, has another number of records, or a record has no known form.
    """
    if not file.is_file():
        raise DatasetNotFoundError(
            f"There is no file {file}. Get it (replora-cli prepare commonsense --hub zwhe99/commonsense_170k), or "
            "leave --data.union_file out to read the folders of the tasks."
        )
    records = read_records(file, None)
    expected = {task.name: task.train_size for task in (*COMMONSENSE_TASKS.values(), _MIXED_TASK)}
    found = Counter(record.task for record in records)
    wrong = [f"{task}: {n:,} instead of {expected[task]:,}" for task, n in found.items() if n != expected[task]]
    if check_size and (wrong or len(records) != UNION_SIZE):
        raise RecordError(
            f"{file} has {len(records):,} records, but {UNION_SIZE:,} are expected ({'; '.join(wrong)}). WinoGrande "
            "counts with all six of its subsets. Get the file again, or allow it with --data.check_sizes false."
        )
    return records


def read_records(file: Path, task: str | None) -> list[CommonsenseRecord]:
    """The records of a JSON file, each checked; `task` is None for a union file.

    Raises:
        RecordError: The file is corrupt, or a record does not have the form of its task.
    """
    records = []
    for index, entry in enumerate(load_entries(file)):
        record, fault = check_entry(file, index, entry, task)
        if record is None:
            raise record_error(str(file), index, fault, entry)
        records.append(record)
    return records


def load_entries(file: Path) -> list[Any]:
    """The list in a JSON file, or the records of one with a record per line.

    Raises:
        RecordError: The file is not JSON or not a list of records.
    """
    try:
        entries = read_json(file, RecordError, "Get it again.", parse_json_or_lines)
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error}).") from error
    if not isinstance(entries, list) or not entries:
        raise RecordError(f"{file} is not a list of records, or is empty. Get it again.")
    return entries


def check_entry(file: Path, index: int, entry: Any, task: str | None) -> tuple[CommonsenseRecord | None, str]:
    """An entry as a record, or None and what is wrong with it."""
    if not isinstance(entry, dict):
        return None, "it is not a table"
    for key in ("instruction", "input", "output", "answer"):
        if not isinstance(entry.get(key), str):
            return None, f"{key!r} is missing or not a text"
    if entry["input"]:
        return None, "'input' should be empty"
    if entry["output"] != f"{OUTPUT}{entry['answer']}":
        return None, f"'output' should be {OUTPUT!r} followed by 'answer'"
    name = task or _task_by_template(entry["instruction"])
    if name is None:
        return None, "it begins like no task"
    record = CommonsenseRecord(name, index, entry["instruction"], entry["answer"], entry["output"], str(file))
    try:
        labels = _template(name).parse(record.instruction).labels
    except RecordError as error:
        return None, str(error)
    if record.answer not in labels:
        return None, f"the answer {record.answer!r} is not one of {'/'.join(labels)}"
    return record, ""


def record_error(file: str, index: int, fault: str, entry: Any) -> RecordError:
    """The error of one record: its place, its fault and its beginning."""
    text = json.dumps(entry, ensure_ascii=False) if not isinstance(entry, str) else repr(entry)
    shown = text if len(text) <= 400 else f"{text[:300]} ... {text[-90:]}"
    return RecordError(f"{file}, record {index} (counted from 0): {fault}. It is: {shown}")


def duplicate_count(records: Iterable[CommonsenseRecord]) -> int:
    """How many records repeat the instruction of another one."""
    return sum(count - 1 for count in Counter(record.instruction for record in records).values())


def files_sha256(files: Iterable[Path]) -> str:
    """SHA-256 of the contents of files, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _template(name: str) -> CommonsenseTask:
    return _MIXED_TASK if name == MIXED else commonsense_task(name)


def _task_by_template(instruction: str) -> str | None:
    tasks = (task for task in COMMONSENSE_TASKS.values() if instruction.startswith(task.lead))
    names = [task.name for task in tasks]
    return MIXED if len(names) > 1 else next(iter(names), None)
