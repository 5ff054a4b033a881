from __future__ import annotations

from typing import Any

import pytest

from replora.reports.hmdb51 import SplitsError, hmdb51_accuracies


def result(split: int, accuracy: float, **data: Any) -> dict[str, Any]:
    described = {"official_split": split, "recipe": "v_petl", **data}
    return {"method": "replora", "data": described, "test": {"metrics": {"test/accuracy": accuracy}}}


def test_two_columns() -> None:
    assert hmdb51_accuracies({"a": result(1, 0.5)}) == {"split 1": 0.5}
    three = {"a": result(1, 0.5), "b": result(3, 0.7), "c": result(2, 0.9)}
    assert hmdb51_accuracies(three) == {"split 1": 0.5, "mean of 3 splits": pytest.approx(0.7)}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "There are results of the splits none"),
        ({"a": result(2, 0.5)}, r"There are results of the splits 2\."),
        ({"a": result(1, 0.5), "b": result(2, 0.5)}, r"splits 1, 2\. The official number"),
        ({"a": result(1, 0.5), "b": result(1, 0.6)}, "b and a are both of split 1"),
        ({"a": {"data": {"task": "dtd"}}}, "a is no tested run on HMDB51"),
        (
            {"a": result(1, 0.5), "b": result(2, 0.5, recipe="tuned"), "c": result(3, 0.5)},
            r"b and a differ in data\.recipe",
        ),
    ],
)
def test_what_has_no_mean(results: dict[str, Any], message: str) -> None:
    with pytest.raises(SplitsError, match=message):
        hmdb51_accuracies(results)
