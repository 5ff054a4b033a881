"""The pages of evidence and the results in results/, as tests read them to hold one to the other."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from replora.io import read_csv
from replora.reports.statistics import t_interval

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("evidence", "other_tasks", "other_tasks_pretrained")
}
REPORTS = sorted((ROOT / "results").glob("*/report.md"))
NAMES = [report.parent.name for report in REPORTS]


def text_of(page: str) -> str:
    """The text of a page such as `docs/claims.md`, with one space for each line break."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


CLAIMS = text_of("docs/claims.md")


def lines_of(name: str) -> list[str]:
    return (ROOT / "results" / name / "report.md").read_text(encoding="utf-8").splitlines()


def table(name: str, file: str) -> list[dict[str, str]]:
    return read_csv(ROOT / "results" / name / file)


def runs_of(name: str) -> str:
    folder = ROOT / "results" / name
    compressed = folder / "runs.jsonl.gz"
    content = gzip.decompress(compressed.read_bytes()) if compressed.exists() else (folder / "runs.jsonl").read_bytes()
    return content.decode("utf-8")


def reservations(name: str, answer: str) -> str:
    """The line below an answer of a report: what else is to be known of it."""
    lines = lines_of(name)
    return lines[next(place for place, line in enumerate(lines) if line.startswith(f"> {answer}")) + 2]


def linked(page: str) -> list[str]:
    """The folders of results whose reports a text links."""
    return re.findall(r"\]\(\.\./results/(\w+)/report\.md\)", page)


def final_scores(name: str) -> dict[tuple[str, str, str], list[float]]:
    """(task, amount, method) -> test accuracies in percent, in the order of the seeds."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for run in sorted(table(name, "runs.csv"), key=lambda run: int(run["seed"])):
        if run["stage"] == "final":
            found.setdefault((run["task"], run["amount"], run["method"]), []).append(100 * float(run["test"]))
    return found


def paired_differences(
    scores: dict[tuple[str, str, str], list[float]], method: str = "RepLoRA", other: str = "LoRA"
) -> dict[tuple[str, str], np.ndarray]:
    """(task, amount) -> `method` minus `other` of each seed, in percentage points."""
    cells = dict.fromkeys((task, amount) for task, amount, _ in scores)
    return {cell: np.subtract(scores[*cell, method], scores[*cell, other]) for cell in cells}


def over_seeds(name: str, method: str, other: str, amount: str | None = None) -> np.ndarray:
    """`method` minus `other` of each seed in percentage points, averaged over tasks and sizes."""
    differences = paired_differences(final_scores(name), method, other)
    return np.mean([found for cell, found in differences.items() if amount in (None, cell[1])], axis=0)


def interval_of(differences: np.ndarray) -> str:
    """The interval of a mean, as pages write it."""
    low, high = t_interval(differences)
    return f"{low:+.1f} to {high:+.1f}"


def apart(differences: np.ndarray, words: str) -> str:
    """A mean difference and its interval, as pages say it of two methods that reports do not compare."""
    return f"{differences.mean():.1f} points {words}, {interval_of(differences)}"


def excludes_0(interval: str) -> bool:
    low, high = map(float, interval.split(" to "))
    return low > 0 or high < 0
