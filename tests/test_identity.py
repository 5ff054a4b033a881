"""The one table that says what a field of results means when runs are compared."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonargparse import ArgumentParser

from replora.identity import (
    FIELDS,
    Comparison,
    compared_fields,
    compared_options,
    configuration_sha256,
    differing,
    differing_options,
    flat_options,
    is_compared,
    setting_options,
    table_conditions,
)

FORMER = Path(__file__).parent / "cli" / "former"
LINKED = ("tokenizer", "revision", "num_frames", "num_classes")  # they follow others, and no file holds them
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


def test_a_run_from_before_an_option_equals_one_with_what_it_did_then() -> None:
    before = {"data.init_args.image_size": 224, "model.lr": 0.1}
    now = before | {"data.init_args.framing": "squash", "data.init_args.background": "white"}
    now |= {"data.init_args.skip_corrupt": False, "model.init_args.image_size": 224}
    assert differing_options(before, now) == differing_options(now, before) == {}
    assert setting_options({"configuration": now}).keys() - setting_options({"configuration": before}).keys() <= {
        "data.init_args.framing",  # a field of the results shows it
        "model.init_args.image_size",
    }
    for name, value in {"framing": "pad", "background": "black", "skip_corrupt": True}.items():
        other = now | {f"data.init_args.{name}": value}
        assert differing_options(before, other) == {f"data.init_args.{name}": (None, value)}
        assert list(differing_options(now, other)) == [f"data.init_args.{name}"]
    crop = now | {"data.init_args.framing": "crop"}
    assert list(differing_options(now, crop)) == ["data.init_args.framing"]


def test_a_run_of_peft_from_before_the_generators_keeps_its_hash() -> None:
    before = flat_options(yaml.safe_load((FORMER / "vtab_dora.yaml").read_text("utf-8")))
    unused = {"hidden": None, "activation": "tanh", "sharing": "group", "scale_exponent": 0.5}
    now = before | {f"model.init_args.adapter.init_args.{name}": value for name, value in unused.items()}
    for reparameterize, same in ((False, True), (True, False)):
        now["model.init_args.adapter.init_args.reparameterize"] = reparameterize
        assert (differing_options(before, now) == differing_options(now, before) == {}) == same
        assert (configuration_sha256(before) == configuration_sha256(now)) == same


def test_each_new_option_of_a_datamodule_or_module_says_what_earlier_runs_did() -> None:
    """A checkpoint and a sweep from before an option go on with it."""
    former = [flat_options(yaml.safe_load(file.read_text("utf-8"))) for file in sorted(FORMER.glob("*.yaml"))]
    for options in former:
        for section in ("data", "model"):
            class_path = options[f"{section}.class_path"]
            module, _, name = class_path.rpartition(".")
            cls = getattr(importlib.import_module(module), name)
            for option, default in defaults(cls).items():
                if option in LINKED:
                    continue
                full = f"{section}.init_args.{option}"
                if not any(known == full or known.startswith(f"{full}.") for known in options):
                    assert differing_options(options, options | {full: default}) == {}, f"{full} of {class_path}"


def defaults(cls: type) -> dict[str, Any]:
    """The defaults of the options that the command line has for a class."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "given", fail_untyped=False, instantiate=False)
    found = parser.get_defaults(skip_validation=True).given
    return {name: value for name, value in found.as_dict().items() if not isinstance(value, dict)}
