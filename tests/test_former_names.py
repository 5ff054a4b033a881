"""Class paths that stored files have from earlier releases."""

from __future__ import annotations

import replora
from replora.former_names import FORMER_NAMES, renamed
from replora.runs import _method


def test_former_class_paths_are_renamed_and_others_stay() -> None:
    assert renamed("class_path: replora.PeftConfig\n") == "class_path: replora.PeftMethodConfig\n"
    assert renamed({"a": ["replora.PeftConfig", 3]}) == {"a": ["replora.PeftMethodConfig", 3]}
    for other in ("peft.PeftConfig", "replora.PeftConfigs", "x.replora.PeftConfig", "replora.RepLoRAConfig"):
        assert renamed(other) == other
    assert all(renamed(name) == name for name in FORMER_NAMES.values())


def test_the_method_of_an_old_run_loads() -> None:
    options = {"class_path": "replora.PeftConfig", "init_args": {"method": "dora", "rank": 2}}
    assert _method(options) == replora.PeftMethodConfig("dora", rank=2)
