"""The commonsense files from the Hugging Face hub: a copy, or rebuilt from the original data sets."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replora.datasets.errors import PrepareError
from replora.datasets.text.commonsense import OUTPUT, UNION_FILE, CommonsenseSplit, commonsense_task, load_entries
from replora.datasets.vtab.hub import download_repository
from replora.io import replace_text

# Branch in which the hub keeps every public data set as <configuration>/<split>/*.parquet.
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class Original:
    """The original data set of a task."""

    repository: str  # on the hub
    read: Callable[[dict[str, Any]], tuple[str, list[str], int]]  # row -> question, options, right option's position
    configurations: tuple[str, ...] = ("default",)  # of the training set, in order; the test set is of the first one
    test_split: str = "validation"  # the split of the original that is the test set here


def _choices(question: str) -> Callable[[dict[str, Any]], tuple[str, list[str], int]]:
    """The reader of AI2's data sets, whose options are lettered or numbered."""

    def read(row: dict[str, Any]) -> tuple[str, list[str], int]:
        labels = list(row["choices"]["label"])
        return row[question], list(row["choices"]["text"]), labels.index(row["answerKey"])

    return read


ORIGINALS = {
    "boolq": Original("google/boolq", lambda row: (row["question"], [], 0 if row["answer"] else 1)),  # no passage
    "piqa": Original("baber/piqa", lambda row: (row["goal"], [row["sol1"], row["sol2"]], int(row["label"]))),
    "social_i_qa": Original(
        "allenai/social_i_qa",
        lambda row: (
            f"{row['context']} {row['question']}",
            [row[f"answer{letter}"] for letter in "ABC"],
            int(row["label"]) - 1,
        ),
    ),
    "hellaswag": Original(
        "Rowan/hellaswag",
        lambda row: (f"{row['activity_label']}: {row['ctx']}", list(row["endings"]), int(row["label"])),
    ),
    "winogrande": Original(
        "allenai/winogrande",
        lambda row: (row["sentence"], [row["option1"], row["option2"]], int(row["answer"]) - 1),
        tuple(f"winogrande_{size}" for size in ("xl", "l", "m", "s", "xs", "debiased")),
    ),
    "ARC-Easy": Original("allenai/ai2_arc", _choices("question"), ("ARC-Easy",), "test"),
    "ARC-Challenge": Original("allenai/ai2_arc", _choices("question"), ("ARC-Challenge",), "test"),
    "openbookqa": Original("allenai/openbookqa", _choices("question_stem"), ("main",), "test"),
}


def rebuild(root: Path, task: str, split: CommonsenseSplit) -> None:
    """Make `root/<task>/<split>.json` from the original data set.

    The records are those of LLM-Adapters; their order within a training set may differ.

    Raises:
        PrepareError: A package is missing, the download fails, or a row is not as expected.
    """
    original = ORIGINALS[task]
    named = "train" if split == "train" else original.test_split
    configurations = original.configurations if split == "train" else original.configurations[:1]
    patterns = [f"{configuration}/{named}/*.parquet" for configuration in configurations]
    download = download_repository(root, original.repository, PARQUET_BRANCH, patterns)
    entries = []
    for configuration in configurations:
        files = sorted((download.folder / configuration / named).glob("*.parquet"))
        if not files:
            raise PrepareError(f"{original.repository} has no {configuration}/{named}/*.parquet at {download.commit}.")
        entries += [make_entry(task, row) for file in files for row in read_parquet(file)]
    write_entries(root / task / f"{split}.json", entries)
    shutil.rmtree(download.folder, ignore_errors=True)


def make_entry(task: str, row: dict[str, Any]) -> dict[str, str]:
    """A row of an original data set as a record of a task's file.

    Raises:
        PrepareError: A column is missing, or the answer is not one of the options.
    """
    template = commonsense_task(task)
    try:
        question, options, answer = ORIGINALS[task].read(row)
        label = template.labels(len(options) or 2)[answer] if answer >= 0 else ""
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise PrepareError(
            f"A row of {ORIGINALS[task].repository} is not as expected ({type(error).__name__}: {error}): {row}"
        ) from error
    if not label:
        raise PrepareError(f"A row of {ORIGINALS[task].repository} has no answer: {row}")
    return {
        "instruction": template.instruction(question, options),
        "input": "",
        "output": f"{OUTPUT}{label}",
        "answer": label,
    }


def install_copy(root: Path, repository: str, tasks: list[str]) -> list[Path]:
    """Copy the files of a repository that `root` lacks, `<task>/<split>.json` or the union, and return them.

    Raises:
        PrepareError: The download fails, or there is no such file in it.
    """
    root.mkdir(parents=True, exist_ok=True)
    download = download_repository(root, repository)
    files = [path for path in sorted(download.folder.rglob("*")) if path.is_file() and ".cache" not in path.parts]
    written = []
    for path in files:
        target = root / path.parent.name / path.name
        if path.parent.name in tasks and path.name in ("train.json", "test.json") and not target.exists():
            write_entries(target, load_entries(path))
            written.append(target)
    union = [path for path in files if path.stem == Path(UNION_FILE).stem and path.suffix == ".json"]
    parquet = [path for path in files if path.suffix == ".parquet" and path.name.startswith("train")]
    if (union or parquet) and not written and not (root / UNION_FILE).exists():
        entries = load_entries(union[0]) if union else [_renamed(row) for file in parquet for row in read_parquet(file)]
        write_entries(root / UNION_FILE, entries)
        written.append(root / UNION_FILE)
    if not written:
        names = ", ".join(path.relative_to(download.folder).as_posix() for path in files[:20])
        raise PrepareError(
            f"{repository} has nothing that {root} lacks of {', '.join(tasks)}: neither <task>/train.json and "
            f"test.json, nor {UNION_FILE}, nor train*.parquet. It has: {names or 'nothing'}. The download is kept in "
            f"{download.folder}; delete it if you do not need it."
        )
    shutil.rmtree(download.folder, ignore_errors=True)
    return written


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a copy in parquet. In some the instruction is `query`, and the input is missing or null."""
    instruction = row.get("instruction", row.get("query"))
    kept = {key: row.get(key) for key in ("output", "answer")}
    return {"instruction": instruction, "input": row.get("input") or "", **kept}


def write_entries(file: Path, entries: list[Any]) -> None:
    """Write records as LLM-Adapters does: one JSON list."""
    replace_text(file, json.dumps(entries, ensure_ascii=False, indent=4) + "\n")


def read_parquet(file: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file. Raises PrepareError if pyarrow is not installed, or the file is corrupt."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise PrepareError(
            f"{file.name} needs pyarrow, which cannot be imported here ({error}). Install it with: pip install pyarrow"
        ) from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    except Exception as error:
        raise PrepareError(f"{file} cannot be read: {error}") from error
    return rows
