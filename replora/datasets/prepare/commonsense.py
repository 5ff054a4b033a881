"""`replora-cli prepare commonsense`: get what is missing, check every record, say what is wrong and what to do."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from replora.datasets.errors import DatasetNotFoundError, PrepareError, RecordError
from replora.datasets.prepare.report import counts
from replora.datasets.text.commonsense import (
    COMMONSENSE_TASKS,
    UNION_FILE,
    UNION_SIZE,
    CommonsenseRecord,
    CommonsenseSplit,
    check_entry,
    commonsense_task,
    duplicate_count,
    find_task_file,
    load_entries,
    read_union,
    record_error,
)
from replora.datasets.text.rebuild import install_copy, rebuild

SPLITS: tuple[CommonsenseSplit, ...] = ("train", "test")
SOURCE = "https://github.com/AGI-Edgerunners/LLM-Adapters (folder dataset, ODC-By)"


@dataclass
class CommonsenseReport:
    """What was found of one task, or of the union file.

    Attributes:
        name: Name of the task or the file.
        sizes: Records of each split that is there.
        repeated: Training records whose instruction another one has.
        shared: Test records whose instruction the training set has.
        missing: Splits that are not there.
        problems: What makes a file unusable, each with its reason.
        notes: What is worth knowing all the same.
        unreadable: Every file that cannot be read; records are counted instead.
    """

    name: str
    sizes: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    shared: int = 0
    missing: list[CommonsenseSplit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def columns(self) -> dict[str, str]:
        """Heading -> cell of the table."""
        sizes = counts(dict(self.sizes), SPLITS)
        return {
            "train": sizes["train"],
            "repeated": f"{self.repeated:,}" if "train" in self.sizes else "-",
            "test": sizes["test"],
            "test in train": f"{self.shared:,}" if len(self.sizes) == len(SPLITS) else "-",
        }

    @property
    def state(self) -> str:
        """The verdict."""
        if self.problems:
            return "corrupt"
        if len(self.missing) == len(SPLITS):
            return "missing"
        return f"no {self.missing[0]}.json" if self.missing else "complete"


def prepare_commonsense(
    root: Path,
    tasks: list[str] | None = None,
    from_originals: bool = False,
    hub: str | None = None,
    check_sizes: bool = True,
) -> list[CommonsenseReport]:
    """Get the files that `root` lacks, where that is asked for, then check every record of all of them.

    Args:
        root: The folder of the tasks' folders; made if something is got.
        tasks: Names; all eight if None.
        from_originals: Make what is missing from the original data sets on the Hugging Face hub.
        hub: OWNER/NAME of a repository with a copy of the files, or of the union file.
        check_sizes: Compare the number of records with the table.

    Returns:
        A report for each task, and one for the union file where there is one.

    Raises:
        UnknownTaskError: A name is none of the eight.
        PrepareError: Both sources were given, or the copy cannot be had.
    """
    chosen = [commonsense_task(name).name for name in dict.fromkeys(tasks or COMMONSENSE_TASKS)]
    if from_originals and hub:
        raise PrepareError("--rebuild and --hub were both given: choose one source for what is missing.")
    failed: dict[str, str] = {}
    if hub:
        install_copy(root, hub, chosen)
    if from_originals:
        failed = _rebuild_missing(root, chosen)
    reports = [check_task(root, task, check_sizes) for task in chosen]
    for report in reports:
        if report.name in failed:
            report.problems.append(failed[report.name])
    union = root / UNION_FILE
    return [*reports, check_union(union, check_sizes)] if union.is_file() else reports


def _rebuild_missing(root: Path, tasks: list[str]) -> dict[str, str]:
    """Why each task that could not be made could not."""
    failed = {}
    for task in tasks:
        try:
            for split in SPLITS:
                if not _is_there(root, task, split):
                    root.mkdir(parents=True, exist_ok=True)
                    rebuild(root, task, split)
        except PrepareError as error:
            failed[task] = str(error)
    return failed


def check_task(root: Path, task: str, check_sizes: bool = True) -> CommonsenseReport:
    """Check every record of a task."""
    report = CommonsenseReport(task)
    found: dict[CommonsenseSplit, list[CommonsenseRecord]] = {}
    for split in SPLITS:
        try:
            file = find_task_file(root, task, split)
            entries = load_entries(file)
        except DatasetNotFoundError:
            report.missing.append(split)
            continue
        except RecordError as error:
            report.problems.append(str(error))
            continue
        report.sizes[split] = len(entries)
        checked = [check_entry(file, index, entry, task) for index, entry in enumerate(entries)]
        found[split] = [record for record, _ in checked if record is not None]
        faults = [(index, fault) for index, (_, fault) in enumerate(checked) if fault]
        if faults:
            index, fault = faults[0]
            first = record_error(str(file), index, fault, entries[index])
            report.problems.append(f"{len(faults):,} of {len(entries):,} records are corrupt, the first: {first}")
        known = commonsense_task(task)
        expected = known.train_size if split == "train" else known.test_size
        if check_sizes and len(entries) != expected:
            report.problems.append(f"{file} has {len(entries):,} records, {expected:,} are expected")
    report.repeated = duplicate_count(found.get("train", []))
    trained = {record.instruction for record in found.get("train", [])}
    report.shared = sum(record.instruction in trained for record in found.get("test", []))
    if ambiguous := sum(record.question.ambiguous for records in found.values() for record in records):
        report.notes.append(
            f"in {ambiguous} records the words that begin an option occur twice; the first place counts"
        )
    return report


def check_union(file: Path, check_sizes: bool = True) -> CommonsenseReport:
    """Check every record of a union file."""
    report = CommonsenseReport(file.name)
    try:
        records = read_union(file, check_sizes)
    except RecordError as error:
        report.problems.append(str(error))
        return report
    report.sizes["train"] = len(records)
    report.repeated = duplicate_count(records)
    return report


def _is_there(root: Path, task: str, split: CommonsenseSplit) -> bool:
    try:
        find_task_file(root, task, split)
    except DatasetNotFoundError:
        return False
    return True


# --- what is printed


def remedy(reports: list[CommonsenseReport], root: Path) -> str:
    """What to do about the reports, with the commands to copy."""
    tasks = [report for report in reports if report.name in COMMONSENSE_TASKS]
    complete = [report.name for report in tasks if report.state == "complete"]
    trained = [report for report in tasks if "train" in report.sizes and not report.problems]
    count = sum(report.sizes["train"] for report in trained)
    lines = [
        f"{len(complete)} of {len(tasks)} tasks are complete in {root}; {count:,} training records of {UNION_SIZE:,}."
    ]
    if corrupt := [report.name for report in reports if report.problems]:
        lines.append(f"Corrupt: {', '.join(corrupt)}. Move the named files away, then get them again.")
    if usable := [report.name for report in trained if report.state == "complete"]:
        lines.append(f'To use the complete tasks: --data.tasks "[{", ".join(usable)}]"')
    if lacking := [report.name for report in tasks if report.state != "complete"]:
        command = f"replora-cli prepare commonsense --root {shlex.quote(str(root))} --tasks {','.join(lacking)}"
        lines += [
            f"To get {', '.join(lacking)}:",
            f"  {command} --rebuild true      (from the original data sets; needs: pip install pyarrow)",
            f"  {command} --hub OWNER/NAME    (a copy on the Hugging Face hub)",
            f"  or by hand into {root}: {SOURCE}.",
        ]
    return "\n".join(lines)
