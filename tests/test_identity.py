"""The one table that says what a field of results means when runs are compared."""

from __future__ import annotations

from typing import get_args

import pytest

from replora.identity import (
    FIELDS,
    Comparison,
    compared_fields,
    compared_options,
    configuration_sha256,
    differing,
    differing_options,
    is_compared,
    setting_options,
    table_conditions,
)

RUN = {
    "backbone": {"name": "vit", "fingerprint": "1a", "weights": "a.bin"},
    "method": "lora",
    "options": {"rank": 8, "dropout": 0.0},
    "data": {"dataset": "HMDB51", "recipe": "v_petl, changed: clips.stride, optimizer.lr", "clips": {"stride": 8}},
    "fit": {"optimizer": {"lr": 0.1}, "epochs": 5, "seconds": 3.0},
}


def test_every_comparison_looks_at_some_field() -> None:
    found = {comparison for field in FIELDS for comparison in field.compared.split()}
    assert found == set(get_args(Comparison))
    assert len({field.path for field in FIELDS}) == len(FIELDS)


def test_the_longest_path_decides() -> None:
    assert is_compared("options.rank", "checkpoint")
    assert not is_compared("options.dropout", "checkpoint")
    assert is_compared("options.dropout", "run")
    assert not is_compared("backbone.weights", "checkpoint")


def test_differences_are_told_by_their_paths() -> None:
    other = RUN | {"options": {"rank": 4, "dropout": 0.5}, "fit": RUN["fit"] | {"seconds": 9.0}}  # type: ignore[operator]
    assert differing(RUN, other, "run") == {"options.dropout": (0.0, 0.5), "options.rank": (8, 4)}
    assert differing(RUN, other, "checkpoint") == {"options.rank": (8, 4)}
    assert differing(RUN, RUN, "splits") == {}


def test_fields_of_a_comparison() -> None:
    assert compared_fields(RUN, "method") == {"rank": 8, "dropout": 0.0, "lr": 0.1}
    assert compared_fields(RUN, "length") == {"epochs": 5}


@pytest.mark.parametrize(("skipped", "more"), [(0.0, {}), (2.0, {"skipped test items": 2})])
def test_conditions_of_a_table(skipped: float, more: dict[str, int]) -> None:
    found = table_conditions(RUN | {"test": {"metrics": {"test/skipped": skipped}}})
    wanted = {"sweep": "", "dataset": "HMDB51", "backbone": "vit", "fingerprint": "1a"}
    recipe = {"recipe": "v_petl, changed: clips.stride", "clips": {"stride": 8}}
    assert found == wanted | recipe | more


@pytest.mark.parametrize(
    ("option", "one", "other", "same"),
    [
        ("trainer.devices", 1, "1", True),
        ("trainer.precision", "32", 32, True),
        ("trainer.precision", "32-true", 32, False),
        ("model.optimizer.lr", 1, 1.0, True),
        ("model.label_smoothing", False, True, False),
        ("trainer.limit_train_batches", 1, 1.0, False),
        ("trainer.overfit_batches", 0, 0.0, False),
        ("trainer.val_check_interval", 2, 2, True),
    ],
)
def test_options_are_compared_by_their_meaning(option: str, one: object, other: object, same: bool) -> None:
    """The command line gives "1" where a file gives 1; one batch is not all batches."""
    first, second = {option: one}, {option: other}
    assert bool(differing_options(first, second)) != same
    assert (setting_options({"configuration": first}) == setting_options({"configuration": second})) == same
    if same and isinstance(one, str) != isinstance(other, str):
        assert compared_options(first) == compared_options(second)
        assert configuration_sha256(first) == configuration_sha256(second)


def test_rules_of_subsets_are_not_mixed() -> None:
    new, former = {"data": {"subset_rule": "within_final"}}, {"data": {}}
    for comparison in ("stage", "method", "splits"):
        assert differing(new, former, comparison) == {"data.subset_rule": ("within_final", None)}
