from __future__ import annotations

from typing import Any

import pytest

from replora.reports.sections.video import SplitsError, hmdb51_accuracies


def result(split: int, accuracy: float, **data: Any) -> dict[str, Any]:
    described = {"official_split": split, "recipe": "v_petl", **data}
    return {"method": "replora", "data": described, "test": {"metrics": {"test/accuracy": accuracy}}}


def test_two_columns() -> None:
    assert hmdb51_accuracies({"a": result(1, 0.5)}) == {"split 1": 0.5}
    three = {"a": result(1, 0.5), "b": result(3, 0.7), "c": result(2, 0.9)}
    assert hmdb51_accuracies(three) == {"split 1": 0.5, "mean of three splits": pytest.approx(0.7)}


@pytest.mark.parametrize(
    ("entry", "change", "named"),
    [
        ("fit", {"epochs": 69}, r"fit\.epochs"),
        ("fit", {"optimizer": {"class": "SGD", "lr": 0.1}}, r"fit\.optimizer"),
        ("data", {"skip_corrupt": True}, r"data\.skip_corrupt"),
        ("test", {"metrics": {"test/accuracy": 0.5, "test/skipped": 2.0}}, r"test\.metrics\.test/skipped"),
    ],
)
def test_splits_of_other_runs_have_no_mean(entry: str, change: dict[str, Any], named: str) -> None:
    three = {name: {**result(split, 0.5), "fit": {"epochs": 70}} for split, name in enumerate("abc", start=1)}
    assert "mean of three splits" in hmdb51_accuracies(three)
    three["b"] = three["b"] | {entry: three["b"][entry] | change}
    with pytest.raises(SplitsError, match=f"b and a differ in {named}"):
        hmdb51_accuracies(three)


def test_splits_with_any_other_option_have_no_mean() -> None:
    options = {"data.split": 1, "model.label_smoothing": 0.0}
    three = {
        name: result(split, 0.5) | {"configuration": options | {"data.split": split}}
        for split, name in enumerate("abc", start=1)
    }
    assert "mean of three splits" in hmdb51_accuracies(three)
    three["c"]["configuration"]["model.label_smoothing"] = 0.1
    with pytest.raises(SplitsError, match=r"c and a differ in model\.label_smoothing"):
        hmdb51_accuracies(three)


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


@pytest.mark.parametrize(
    ("option", "values"),
    [("data.root", (True, "a", "b")), ("data.num_workers", (True, 1, 2)), ("seed_everything", (False, 0, 1))],
)
def test_splits_are_compared_by_what_the_options_mean(option: str, values: tuple[bool, Any, Any]) -> None:
    """Harmless options may differ; a seed may not, because splits are averaged within one."""
    may_differ, one, other = values
    three = {
        name: result(split, 0.5) | {"configuration": {"data.split": split, option: other if split == 2 else one}}
        for split, name in enumerate("abc", start=1)
    }
    if may_differ:
        assert "mean of three splits" in hmdb51_accuracies(three)
    else:
        with pytest.raises(SplitsError, match=f"b and a differ in {option}"):
            hmdb51_accuracies(three)


def test_splits_with_other_class_names_have_no_mean() -> None:
    three = {name: result(split, 0.5, class_names=["a", "b"]) for split, name in enumerate("abc", start=1)}
    assert "mean of three splits" in hmdb51_accuracies(three)
    three["b"]["data"]["class_names"] = ["b", "a"]
    with pytest.raises(SplitsError, match=r"b and a differ in data\.class_names"):
        hmdb51_accuracies(three)
