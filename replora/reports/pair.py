"""Two runs on the same test images, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError, listed
from replora.evaluation.paired import Paired, paired
from replora.evaluation.significance import wilson_interval
from replora.io import UnreadableFileError, read_csv
from replora.results import TEST_PREDICTIONS, read_results, status_of


def compare_runs(first: Path, second: Path) -> str:
    """The comparison, one line a fact.

    Raises:
        RepLoRAError: A run has no test predictions, or they are of other images than those of the other run.
    """
    answers = [_answers(run) for run in (first, second)]
    results = [read_results(run) for run in (first, second)]
    _check_same(answers, (first, second))
    rights = [[label == predicted for label, predicted, _ in rows.values()] for rows in answers]
    counts = paired(*rights)
    lines = [f"{counts.examples:,} test images of {_task(results[0])}", ""]
    width = max(len(str(run)) for run in (first, second)) + 2
    for run, result, right in zip((first, second), results, rights, strict=True):
        low, high = wilson_interval(sum(right), len(right))
        accuracy = f"{sum(right) / len(right):.1%}, {sum(right):,} of {len(right):,}"
        lines.append(f"{run!s:<{width}}{accuracy} (95 % interval {low:.1%} to {high:.1%})  {_method(result)}")
    return "\n".join([*lines, "", *_verdict(counts, first, second), *_limits(results, (first, second))])


def _verdict(counts: Paired, first: Path, second: Path) -> list[str]:
    low, high = counts.interval
    better, worse = (second, first) if counts.difference > 0 else (first, second)
    said = f"{better} is better than {worse} on these images" if counts.p_value < 0.05 else "no significant difference"
    return [
        f"right: both {counts.both:,}, only the first {counts.first:,}, only the second {counts.second:,}, "
        f"neither {counts.neither:,}",
        f"second minus first: {100 * counts.difference:+.1f} points (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}), p = {_p(counts.p_value)} (McNemar, exact): {said}",
        "The interval and p are about the choice of test images. Another draw of the training images, or another seed, "
        "varies on top of it.",
    ]


def _p(value: float) -> str:
    return "less than 0.0001" if value < 1e-4 else f"{value:.2g}"


def _limits(results: list[dict[str, Any]], runs: tuple[Path, Path]) -> list[str]:
    """What differs between the trainings beside the method, and runs that are not complete."""
    lines = []
    for result, run in zip(results, runs, strict=True):
        if (status := status_of(result, result.get("test", {}).get("partial", []))) != "complete":
            lines.append(f"Note: {run} is {status}.")
    sizes = [result.get("data", {}).get("train_size") for result in results]
    if sizes[0] != sizes[1]:
        lines.append(f"Note: they were trained on {sizes[0]} and {sizes[1]} images.")
    return lines


def _answers(run: Path) -> dict[tuple[str, str], tuple[int, int, str]]:
    """Index and path of each test image -> its label, the prediction, and the name of the label."""
    file = run / TEST_PREDICTIONS
    if not file.is_file():
        raise RepLoRAError(
            f"{run} has no {TEST_PREDICTIONS}: it has not been tested, or is not a run that classifies images or "
            f"videos. Test it: replora-cli test --config {run / 'fit.yaml'}"
        )
    try:
        rows = {
            (line["index"], line["path"]): (int(line["label"]), int(line["predicted"]), line["label_name"])
            for line in read_csv(file)
        }
    except (KeyError, ValueError) as error:
        raise UnreadableFileError(f"{file} holds no predictions of a run: {error}. Write it again: test") from error
    if not rows:
        raise RepLoRAError(f"{file} has no prediction.")
    return rows


def _check_same(answers: list[dict[tuple[str, str], tuple[int, int, str]]], runs: tuple[Path, Path]) -> None:
    one, other = answers
    # By name: the two may count their classes differently.
    differing = [
        key for key in one.keys() | other.keys() if key not in one or key not in other or one[key][2] != other[key][2]
    ]
    if differing:
        shown = listed([path or f"image {index}" for index, path in sorted(differing)], 3)
        raise RepLoRAError(
            f"{runs[0]} ({len(one):,} test images) and {runs[1]} ({len(other):,}) were not tested on the same images "
            f"with the same labels: {shown}. Test both with the same data options; replora-cli report compares means "
            "over several runs."
        )


def _task(results: dict[str, Any]) -> str:
    data = results.get("data", {})
    return str(data.get("task") or data.get("dataset"))


def _method(results: dict[str, Any]) -> str:
    return f"{results['method']} on {results['backbone']['name']}"
