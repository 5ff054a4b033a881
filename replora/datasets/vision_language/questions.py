"""Questions about files: what is asked of a trained model on the command line or in a list."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replora.datasets.common.csv_list import COLUMNS, SEPARATORS
from replora.datasets.common.files import is_unicode, printable
from replora.datasets.common.text_files import parse_json_lines, parse_json_or_lines, read_text
from replora.datasets.errors import ListFileError, UnknownTaskError
from replora.datasets.vision_language.tasks import VLRecord, VLTask, vl_task
from replora.datasets.vision_language.video_text import CHOICES, choice_text, clip_text
from replora.errors import RepLoRAError, listed, nearest

LISTS = (".csv", ".tsv", ".json", ".jsonl", ".txt")
FILE_FIELDS = COLUMNS["path"]
QUESTION_FIELDS = ("question", "sent", "sentence", "text", "q", "prompt")
MOST_CHOICES = max(CHOICES.values())


class QuestionError(RepLoRAError):
    """A question is missing, empty or of another form than its task has."""


@dataclass(frozen=True)
class Question:
    """A question about files, or files to describe.

    Attributes:
        files: One image or video; two images for NLVR2.
        text: The question; empty if the files are to be described.
        choices: Answers to choose from, for TVQA and How2QA.
        times: Beginning and end of the scene in a video, as the task's files write them.
        subtitles: What is said in the video, in one line.
        where: List and line of the question, for messages.
    """

    files: tuple[Path, ...]
    text: str = ""
    choices: tuple[str, ...] = ()
    times: str = ""
    subtitles: str = ""
    where: str = ""


def sort_arguments(arguments: Sequence[str], suffixes: Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """Split arguments into files (folders and patterns too), lists of questions, and questions.

    A file is what exists, ends in one of `suffixes`, or contains `*` or, without spaces, `/`. A list also exists or
    ends in its suffix. Everything else is a question.
    """
    files: list[str] = []
    lists: list[Path] = []
    texts: list[str] = []
    for argument in arguments:
        suffix = "" if re.search(r"\s", Path(argument).suffix) else Path(argument).suffix.lower()
        like_a_path = "*" in argument or (
            os.sep in argument and not re.search(r"\s", argument) and not argument.endswith("?")
        )
        if suffix in LISTS and not os.path.isdir(argument):  # noqa: PTH112 (pathlib raises for names that are too long)
            lists.append(Path(argument).expanduser())
        elif suffix in suffixes or like_a_path or (argument and os.path.exists(argument)):  # noqa: PTH110 (same)
            files.append(argument)
        else:
            texts.append(argument)
    return files, lists, texts


def read_questions(file: Path) -> list[Question]:
    """The questions of a list.

    Args:
        file: A `.txt` file with a question per line, which are about no file yet. Or a CSV file with the columns
            `image` (or `video`) and `question`, or a JSON file with a list of such objects, or one object per line;
            further fields are `image2`, `a0` to `a4`, `times` and `subtitles`. Paths are relative to the list's folder.

    Raises:
        ListFileError: The list is absent, empty or corrupt, or a file in it is missing.
    """
    if not file.is_file():
        raise ListFileError(f"There is no list of questions {printable(file)}.")
    text = read_text(file, ListFileError)
    if file.suffix.lower() == ".txt":
        found = [Question((), line, where=f"{printable(file)}, line {n}") for n, line in _lines(text)]
    elif file.suffix.lower() in (".json", ".jsonl"):
        found = [
            _question(file, f"{printable(file)}, record {n}", row) for n, row in enumerate(_json(file, text), start=1)
        ]
    else:
        found = _csv(file, text)
    if not found:
        raise ListFileError(f"{printable(file)} holds no question.")
    return found


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _json(file: Path, text: str) -> list[Any]:
    try:
        content = parse_json_lines(text) if file.suffix.lower() == ".jsonl" else parse_json_or_lines(text)
    except ValueError as error:
        raise ListFileError(f"{printable(file)} is not JSON ({error}).") from error
    if not isinstance(content, list):
        raise ListFileError(f"{printable(file)} holds a {type(content).__name__}, not a list of questions.")
    return content


def _csv(file: Path, text: str) -> list[Question]:
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restkey="")
    found = []
    try:
        for row in reader:
            where = f"{printable(file)}, line {reader.line_num}"
            if any(row.pop("", None) or []):
                raise ListFileError(f"{where} has more cells than the first line. Quote cells that hold {separator!r}.")
            if any(map(str.strip, filter(None, row.values()))):
                found.append(_question(file, where, row))
    except csv.Error as error:
        raise ListFileError(f"{printable(file)} cannot be read as a CSV file: {error}.") from error
    return found


def _question(file: Path, where: str, row: Any) -> Question:
    if not isinstance(row, dict):
        raise ListFileError(f"{where} is {row!r:.50}, not an object with an image and a question.")
    fields = {re.sub(r"[ -]", "_", str(key).strip().casefold()): value for key, value in row.items()}

    def field(*names: str) -> str:
        value = next((fields[name] for name in names if fields.get(name) not in (None, "")), "")
        return str(value).strip()

    first = field(*FILE_FIELDS)
    if not first:
        raise ListFileError(
            f"{where} names no file: it has {listed(list(map(str, row))) or 'nothing'}. The fields are 'image' (or "
            "'video') and 'question'; in a CSV file its first line names them."
        )
    paths = tuple(file.parent / Path(name).expanduser() for name in (first, field("image2")) if name)
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 (pathlib raises for names that are too long)
            raise ListFileError(f"{where}: there is no {printable(path)}. Paths are relative to the list's folder.")
    choices = tuple(filter(None, (field(f"a{i}") for i in range(MOST_CHOICES))))
    return Question(
        paths, field(*QUESTION_FIELDS), choices, field("times", "ts"), field("subtitles", "sub", "subs"), where
    )


def select_task(tasks: Sequence[str], name: str | None, questions: Sequence[Question]) -> VLTask:
    """The task of questions: the one of this name, or the first of the run's that fits them.

    Raises:
        UnknownTaskError: The run was not trained on the task.
        QuestionError: None of the run's tasks fits.
    """
    if name is not None:
        if name not in tasks:
            raise UnknownTaskError(f"task: the run was not trained on {name!r}. {nearest(name, tasks)}")
        return vl_task(name)
    asks, pairs = any(q.text for q in questions), any(len(q.files) == 2 for q in questions)
    fitting = [task for task in map(vl_task, tasks) if (task.kind != "caption") == asks]
    if not fitting:
        raise QuestionError(
            f"A question was given, but the run describes {'videos' if vl_task(tasks[0]).video else 'images'} "
            f"({', '.join(tasks)}). Give files alone."
            if asks
            else f"No question was given, but the run answers questions ({', '.join(tasks)}). Give one in quotation "
            'marks, such as "what is it?".'
        )
    return min(fitting, key=lambda task: (task.images == 2) != pairs)


def pair(files: Sequence[Path], questions: Sequence[Question], task: VLTask) -> list[Question]:
    """Each question about each file, or about each two files for NLVR2, file by file.

    Raises:
        QuestionError: NLVR2's files are not pairs.
    """
    if len(files) % task.images:
        raise QuestionError(
            f"{task.name} asks about two images at once, but {len(files)} {'was' if len(files) == 1 else 'were'} given."
        )
    groups = [tuple(files[i : i + task.images]) for i in range(0, len(files), task.images)]
    return [replace(question, files=group) for group in groups for question in questions]


def record_of(index: int, question: Question, task: VLTask) -> VLRecord:
    """The record of a question, with the text that the task's own records have.

    Raises:
        QuestionError: The question has another form than its task.
    """
    place = f"{question.where}: " if question.where else ""
    if not all(map(is_unicode, (question.text, *question.choices, question.subtitles, question.times))):
        raise QuestionError(f"{place}the question {printable(question.text)!r} is not UTF-8 text.")
    text, subtitles = _one_line(question.text), _one_line(question.subtitles)
    if task.kind == "caption" and text:
        raise QuestionError(f"{place}{task.name} describes what it sees and takes no question, but {text!r} was given.")
    if task.kind != "caption" and not re.search(r"\w", text):
        raise QuestionError(f"{place}{task.name} needs a question, but {text!r} was given.")
    if len(question.files) != task.images:
        raise QuestionError(
            f"{place}{task.name} needs {task.images} file{'s' * (task.images > 1)} for a question, but "
            f"{len(question.files)} {'was' if len(question.files) == 1 else 'were'} given."
        )
    most = CHOICES.get(task.name, 0)
    if not (2 <= len(question.choices) <= most if task.kind == "choice" else not question.choices):
        needed = f"needs 2 to {most} choices" if task.kind == "choice" else "has no choices"
        raise QuestionError(
            f"{place}{task.name} {needed}, but {len(question.choices)} were given (--choices, a0, ...)."
        )
    if (question.times or subtitles) and not task.video:
        raise QuestionError(f"{place}{task.name} is about images, which have neither subtitles nor times.")
    if task.kind == "choice":
        text = choice_text(subtitles, text, question.times, [_one_line(choice) for choice in question.choices])
    elif task.video:
        text = clip_text(task.name, subtitles, question.times)
    return VLRecord(index, index, text, tuple(map(str, question.files)))


def shown_answer(question: Question, answer: str) -> str:
    """An answer for people: `a1` of a question with choices is followed by that choice."""
    choices: Mapping[str, str] = {f"a{i}": choice for i, choice in enumerate(question.choices)}
    return f"{answer}: {choices[answer]}" if answer in choices else answer


def _one_line(text: str) -> str:
    """A text without line breaks, which no question of the tasks has."""
    return re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]+\s*", " ", text.strip())
