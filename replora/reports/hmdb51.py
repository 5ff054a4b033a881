"""HMDB51's two numbers: the mean over its three official splits, and split 1 alone, which never share a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replora.errors import RepLoRAError

# What has to be the same in the three runs.
SAME = ("backbone", "method", "options")
SAME_DATA = ("dataset", "protocol", "recipe", "clips", "train_fraction", "shots", "val_fraction", "normalization")


class SplitsError(RepLoRAError):
    """The results given are not of the three splits of HMDB51 under one setting."""


def hmdb51_accuracies(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`{"split 1": ...}`, and `{"mean of 3 splits": ...}` beside it where runs on all three are there.

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
        differing = [key for key in SAME if results[name].get(key) != first.get(key)]
        differing += [f"data.{key}" for key in SAME_DATA if results[name]["data"].get(key) != first["data"].get(key)]
        if differing:
            raise SplitsError(f"{name} and {by_split[1]} differ in {', '.join(differing)}, so they have no mean.")
    accuracy = {split: float(results[name]["test"]["metrics"]["test/accuracy"]) for split, name in by_split.items()}
    columns = {"split 1": accuracy[1]}
    if len(accuracy) == 3:
        columns["mean of 3 splits"] = sum(accuracy.values()) / 3
    return columns
