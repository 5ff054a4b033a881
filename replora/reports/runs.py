"""The runs of a report, read from their `results.json` files or from a `.jsonl` file with one of those per line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError
from replora.io import UnreadableFileError, read_text
from replora.reports.answers import with_right_answers
from replora.reports.choice import PROPORTIONS
from replora.results import UNTRAINED, ResultsError, parse_results, read_results, status_of, weights_source
from replora.run_directory import files_named

# Order of the methods in tables; other methods follow by name.
REFERENCE = "LoRA"  # the method that others are compared with, unless a report is asked for another one
UNTUNED = "untuned"  # the method of a test of weights that nothing trained
METHOD_ORDER = (UNTUNED, "full fine-tuning", "linear probe", "BitFit", "LoRA", "DoRA", "linear", "RepLoRA")
# Runs are compared by the first of these metrics that they have; `score` is the mean over tasks with different metrics.
HEADLINES = ("accuracy", "acc_norm", "acc", "score")
REQUIRED = ("backbone", "options", "parameters", "data")  # of a run with a method
PARTS = (*REQUIRED, "configuration", "fit", "test", "validate", "sweep")
LINES = (".jsonl", ".jsonl.gz")
LARGEST = 2**30  # bytes of a compressed file's text; zeros expand a thousandfold
SHOWN = 4  # number of sizes in a picture that has no room for all of them


class ReportError(RepLoRAError):
    """The sources hold no results, or results that cannot be reported together."""


@dataclass(frozen=True, order=True)
class Size:
    """Amount of training data: a fraction of the training set, or a number of examples per class.

    Attributes:
        shots: Whether the amount is a number of examples per class.
        amount: The fraction in (0, 1], or the number of examples per class.
    """

    shots: bool
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g} per class" if self.shots else f"{100 * self.amount:g} %"


def headline(measured: Collection[str]) -> str:
    """The one of `HEADLINES` that runs are compared by.

    Args:
        measured: Names of the metrics of a run with their splits, such as `test/acc_norm`.

    Returns:
        Its name without a split; `accuracy` if none of them was measured.
    """
    return next((name for name in HEADLINES if any(f"{s}/{name}" in measured for s in ("test", "val"))), "accuracy")


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Attributes:
        results: The content of its `results.json`.
        method: Name of its method in tables.
        task: Task of the benchmark, such as `dtd`.
        size: Amount of its training data.
        seed: Random seed of the run.
        stage: `select` for a run by which options are selected, `unselected` for a final run at another point of the
            grid than the selected one, otherwise `final`.
        replaced: Results that do not count because of this run: older repeats of it, and copies.
    """

    results: dict[str, Any]
    method: str
    task: str
    size: Size
    seed: int
    stage: str
    replaced: tuple[dict[str, Any], ...] = ()

    @property
    def metric(self) -> str:
        """Name of the metric that the run is compared by, without its split; `accuracy` if it has none."""
        return headline(self.metrics("test") or self.metrics("fit"))

    @property
    def score(self) -> float | None:
        """The metric on the test data, in [0, 1]; None without a test or if the run diverged."""
        return self.metrics("test").get(f"test/{self.metric}")

    @property
    def validation(self) -> float | None:
        """The metric on the validation data at the end of the fit."""
        return self.metrics("fit").get(f"val/{self.metric}")

    @property
    def status(self) -> str:
        """`complete`, `diverged`, or `partial: ` and why."""
        return status_of(self.results, partial_measurement(self.results))

    @property
    def diverged(self) -> bool:
        return self.status == "diverged"

    @property
    def examples(self) -> int | None:
        """Number of training examples; None if the results do not say."""
        data = self.results.get("data", {})
        size, indices = data.get("train_size"), data.get("train_indices")
        if size is not None:
            return int(size)
        if isinstance(indices, dict):  # format 1, several tasks: positions, or how many there are
            return sum(part["count"] if isinstance(part, dict) else len(part) for part in indices.values())
        return len(indices) if isinstance(indices, list) and indices else None

    @property
    def validation_examples(self) -> int | None:
        """Number of labeled validation examples; None if the results do not say."""
        return self._split_size("val")

    @property
    def scarce(self) -> bool:
        """Whether the run was trained on at most one example per ten classes."""
        classes = self.results.get("data", {}).get("num_classes")
        return classes is not None and self.examples is not None and 10 * self.examples <= classes

    def test_examples(self, task: str) -> int | None:
        """Number of test examples of a task on which the metric is a proportion; None if it is none, or unknown."""
        test = self.results.get("test", {})
        if self.metric not in PROPORTIONS:
            return None
        items = test.get("tasks", {}).get(task, {}).get("items")
        if items is not None or task != self.task:
            return None if items is None else int(items)
        found = test.get("data", {}).get("size") or self._split_size("test")
        return None if found is None else int(found) - int(self.metrics("test").get("test/skipped") or 0)

    def _split_size(self, split: str) -> int | None:
        data = self.results.get("data", {})
        size = data.get("split_sizes", {}).get(split, data.get("splits", {}).get(split, {}).get("size"))
        return None if size is None else int(size)

    @property
    def chosen_by(self) -> dict[str, Any]:
        """The rule of the selection, as a run of a sweep records it: {metric, mode, ...}; empty for others.

        Final runs also have the mean of each point.
        """
        rule: dict[str, Any] = self.results.get("sweep", {}).get("chosen_by", {})
        return rule

    @property
    def from_other_tasks(self) -> bool:
        """Whether options are selected by the validation scores of other tasks, and not by those of the own one.

        Final runs have the last word: the first stage is the same for both, and may have been run for the other one.
        """
        return self.chosen_by.get("source") == "other_tasks"

    @property
    def rate(self) -> float | None:
        """Peak learning rate."""
        return self._of_optimizer("lr")

    @property
    def decay(self) -> float | None:
        """Weight decay."""
        return self._of_optimizer("weight_decay")

    def metrics(self, verb: str) -> dict[str, float | None]:
        """The metrics that a verb measured; none of a run that diverged."""
        if self.diverged:
            return {}
        measured: dict[str, float | None] = self.results.get(verb, {}).get("metrics", {})
        return measured

    def _of_optimizer(self, name: str) -> float | None:
        value = self.results.get("fit", {}).get("optimizer", {}).get(name)
        if value is None:  # the record of a run that diverged holds only its trial
            value = self.results.get("sweep", {}).get("grid", {}).get(f"model.optimizer.{name}")
        return None if value is None else float(value)


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table.

    Attributes:
        title: Data set and backbone, and in what the group differs from others with the same ones.
        conditions: What they have in common.
        runs: All of them.
        all_tasks: Whether means include tasks on which a run is `scarce`.
        reference: The method with which the others are compared, and which stands in gray behind them where they are
            many. Without it they are compared with the first one.
    """

    title: str
    conditions: dict[str, Any]
    runs: list[Run]
    all_tasks: bool = False
    reference: str = REFERENCE

    @property
    def methods(self) -> list[str]:
        return ordered({run.method for run in self.runs})

    @property
    def final(self) -> list[Run]:
        return [run for run in self.runs if run.stage == "final"]

    @property
    def selection(self) -> list[Run]:
        return [run for run in self.runs if run.stage == "select"]


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods in the order of every table and picture."""
    known = {name: place for place, name in enumerate(METHOD_ORDER)}
    return sorted(methods, key=lambda name: (known.get(name, len(known)), name))


def counted(number: int, noun: str) -> str:
    """`1 seed`, `5 seeds`, `2 copies`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def spread(sizes: Sequence[Size]) -> list[Size]:
    """At most `SHOWN` of the sizes, evenly spread, the first and the last among them."""
    count = min(SHOWN, len(sizes))
    if count == len(sizes):
        return list(sizes)
    return [sizes[round(i * (len(sizes) - 1) / (count - 1))] for i in range(count)]


def read_runs(sources: Sequence[Path], skipped: list[str] | None = None) -> list[dict[str, Any]]:
    """The results in directories (searched with those inside), `results.json` and `.jsonl` files, each file once.

    A directory without any `results.json` is one of a report, and its `runs.jsonl` is read. It may be compressed by
    gzip, as `runs.jsonl.gz`. `file` of the results is the run's directory.

    Args:
        sources: Directories and files.
        skipped: If given, the reasons why files cannot be read are added to it instead of raised.

    Raises:
        ReportError: A source holds no results.
        ResultsError: A file is corrupt or of a newer release.
    """
    found: list[dict[str, Any]] = []
    seen: set[Path] = set()
    for source in sources:
        inside = sorted(files_named("results.json", source))
        inside = inside or sorted(file for ending in LINES for file in source.glob(f"*{ending}"))
        files = inside if source.is_dir() else [source]
        if not files:
            raise ReportError(
                f"{source} holds no results.json, and no runs.jsonl of a report. Name directories of runs."
            )
        for file in files:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                contents = _lines(file) if file.name.endswith(LINES) else [_with_place(read_results(file), file)]
                for content in contents:
                    _check_complete(file, content)
                found += contents
            except (ReportError, ResultsError, UnreadableFileError) as error:
                if skipped is None:
                    raise
                skipped.append(str(error))
    return found


def _with_place(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The results with their place, the answers that lie beside them, and the method that they really are of."""
    if "fit" not in content and "test" in content and weights_source(content["test"]) == UNTRAINED:
        parameters = content.get("parameters", {}) | {"adapter_trained": 0, "adapter_deployed": 0}
        content = {**content, "method": UNTUNED, "options": {}, "parameters": parameters}
    content = with_right_answers(content, file.parent)
    return {**content, "file": str(file.parent if file.name == "results.json" else file)}


def _check_complete(file: Path, content: dict[str, Any]) -> None:
    """Check that results have the parts that a report reads.

    Raises:
        ReportError: They have not.
    """
    if is_run(content) and not {"method", "sweep"} & content.keys():
        raise ReportError(f"{file} is not a complete results file: it has no 'method'.")
    parts = {name: content[name] for name in PARTS if name in content}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ReportError(f"{file} is not a complete results file: {name!r} is {part!r}, not a mapping.")
    for verb in {"fit", "test", "validate"} & content.keys():
        if not isinstance(content[verb].get("metrics", {}), dict):
            raise ReportError(f"{file} is not a complete results file: its 'metrics' of {verb} are no mapping.")
    missing = [name for name in REQUIRED if name not in content]
    if "method" in content and missing:
        raise ReportError(f"{file} is not a complete results file: it has no {missing[0]!r}.")


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        compressed = file.suffix == ".gz" and file.is_file()
        lines = (_uncompressed(file) if compressed else read_text(file)).splitlines()
        return [parse_results(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]
    except (ResultsError, UnreadableFileError) as error:
        raise ReportError(f"{file} cannot be read: {error}") from error


def _uncompressed(file: Path) -> str:
    try:
        with gzip.open(file) as stream:
            content = stream.read(LARGEST + 1)
        if len(content) <= LARGEST:
            return content.decode("utf-8")
        reason = f"its text has more than {LARGEST:,} bytes"
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = f"it is no text compressed by gzip ({error})"
    raise UnreadableFileError(f"{reason}. Write it again with gzip from the runs.jsonl of a report.")


def partial_measurement(content: dict[str, Any]) -> list[str]:
    """Why the measurement of a run that tables show does not cover its split."""
    reasons: list[str] = content.get("test", content.get("validate", {})).get("partial", [])
    return reasons


def is_run(content: dict[str, Any]) -> bool:
    """Whether results are of a run that was trained or tested."""
    return bool({"fit", "test", "sweep"} & content.keys())
