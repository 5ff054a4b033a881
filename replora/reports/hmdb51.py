"""HMDB51's two numbers: the mean over its three official splits, and split 1 alone, which never share a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replora.errors import RepLoRAError

SPLIT_1, MEAN = "split 1", "mean of three splits"

# What has to be the same in the three runs, as a path into their results.
SAME = (
    *("backbone", "method", "options"),
    *("data.dataset", "data.protocol", "data.recipe", "data.clips", "data.normalization", "data.skip_corrupt"),
    *("data.train_fraction", "data.shots", "data.subset_seed", "data.val_fraction", "data.split_seed"),
    *("fit.optimizer", "fit.epochs", "fit.batch", "fit.precision", "fit.seed"),
    "test.metrics.test/skipped",  # an accuracy over fewer videos is another number
)


class SplitsError(RepLoRAError):
    """The results given are not of the three splits of HMDB51 under one setting."""


def hmdb51_accuracies(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`{"split 1": ...}`, and `{"mean of three splits": ...}` beside it where runs on all three are there.

    Args:
        results: name of a run -> content of its `results.json`; the accuracy is that of its `test`, in [0, 1].

    Raises:
        SplitsError: a run has no test or is of other data, a split is there twice or split 1 is not there, two of the
            three are there, or the runs differ in more than their split.
    """
    by_split: dict[int, str] = {}
    for name, content in results.items():
        split = content.get("data", {}).get("official_split")
        if split is None or "test" not in content:
            raise SplitsError(f"{name} is no tested run on HMDB51: its results have no official_split, or no test.")
        if split in by_split:
            raise SplitsError(f"{name} and {by_split[split]} are both of split {split}.")
        by_split[split] = name
    if sorted(by_split) not in ([1], [1, 2, 3]):
        raise SplitsError(
            f"There are results of the splits {', '.join(map(str, sorted(by_split))) or 'none'}. The official number "
            "is the mean over 1, 2 and 3; tables of one split alone are of split 1. Fit the others with --data.split."
        )
    first = results[by_split[1]]
    for name in by_split.values():
        differing = [path for path in SAME if _at(results[name], path) != _at(first, path)]
        if differing:
            raise SplitsError(f"{name} and {by_split[1]} differ in {', '.join(differing)}, so they have no mean.")
    accuracy = {split: float(results[name]["test"]["metrics"]["test/accuracy"]) for split, name in by_split.items()}
    columns = {SPLIT_1: accuracy[1]}
    if len(accuracy) == 3:
        columns[MEAN] = sum(accuracy.values()) / 3
    return columns


def _at(content: Any, path: str) -> Any:
    """What stands at `a.b.c`; None if nothing does."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content
